"""Shards through stages: numbered, done once, watched, marked."""
