"""Captioning: requests to a multimodal model, and validation of responses."""
