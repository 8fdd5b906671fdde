"""Training objectives: flow matching, and the reconstruction of codecs."""
