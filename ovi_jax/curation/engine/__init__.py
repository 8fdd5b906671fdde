"""Runs stages over shards: manifest, workers, outputs, resumption."""
