"""Flow matching, without models: path, timesteps, loss. All of it is float32.

x_t = (1 - sigma) data + sigma noise, and the velocity along this straight path
is noise - data, from data to noise, as the released weights predict it (the
paper writes time the other way round). sigma is in [0, 1] and 1 is noise; the
model is given t = 1000 sigma.

In training, the paper draws one sigma for both modalities, uniformly from
[0, 1]. The other distributions are common in flow matching (Esser et al. 2024,
sections 3.1 and 5.3.2).

The loss of an example is the masked mean over its own latents; it depends on
nothing else in the batch. `example_weights` combines the examples of a batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import config as config_lib
from ovi_jax.modality import AV

TIME_SCALE = 1000.0  # the model's t for sigma = 1


def shift_sigma(sigma: Any, shift: float) -> Any:
  """Move noise levels towards 1 by `shift` (1 = unchanged)."""
  return shift * sigma / (1 + (shift - 1) * sigma)


def interpolate(
  data: jax.Array, noise: jax.Array, sigma_BT: jax.Array
) -> jax.Array:
  """x_t = (1 - sigma) data + sigma noise.

  Args:
    data: latents [B, T, ..., C].
    noise: standard normal, of the same shape.
    sigma_BT: noise level of each latent in time, or T = 1 for all of them.
  """
  sigma = sigma_BT.reshape(*sigma_BT.shape, *(1,) * (data.ndim - 2))
  return (1 - sigma) * data.astype(jnp.float32) + sigma * noise


def velocity(data: jax.Array, noise: jax.Array) -> jax.Array:
  """What the model learns to predict: noise - data, at every time."""
  return noise - data.astype(jnp.float32)


UNIFORM, LOGIT_NORMAL = "uniform", "logit_normal"
DISTRIBUTIONS = (UNIFORM, LOGIT_NORMAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepSampler:
  """A distribution of noise levels.

  Attributes:
    distribution: "uniform", or "logit_normal": sigmoid of a normal number.
    mean: of that normal number.
    std: of that normal number.
    shift: moves levels towards noise; 1 = not at all.
    shared_prob: share of examples with one level for both modalities; the
      others have one each.
  """

  distribution: str = UNIFORM
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  shared_prob: float = 1.0

  def __post_init__(self):
    problems = config_lib.invalid_choice(
      "timesteps.distribution", self.distribution, DISTRIBUTIONS
    )
    problems += [
      f"timesteps.{name} must be positive, got {getattr(self, name)}"
      for name in ("std", "shift")
      if getattr(self, name) <= 0
    ]
    if not 0 <= self.shared_prob <= 1:
      problems.append(
        f"timesteps.shared_prob must be in [0, 1], got {self.shared_prob}"
      )
    config_lib.check(problems, "")

  def sample(self, key: jax.Array, names: Sequence[str]) -> AV[jax.Array]:
    """Draw the level of one example for each modality in `names`."""
    if self.shared_prob == 1:
      return AV(**dict.fromkeys(names, self._one(key)))
    own = [self._one(k) for k in jax.random.split(key, 2)]
    same = jax.random.bernoulli(jax.random.fold_in(key, 2), self.shared_prob)
    levels = own[0], jnp.where(same, own[0], own[1])
    return AV(**dict(zip(names, levels)))

  def _one(self, key: jax.Array) -> jax.Array:
    if self.distribution == UNIFORM:
      sigma = jax.random.uniform(key)
    else:
      normal = self.mean + self.std * jax.random.normal(key)
      sigma = jax.nn.sigmoid(normal)
    return shift_sigma(sigma, self.shift)


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
