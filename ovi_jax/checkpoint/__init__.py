"""Training checkpoints: saved by Orbax, verified by checksums."""
