"""Evaluation during training: loss on held-out records, and sample clips."""
