"""Euler steps along the velocity. No state; float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.sampling import schedule


@dataclasses.dataclass(frozen=True)
class Euler:
  """First order: x + (next sigma - sigma) · velocity."""

  def schedule(self, steps: int, shift: float) -> schedule.Schedule:
    return schedule.euler(steps, shift)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 1]: the (negative) change of sigma."""
    return np.diff(sigmas.astype(np.float64))[:, None].astype(np.float32)

  def init(self, x: jax.Array) -> tuple[()]:
    del x
    return ()

  def step(
    self, row: jax.Array, state: tuple[()], x: jax.Array, velocity: jax.Array
  ) -> tuple[tuple[()], jax.Array]:
    return state, x + row[0] * velocity.astype(jnp.float32)
