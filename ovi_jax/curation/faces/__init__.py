"""Faces in clips: found, followed, cut out."""
