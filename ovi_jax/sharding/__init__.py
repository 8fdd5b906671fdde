"""Meshes, logical axes and their sharding rules, and multi-process start."""
