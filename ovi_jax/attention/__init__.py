"""Softmax attention: one function in front, a file a kernel behind it."""
