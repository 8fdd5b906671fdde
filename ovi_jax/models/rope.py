"""Rotary position embeddings over latent time, rows and columns.

Paper, section 3.1: the audio tower's temporal angles are multiplied by the
ratio of the two token rates, so that a video token and the audio tokens that
sound with it meet at equal angles.

Differs from Ovi: a pair is (i, i + K/2) of a head, not (2i, 2i + 1). The
conversion reorders the projections of queries and keys to match, which leaves
every product q·k as it was and lets the rotation work on contiguous halves.

Angles are float64 on the host; tables and the rotation are float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BASE = 10_000.0
# Temporal position, in video latents, at which a reference begins (DreamID-
# Omni): behind all positions of the clips that weights are trained with.
REFERENCE_FRAME = 150


class Rotary(NamedTuple):
  """Cosine and sine of every token's angles, float32.

  With an axis B before L where examples have different tables.
  """

  cos_LK: jax.Array  # K here is half of the head size: one angle a pair.
  sin_LK: jax.Array


def head_split(head_dim: int) -> tuple[int, int, int]:
  """Split the pairs of a head over (time, row, column): 22, 21, 21 of 64.

  Args:
    head_dim: K, even.
  """
  spatial = head_dim // 6
  return head_dim // 2 - 2 * spatial, spatial, spatial


def reference_start(scale: float) -> int:
  """The position of the first reference latent, in audio steps.

  Args:
    scale: factor on the temporal frequencies of the audio tower: video latents
      in an audio step.
  """
  return int(REFERENCE_FRAME / scale)


def positions(
  length: int, scale: float = 1.0, reference: int = 0
) -> np.ndarray:
  """Positions in time of a sequence, int [length + reference].

  Args:
    length: steps of the sequence, at 0, 1, …
    scale: see `reference_start`.
    reference: latents of a reference behind it, at positions of their own.
  """
  begin = reference_start(scale)
  return np.concatenate(
    [np.arange(length), np.arange(begin, begin + reference)]
  )


def angles(
  length: int, pairs: int, scale: float = 1.0, reference: int = 0
) -> np.ndarray:
  """Angles [length + reference, pairs] of `positions`, float64 radians."""
  frequencies = scale * BASE ** -(np.arange(pairs) / pairs)
  return np.outer(positions(length, scale, reference), frequencies)


def table(
  grid: tuple[int, ...],
  head_dim: int,
  scale: float = 1.0,
  reference: int = 0,
) -> Rotary:
  """The rotary table of a stream of tokens.

  Args:
    grid: (frames, rows, columns) of video tokens, or (steps,) of audio tokens,
      without a reference.
    head_dim: K, even.
    scale: factor on the temporal frequencies.
    reference: audio latents of a reference behind the others.

  Returns:
    A table for prod(grid) tokens in row-major order, then for the reference.
    Audio turns only the temporal pairs; the rest of its angles are zero.

  Raises:
    ValueError: a reference behind video tokens.
  """
  if reference and len(grid) > 1:
    raise ValueError("a reference is of audio tokens, got a grid of video")
  split = head_split(head_dim)
  parts = []
  grid = tuple(n + reference * (axis == 0) for axis, n in enumerate(grid))
  for axis, pairs in enumerate(split):
    length = grid[axis] if axis < len(grid) else 1
    if axis == 0:
      part = angles(length - reference, pairs, scale, reference)
    else:
      part = angles(length, pairs)
    shape = [1, 1, 1, pairs]
    shape[axis] = length
    full = (*grid, 1, 1)[:3]
    parts.append((part.reshape(shape), (*full, pairs)))

  def broadcast(function) -> jax.Array:
    # Small tables go into the program; the large one is made on the device.
    axes = [
      jnp.broadcast_to(jnp.asarray(function(a), jnp.float32), s)
      for a, s in parts
    ]
    return jnp.concatenate(axes, -1).reshape(-1, sum(split))

  return Rotary(broadcast(np.cos), broadcast(np.sin))


def rotate(x_BLNK: jax.Array, rotary: Rotary) -> jax.Array:
  """Apply rotary position embeddings.

  Args:
    x_BLNK: queries or keys.
    rotary: table of L tokens, of all examples or for each.

  Returns:
    [B, L, N, K] in the dtype of x; the rotation is float32.
  """
  cos, sin = (
    a[None, :, None] if a.ndim == 2 else a[:, :, None] for a in rotary
  )
  # Halves change places before anything becomes float32: half as much to move.
  first, second = jnp.split(x_BLNK, 2, -1)
  swapped = jnp.concatenate([second, first], -1).astype(jnp.float32)
  cos, sin = (jnp.concatenate(t, -1) for t in ([cos, cos], [-sin, sin]))
  turned = x_BLNK.astype(jnp.float32) * cos + swapped * sin
  return turned.astype(x_BLNK.dtype)
