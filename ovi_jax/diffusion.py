r"""Flow matching: path, timesteps and loss, without models. Float32.

For data :math:`x_0`, noise :math:`\epsilon \sim \mathcal{N}(0, I)` and a noise
level :math:`\sigma \in [0, 1]` (1 = noise), the path is a straight line, and
the model predicts the velocity along it, from data to noise, as the released
weights do (the paper writes time the other way round):

.. math::

  x_\sigma = (1 - \sigma)\, x_0 + \sigma\, \epsilon, \qquad
  v = \frac{d x_\sigma}{d \sigma} = \epsilon - x_0.

The model is given the time :math:`t = 1000\, \sigma`. Noise levels are moved
towards noise by a shift :math:`s`, in training and in sampling:

.. math::

  \sigma' = \frac{s\, \sigma}{1 + (s - 1)\, \sigma}.

In training, the paper draws one :math:`\sigma` for both modalities, uniformly
from [0, 1]. The other distributions are common in flow matching (Esser et al.
2024, sections 3.1 and 5.3.2). The loss of an example is the mean over its own
valid latents that are generated, not given; with modality weights :math:`w_m`
(0.85 video, 0.15 audio), :math:`n_m` records of a batch that have such latents
of modality :math:`m`, and a model :math:`v_\theta`,

.. math::

  L = \sum_m \frac{w_m}{n_m} \sum_{i=1}^{n_m}
    \lVert v_\theta(x_\sigma, t, \text{text})_{m,i} - v_{m,i} \rVert^2
    / \dim v_{m,i}.
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
  """Move noise levels towards 1.

  Args:
    sigma: noise levels in [0, 1]; a number or an array.
    shift: s > 0; 1 leaves them unchanged.

  Returns:
    s sigma / (1 + (s - 1) sigma), in [0, 1].
  """
  return shift * sigma / (1 + (shift - 1) * sigma)


def interpolate(
  data: jax.Array, noise: jax.Array, sigma_BT: jax.Array
) -> jax.Array:
  """The noisy latents, (1 - sigma) data + sigma noise.

  Args:
    data: latents [B, T, ..., C].
    noise: standard normal, of the same shape.
    sigma_BT: noise level of each latent in time, or T = 1 for all.

  Returns:
    x_sigma in the shape of `data`, float32.
  """
  sigma = sigma_BT.reshape(*sigma_BT.shape, *(1,) * (data.ndim - 2))
  return (1 - sigma) * data.astype(jnp.float32) + sigma * noise


def velocity(data: jax.Array, noise: jax.Array) -> jax.Array:
  """The velocity along the path, noise - data, the same at every noise level.

  Args:
    data: latents.
    noise: of the same shape.

  Returns:
    The target of the model's prediction, float32.
  """
  return noise - data.astype(jnp.float32)


UNIFORM, LOGIT_NORMAL = "uniform", "logit_normal"
DISTRIBUTIONS = (UNIFORM, LOGIT_NORMAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimestepSampler:
  """A distribution of noise levels in training.

  Attributes:
    distribution: "uniform", or "logit_normal", the sigmoid of a normal
      variable.
    mean: mean of that normal variable.
    std: standard deviation of that normal variable.
    shift: moves noise levels towards noise, see `shift_sigma`; 1 = no shift.
    shared_prob: fraction of examples with one noise level for both modalities;
      the others draw one level for each.
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
    """Draw the noise levels of one example.

    Args:
      key: random key.
      names: of the modalities.

    Returns:
      A float32 scalar in [0, 1] for each modality.
    """
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
  """Mean squared error over valid latents.

  Args:
    prediction: velocity [B, T, ..., C].
    target: of the same shape.
    counts_BT: bool, whether a latent in time is valid.

  Returns:
    loss_B, float32; 0 for an example without valid latents.
  """
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  counts = counts_BT.reshape(*counts_BT.shape, *(1,) * (error.ndim - 2))
  # Left out before squaring: no NaN of theirs reaches the gradient.
  error = jnp.where(counts, error, 0.0)
  total = jnp.square(error).mean(range(2, error.ndim)).sum(1)
  return total / jnp.maximum(counts_BT.sum(1), 1)


def length_mask(length_B: jax.Array, places: int) -> jax.Array:
  """A mask of valid latents.

  Args:
    length_B: number of valid latents in time.
    places: T.

  Returns:
    counts_BT, bool.
  """
  return jnp.arange(places)[None] < length_B[:, None]


def example_weights(counts: AV[jax.Array], scales: AV[float]) -> AV[jax.Array]:
  """The weight of each example's loss in the loss of the batch.

  Args:
    counts: count_B of each modality: latents that have a loss; 0 = the record
      lacks the modality, or all of it is given.
    scales: weights of the modalities, 0.85 and 0.15 in the paper.

  Returns:
    weight_B of each modality: its weight, divided by the number of records with
    such latents. Summed over microbatches, losses add up to the whole batch's.
  """

  def one(count_B: jax.Array, scale: float) -> jax.Array:
    has = (count_B > 0).astype(jnp.float32)
    return scale * has / jnp.maximum(has.sum(), 1.0)

  present = counts.present()
  return AV(**{n: one(x, getattr(scales, n)) for n, x in present.items()})
