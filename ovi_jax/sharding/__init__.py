"""Meshes, logical axes, sharding rules, and the start of several processes."""
