"""What a person reads of a run before training on it."""
