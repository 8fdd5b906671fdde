"""Training data: records, dataset files, loader."""
