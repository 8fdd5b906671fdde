"""The noise levels that a run visits.

Each solver of the original spaces its levels a little differently; released
weights were judged with these, so all three are kept to the last digit.
Source: Ovi, utils/fm_solvers*.py; diffusers, FlowMatchEulerDiscreteScheduler.
Computed on the host in float64, kept in float32.
"""

import dataclasses

import numpy as np

from ovi_jax.diffusion import path


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
  """lambda = log((1 - sigma) / sigma); -inf at pure noise, inf at data."""
  with np.errstate(divide="ignore"):
    return np.log(1 - sigmas) - np.log(sigmas)


def unipc(steps: int, shift: float) -> Schedule:
  """Evenly spaced from 0.999, shifted; t is cut to an integer."""
  sigmas = np.linspace(float(np.float32(0.999)), 0.0, steps + 1)[:-1]
  return _ending_at_zero(path.shift_sigma(sigmas, shift), whole_t=True)


def dpm(steps: int, shift: float) -> Schedule:
  """Evenly spaced from 1, shifted; t is cut to an integer."""
  sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]
  return _ending_at_zero(path.shift_sigma(sigmas, shift), whole_t=True)


def euler(steps: int, shift: float) -> Schedule:
  """Evenly spaced between the shifted training levels, shifted again."""
  last = float(
    np.float32(path.shift_sigma(np.float32(1 / path.TIME_SCALE), shift))
  )
  sigmas = np.linspace(1.0, last, steps)
  return _ending_at_zero(path.shift_sigma(sigmas, shift), whole_t=False)


def _ending_at_zero(sigmas: np.ndarray, whole_t: bool) -> Schedule:
  t = sigmas * path.TIME_SCALE
  if whole_t:
    t = np.trunc(t)
  return Schedule(
    sigmas=np.append(sigmas, 0.0).astype(np.float32),
    t=t.astype(np.float32),
  )
