"""Solvers of the flow-matching ODE, and the noise levels they visit.

A solver turns velocities into the next sample. Everything that depends on the
noise levels is computed beforehand on the host in float64: one row of
coefficients per step. A step is then a few weighted sums in float32, the same
compiled code for every step and for any number of steps.

Each solver of the original spaces its levels a little differently; released
weights were evaluated with these, so all three are reproduced exactly.
Source: Ovi, utils/fm_solvers*.py; diffusers, FlowMatchEulerDiscreteScheduler.
"""

import dataclasses
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import config as config_lib
from ovi_jax import diffusion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Noise levels of a run.

  Attributes:
    sigmas: [steps + 1] float32, falling, 1 = noise, the last is 0.
    t: [steps] float32, what the model is told at each step, in [0, 1000].
  """

  sigmas: np.ndarray
  t: np.ndarray

  @property
  def steps(self) -> int:
    return len(self.t)


def log_ratio(sigmas: np.ndarray) -> np.ndarray:
  """The half log signal-to-noise ratio, log((1 - sigma) / sigma).

  Args:
    sigmas: noise levels in [0, 1].

  Returns:
    -inf at pure noise, inf at data.
  """
  with np.errstate(divide="ignore"):
    return np.log(1 - sigmas) - np.log(sigmas)


def _ending_at_zero(sigmas: np.ndarray, whole_t: bool) -> Schedule:
  t = sigmas * diffusion.TIME_SCALE
  if whole_t:
    t = np.trunc(t)
  return Schedule(
    sigmas=np.append(sigmas, 0.0).astype(np.float32),
    t=t.astype(np.float32),
  )


class Solver(Protocol):
  """A solver of the ODE for one array; pure functions with explicit state."""

  def schedule(self, steps: int, shift: float) -> Schedule:
    """The noise levels of a run.

    Args:
      steps: number of steps.
      shift: shift of noise levels towards noise.

    Returns:
      The schedule.
    """
    ...

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """Compute the coefficients of all steps on the host.

    Args:
      sigmas: [steps + 1], see `Schedule`.

    Returns:
      [steps, n] float32; row i has the coefficients of step i.
    """
    ...

  def init(self, x: jax.Array) -> Any:
    """The state before the first step.

    Args:
      x: noise.
    """
    ...

  def step(
    self, row: jax.Array, state: Any, x: jax.Array, velocity: jax.Array
  ) -> tuple[Any, jax.Array]:
    """One step.

    Args:
      row: the step's coefficients.
      state: before the step.
      x: the sample before the step.
      velocity: the model's prediction for it.

    Returns:
      The state and the sample after the step, float32.
    """
    ...

  def predicted(self, state: Any) -> jax.Array:
    """The data that the last step predicted, float32.

    Args:
      state: after the step.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Euler:
  """First order: x + (next sigma - sigma) · velocity.

  Its state is the predicted data, x - sigma · velocity, which it does not use.
  """

  def schedule(self, steps: int, shift: float) -> Schedule:
    """Evenly spaced between the shifted training levels, shifted again."""
    one = np.float32(1 / diffusion.TIME_SCALE)
    last = float(np.float32(diffusion.shift_sigma(one, shift)))
    sigmas = np.linspace(1.0, last, steps)
    return _ending_at_zero(diffusion.shift_sigma(sigmas, shift), whole_t=False)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 2]: sigma and its (negative) change."""
    changes = np.diff(sigmas.astype(np.float64))
    return np.stack([sigmas[:-1], changes], 1).astype(np.float32)

  def init(self, x: jax.Array) -> jax.Array:
    return jnp.zeros(x.shape, jnp.float32)

  def step(
    self, row: jax.Array, state: jax.Array, x: jax.Array, velocity: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    del state
    sigma, change = row
    velocity = velocity.astype(jnp.float32)
    return x - sigma * velocity, x + change * velocity

  def predicted(self, state: jax.Array) -> jax.Array:
    return state


@dataclasses.dataclass(frozen=True)
class DPM:
  """DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv 2211.01095).

  x' = a·x + b·data + c·earlier data, data = x - sigma·velocity. It predicts the
  data, multistep of order 2; the first and the last step are of order 1. Its
  state is the data predicted one step earlier.
  """

  def schedule(self, steps: int, shift: float) -> Schedule:
    """Evenly spaced from 1, shifted; t is cut to an integer."""
    sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]
    return _ending_at_zero(diffusion.shift_sigma(sigmas, shift), whole_t=True)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 4]: sigma, a, b, c."""
    sigmas = sigmas.astype(np.float64)
    lambdas = log_ratio(sigmas)
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

  def predicted(self, state: jax.Array) -> jax.Array:
    return state


class UniPCState(NamedTuple):
  """State between steps, each in the shape of the sample."""

  sample: jax.Array  # corrected sample a step earlier
  data: jax.Array  # data predicted a step earlier
  earlier: jax.Array  # data predicted two steps earlier


@dataclasses.dataclass(frozen=True)
class UniPC:
  """UniPC of order 2, B(h) = e^h - 1, predicting data (Zhao et al. 2023).

  Each step first corrects the sample it was given with the data predicted there
  (arXiv 2302.04867, UniC), then predicts the next one (UniP). The first and the
  last prediction are of order 1.
  """

  def schedule(self, steps: int, shift: float) -> Schedule:
    """Evenly spaced from 0.999, shifted; t is cut to an integer."""
    sigmas = np.linspace(float(np.float32(0.999)), 0.0, steps + 1)[:-1]
    return _ending_at_zero(diffusion.shift_sigma(sigmas, shift), whole_t=True)

  def coefficients(self, sigmas: np.ndarray) -> np.ndarray:
    """[steps, 9]: sigma; corrector's weights of (given sample, sample a step
    earlier, data, data one and two steps earlier); predictor's of (corrected
    sample, data, data a step earlier)."""
    sigmas = sigmas.astype(np.float64)
    lambdas = log_ratio(sigmas)
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

  def init(self, x: jax.Array) -> UniPCState:
    # Three buffers, not one thrice: a step is given them to overwrite.
    return UniPCState(*(jnp.zeros(x.shape, jnp.float32) for _ in range(3)))

  def step(
    self, row: jax.Array, state: UniPCState, x: jax.Array, velocity: jax.Array
  ) -> tuple[UniPCState, jax.Array]:
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
    return UniPCState(x, data, state.data), following

  def predicted(self, state: UniPCState) -> jax.Array:
    return state.data


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


SOLVERS: dict[str, Solver] = {
  "unipc": UniPC(),
  "dpm++": DPM(),
  "euler": Euler(),
}


def named(name: str) -> Solver:
  """The solver of a name.

  Args:
    name: a key of `SOLVERS`.

  Returns:
    The solver.

  Raises:
    ValueError: the name is unknown.
  """
  config_lib.check(config_lib.invalid_choice("solver", name, SOLVERS), "")
  return SOLVERS[name]
