"""LAION aesthetic predictors, 1 to 10, on CLIP embeddings.

From a normalized CLIP embedding to a score. A head is a chain of linear layers
without nonlinearities. Two are public: the improved predictor with five layers,
`layers.0` to `layers.7` (the gaps are dropout), and the first one, a single
layer. (christophschuhmann/improved-aesthetic-predictor,
LAION-AI/aesthetic-predictor.) All computation is float32.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ovi_jax.convert import mapping
from ovi_jax.convert import reader

_LAYER = re.compile(r"layers\.(\d+)\.weight")


class Head(nn.Module):
  """Linear layers of these widths, the last one 1."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, vectors_BC):
    """Vectors of unit length -> scores_B."""
    for number, width in enumerate(self.widths):
      vectors_BC = nn.Dense(width, name=f"layer_{number}")(vectors_BC)
    return jnp.squeeze(vectors_BC, -1)


def read(
  path: str | os.PathLike[str], width: int
) -> tuple[Head, Mapping[str, Any]]:
  """A head and its parameters.

  Args:
    path: of the .pth.
    width: of CLIP's vectors.

  Raises:
    ValueError: it is missing, damaged, or of another network.
  """
  file = reader.open_tensors(path)
  found = {name: span.shape for name, span in file.spans.items()}
  table, shapes = _layout(path, found, width)
  mapping.check(table, found, shapes)
  params = mapping.gather(table, file.read)
  widths = tuple(s[0] for p, s in shapes.items() if p.endswith("bias"))
  nested = mapping.nest({p: a.astype(np.float32) for p, a in params.items()})
  return Head(widths), nested


def _layout(
  path: str | os.PathLike[str],
  found: Mapping[str, tuple[int, ...]],
  width: int,
) -> tuple[list[mapping.Row], dict[str, tuple[int, ...]]]:
  """The table of a head's file, and the shapes of our parameters."""
  names = sorted(filter(None, map(_LAYER.fullmatch, found)), key=_number)
  torch = [m.string.removesuffix("weight") for m in names]
  table, shapes = [], {}
  # Of the head that is one layer, the names have nothing before them.
  for number, name in enumerate(torch or [""]):
    ours, weight = f"layer_{number}", f"{name}weight"
    if weight not in found:
      raise ValueError(
        f"{path}: expected a LAION head, layers.0.weight to layers.7.weight or"
        f" weight alone; found {', '.join(sorted(found)[:5])}"
      )
    out = found[weight][0]
    transposed = mapping.Rearrange("o i -> i o")
    table += [
      mapping.Row(weight, f"{ours}/kernel", transposed),
      mapping.Row(f"{name}bias", f"{ours}/bias"),
    ]
    shapes |= {f"{ours}/kernel": (width, out), f"{ours}/bias": (out,)}
    width = out
  if width != 1:
    raise ValueError(f"{path}: expected a head that ends in 1, got {width}")
  return table, shapes


def _number(match: re.Match[str]) -> int:
  return int(match[1])
