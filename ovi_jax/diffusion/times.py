"""At which noise levels a model is trained.

The paper draws one sigma for both modalities, evenly from [0, 1]. The other
distributions are common in flow matching (Esser et al. 2024, sections 3.1 and
5.3.2). Levels are float32.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ovi_jax.diffusion import path
from ovi_jax.modality import AV

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
    if self.distribution not in DISTRIBUTIONS:
      raise ValueError(
        f"timesteps.distribution {self.distribution!r} is unknown; choose from"
        f" {', '.join(DISTRIBUTIONS)}"
      )
    for name in ("std", "shift"):
      if getattr(self, name) <= 0:
        raise ValueError(
          f"timesteps.{name} must be positive, got {getattr(self, name)}"
        )
    if not 0 <= self.shared_prob <= 1:
      raise ValueError(
        f"timesteps.shared_prob must be in [0, 1], got {self.shared_prob}"
      )

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
    return path.shift_sigma(sigma, self.shift)
