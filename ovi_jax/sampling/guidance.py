"""Classifier-free and skip-layer guidance, one scale per modality.

The positive and the negative pass are one call of the model on a batch of
twice the size: first the positives, then the negatives. In the negative half
each tower reads its own negative prompt, and one block may be left out.

With guidance by a reference voice there is a third pass: the positive one
without the reference.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.modality import AV

Tree = TypeVar("Tree")


PASSES = 2  # positive and negative; a third is without the reference
GUIDED_BY_VOICE = ("audio",)  # modalities that the reference guides


def duplicate_for_cfg(x: Tree, passes: int = PASSES) -> Tree:
  """Repeat a batch for the positive and the negative pass.

  Args:
    x: tree of arrays [B, ...].
    passes: 2, or 3 with the pass without the reference.

  Returns:
    Arrays [passes B, ...], the positive part first.
  """
  return jax.tree.map(lambda a: jnp.concatenate([a] * passes), x)


def apply_cfg(
  velocities: AV[jax.Array],
  scales: AV[float],
  voice_scale: jax.Array | float | None = None,
) -> AV[jax.Array]:
  r"""Classifier-free guidance.

  .. math::

    v = v_\text{neg} + w\, (v_\text{pos} - v_\text{neg})

  With a reference voice, sound alone is also guided away from the positive pass
  without it (DreamID-Omni, whose scale of this term is s - 1):

  .. math::

    v = v_\text{neg} + w\, (v_\text{pos} - v_\text{neg})
      + (s - 1)\, (v_\text{pos} - v_\text{without})

  Args:
    velocities: [passes B, ...] of each modality, the positive part first.
    scales: guidance scale w of each modality; 1 = no guidance.
    voice_scale: guidance scale s of the reference voice; `None` for two passes.

  Returns:
    Guided velocities [B, ...].
  """
  passes = PASSES + (voice_scale is not None)

  def one(name: str, velocity: jax.Array) -> jax.Array:
    positive, negative, *others = jnp.split(velocity, passes)
    guided = negative + getattr(scales, name) * (positive - negative)
    if name in GUIDED_BY_VOICE and voice_scale is not None:
      guided = guided + (voice_scale - 1) * (positive - others[0])
    return guided

  return velocities.map(one)


def slg_mask(
  blocks: int, batch: int, slg_layer: int, passes: int = PASSES
) -> np.ndarray:
  """Blocks to run for each element of the doubled batch (skip-layer guidance).

  Args:
    blocks: number of blocks G.
    batch: B.
    slg_layer: block that the negative pass skips; 0 = none.
    passes: see `duplicate_for_cfg`.

  Returns:
    block_mask_GB, bool [G, passes B]; `False` where a block is skipped.
  """
  keep = np.ones((blocks, passes * batch), bool)
  if 0 < slg_layer < blocks:
    keep[slg_layer, batch : 2 * batch] = False
  return keep
