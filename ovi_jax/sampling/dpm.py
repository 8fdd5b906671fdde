"""DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv 2211.01095).

Predicts the data, multistep of order 2; the first and the last step are of
order 1. State: the data predicted a step earlier. Float32.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.sampling import schedule


@dataclasses.dataclass(frozen=True)
class DPM:
  """x' = a·x + b·data + c·earlier data, data = x - sigma·velocity."""

  def schedule(self, steps: int, shift: float) -> schedule.Schedule:
    return schedule.dpm(steps, shift)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 4]: sigma, a, b, c."""
    sigmas = sigmas.astype(np.float64)
    lambdas = schedule.log_ratio(sigmas)
    rows = []
    for i, sigma in enumerate(sigmas[:-1]):
      following = sigmas[i + 1]
      h = lambdas[i + 1] - lambdas[i]
      decay = -(1 - following) * np.expm1(-h)
      earlier = 0.0
      if 0 < i < len(sigmas) - 2:
        # Share of the slope; nothing after a step from pure noise, where the
        # distance in lambda is infinite.
        earlier = -0.5 * decay * h / (lambdas[i] - lambdas[i - 1])
      rows.append((sigma, following / sigma, decay - earlier, earlier))
    return np.asarray(rows, np.float32)

  def init(self, x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32)

  def step(
    self, row: jax.Array, state: jax.Array, x: jax.Array, velocity: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    sigma, a, b, c = row
    data = x - sigma * velocity.astype(jnp.float32)
    return data, a * x + b * data + c * state
