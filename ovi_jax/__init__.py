"""Ovi, joint video and sound generation, in JAX and Flax."""

__version__ = "0.1.0"
