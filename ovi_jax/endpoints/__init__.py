"""Requests to OpenAI-compatible endpoints: chat completions and images."""
