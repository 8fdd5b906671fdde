"""Extractors of features, one module per network or kind of signal."""
