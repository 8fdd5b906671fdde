"""Lips and sound: what SyncNet reads, says and learns."""
