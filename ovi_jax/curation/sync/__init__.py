"""Lip sync: inputs, scores and training of SyncNet."""
