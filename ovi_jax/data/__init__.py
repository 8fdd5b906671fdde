"""From records on disk to batches: the contract, its files, the loader."""
