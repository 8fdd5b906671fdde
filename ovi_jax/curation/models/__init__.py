"""Networks that judge clips; their weights are the user's to bring."""
