"""Curation: raw media to training records (Ovi, section 3.1)."""
