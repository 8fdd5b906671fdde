"""Training: what is trained, by which loss, step by step."""
