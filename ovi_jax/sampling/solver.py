"""What a solver is, and the solvers by name.

A solver turns velocities into the next sample. Everything that depends on the
noise levels is worked out beforehand on the host in float64: one row of
coefficients a step. A step is then a few weighted sums in float32, the same
compiled code for every step and for any number of steps.
"""

from typing import Any
from typing import Protocol

import jax
import numpy as np

from ovi_jax.sampling import dpm
from ovi_jax.sampling import euler
from ovi_jax.sampling import schedule
from ovi_jax.sampling import unipc


class Solver(Protocol):
  """A way from noise to data, for one array; pure, its state explicit."""

  def schedule(self, steps: int, shift: float) -> schedule.Schedule:
    """The noise levels this solver visits."""
    ...

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, n] float32: row i is what step i needs of `sigmas`."""
    ...

  def init(self, x: jax.Array) -> Any:
    """The state before the first step from noise `x`."""
    ...

  def step(
    self, row: jax.Array, state: Any, x: jax.Array, velocity: jax.Array
  ) -> tuple[Any, jax.Array]:
    """From (row of coefficients, state, sample, its velocity) to the next."""
    ...


SOLVERS: dict[str, Solver] = {
  "unipc": unipc.UniPC(),
  "dpm++": dpm.DPM(),
  "euler": euler.Euler(),
}


def named(name: str) -> Solver:
  """The solver called `name`; ValueError lists the known ones."""
  if name not in SOLVERS:
    known = ", ".join(SOLVERS)
    raise ValueError(f"solver {name!r} is unknown; choose from {known}")
  return SOLVERS[name]
