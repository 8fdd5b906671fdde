"""UniPC of order 2, B(h) = e^h - 1, predicting data (Zhao et al. 2023).

Each step first corrects the sample it was given with the data predicted there
(arXiv 2302.04867, UniC), then predicts the next one (UniP). The first and the
last prediction are of order 1. Float32.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.sampling import schedule


class State(NamedTuple):
  """What a step remembers, each in the shape of the sample."""

  sample: jax.Array  # corrected sample a step earlier
  data: jax.Array  # data predicted a step earlier
  earlier: jax.Array  # data predicted two steps earlier


@dataclasses.dataclass(frozen=True)
class UniPC:
  """Corrector and predictor as two weighted sums."""

  def schedule(self, steps: int, shift: float) -> schedule.Schedule:
    return schedule.unipc(steps, shift)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 9]: sigma; corrector's weights of (given sample, sample a step
    earlier, data, data one and two steps earlier); predictor's of (corrected
    sample, data, data a step earlier)."""
    sigmas = sigmas.astype(np.float64)
    lambdas = schedule.log_ratio(sigmas)
    steps = len(sigmas) - 1
    orders = [min(2, i + 1, steps - i) for i in range(steps)]
    rows = []
    for i in range(steps):
      corrector = (1.0, 0.0, 0.0, 0.0, 0.0)
      if i > 0:
        corrector = (0.0, *_correct(sigmas, lambdas, i, orders[i - 1]))
      predictor = _predict(sigmas, lambdas, i, orders[i])
      rows.append((sigmas[i], *corrector, *predictor))
    return np.asarray(rows, np.float32)

  def init(self, x: jax.Array) -> State:
    # Three buffers, not one thrice: a step is given them to overwrite.
    return State(*(jnp.zeros(x.shape, jnp.float32) for _ in range(3)))

  def step(
    self, row: jax.Array, state: State, x: jax.Array, velocity: jax.Array
  ) -> tuple[State, jax.Array]:
    sigma, given, sample, now, before, earlier, a, b, c = row
    data = x - sigma * velocity.astype(jnp.float32)
    x = (
      given * x
      + sample * state.sample
      + now * data
      + before * state.data
      + earlier * state.earlier
    )
    following = a * x + b * data + c * state.data
    return State(x, data, state.data), following


def _interval(
  sigmas: np.ndarray, lambdas: np.ndarray, start: int, order: int
) -> tuple[float, float, float, float]:
  """Of the interval from level `start` to the next: the sample's decay, the
  data's weight alpha·(1 - e^-h), h, and the earlier interval over h (or 1)."""
  h = lambdas[start + 1] - lambdas[start]
  weight = -(1 - sigmas[start + 1]) * np.expm1(-h)
  ratio = 1.0
  if order == 2:
    ratio = (lambdas[start - 1] - lambdas[start]) / h
  return sigmas[start + 1] / sigmas[start], weight, h, ratio


def _predict(
  sigmas: np.ndarray, lambdas: np.ndarray, i: int, order: int
) -> tuple[float, float, float]:
  """Weights of (sample, data at i, data at i - 1) for the sample at i + 1."""
  decay, weight, _, ratio = _interval(sigmas, lambdas, i, order)
  slope = 0.5 * weight / ratio if order == 2 else 0.0
  return decay, weight - slope, slope


def _correct(
  sigmas: np.ndarray, lambdas: np.ndarray, i: int, order: int
) -> tuple[float, float, float, float]:
  """Weights of (sample at i - 1, data at i, i - 1, i - 2) for that at i."""
  decay, weight, h, ratio = _interval(sigmas, lambdas, i - 1, order)
  rho, rho_now = 0.0, 0.5
  if order == 2:
    # Match the Taylor terms of e^{-lambda}: phi_2 and 2·phi_3 over B(h).
    phi_1 = np.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 0.5
    matrix = np.array([[1.0, 1.0], [ratio, 1.0]])
    rho, rho_now = np.linalg.solve(matrix, [phi_2 / phi_1, 2 * phi_3 / phi_1])
  slope, slope_now = weight * rho / ratio, weight * rho_now
  return decay, slope_now, weight - slope - slope_now, slope
