"""Flow matching, without models: the path, its times, the loss."""
