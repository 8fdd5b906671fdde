"""Measurements; see README.md. `run` times ours beside the original."""
