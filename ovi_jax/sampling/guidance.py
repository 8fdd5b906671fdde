"""Classifier-free and skip-layer guidance, one scale per modality.

The positive and the negative pass are one call of the model on a batch of
twice the size: first the positives, then the negatives. In the negative half
each tower reads its own negative prompt, and one block may be left out.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.modality import AV

Tree = TypeVar("Tree")


def duplicate_for_cfg(x: Tree) -> Tree:
  """Repeat a batch for the positive and the negative pass.

  Args:
    x: tree of arrays [B, ...].

  Returns:
    Arrays [2 B, ...], the positive half first.
  """
  return jax.tree.map(lambda a: jnp.concatenate([a, a]), x)


def apply_cfg(velocities: AV[jax.Array], scales: AV[float]) -> AV[jax.Array]:
  r"""Classifier-free guidance.

  .. math::

    v = v_\text{neg} + w\, (v_\text{pos} - v_\text{neg})

  Args:
    velocities: [2 B, ...] of each modality, the positive half first.
    scales: guidance scale w of each modality; 1 = no guidance.

  Returns:
    Guided velocities [B, ...].
  """

  def one(name: str, velocity: jax.Array) -> jax.Array:
    positive, negative = jnp.split(velocity, 2)
    return negative + getattr(scales, name) * (positive - negative)

  return velocities.map(one)


def slg_mask(blocks: int, batch: int, slg_layer: int) -> np.ndarray:
  """Blocks to run for each element of the doubled batch (skip-layer guidance).

  Args:
    blocks: number of blocks G.
    batch: B.
    slg_layer: block that the negative pass skips; 0 = none.

  Returns:
    block_mask_GB, bool [G, 2 B]; `False` where a block is skipped.
  """
  keep = np.ones((blocks, 2 * batch), bool)
  if 0 < slg_layer < blocks:
    keep[slg_layer, batch:] = False
  return keep
