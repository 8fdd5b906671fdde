"""The flow-matching loss of each example, float32.

An example's loss depends on nothing else in its batch: it is the mean over
the latents of its own that count. What a batch makes of them is `weights`.
"""

import jax
import jax.numpy as jnp

from ovi_jax.modality import AV


def masked_mse(
  prediction: jax.Array, target: jax.Array, counts_BT: jax.Array
) -> jax.Array:
  """Mean squared error over the latents that count.

  Args:
    prediction: velocity [B, T, ..., C].
    target: of the same shape.
    counts_BT: bool, which latents in time count.

  Returns:
    loss_B, float32; 0 for an example of which nothing counts.
  """
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  counts = counts_BT.reshape(*counts_BT.shape, *(1,) * (error.ndim - 2))
  # Left out before squaring: no NaN of theirs reaches the gradient.
  error = jnp.where(counts, error, 0.0)
  total = jnp.square(error).mean(range(2, error.ndim)).sum(1)
  return total / jnp.maximum(counts_BT.sum(1), 1)


def length_mask(length_B: jax.Array, places: int) -> jax.Array:
  """counts_BT: the first `length` of `places` latents in time."""
  return jnp.arange(places)[None] < length_B[:, None]


def example_weights(lengths: AV[jax.Array], scales: AV[float]) -> AV[jax.Array]:
  """What each example's loss adds to the batch's.

  Args:
    lengths: length_B of each modality; 0 = the record lacks it.
    scales: of the modalities, 0.85 and 0.15 in the paper.

  Returns:
    weight_B: a modality's scale shared evenly by the records that have it.
    Summed over parts of a batch, losses add up to the whole batch's.
  """

  def one(length_B: jax.Array, scale: float) -> jax.Array:
    has = (length_B > 0).astype(jnp.float32)
    return scale * has / jnp.maximum(has.sum(), 1.0)

  present = lengths.present()
  return AV(**{n: one(x, getattr(scales, n)) for n, x in present.items()})
