"""Schedules equal the original's; solvers converge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.sampling import settings
from ovi_jax.sampling import solvers
from tests.lib import parity

NAMES = sorted(solvers.SOLVERS)


@pytest.mark.parametrize("steps", [4, 12, 50])
@pytest.mark.parametrize("name", NAMES)
def test_the_schedule_equals_the_originals(golden, name, steps):
  levels = solvers.named(name).schedule(steps, 5.0)
  reference = golden("schedule")
  t, sigmas = (reference[f"sched_{name}_{steps}_{k}"] for k in ("t", "sigma"))
  parity.assert_close(levels.t, t, "schedule")
  parity.assert_close(levels.sigmas, sigmas, "schedule")


def test_the_log_ratio_is_infinite_at_its_ends():
  assert list(solvers.log_ratio(np.array([1.0, 0.5, 0.0]))) == [
    -np.inf,
    0.0,
    np.inf,
  ]


def solve(name: str, steps: int) -> tuple[float, float]:
  """Solve x' = velocity of data N(1, 0.3²) from one noise; (error, x)."""
  method = solvers.named(name)
  levels = method.schedule(steps, 1.0)
  mean, variance = 1.0, 0.3**2

  def velocity(x, sigma):
    # E[noise - data | x] for Gaussian data.
    total = (1 - sigma) ** 2 * variance + sigma**2
    centred = x - (1 - sigma) * mean
    return (sigma - (1 - sigma) * variance) / total * centred - mean

  x = jnp.full((1,), 0.7)
  state, step = method.init(x), jax.jit(method.step)
  for row, sigma in zip(method.coefficients(levels.sigmas), levels.sigmas):
    state, x = step(row, state, x, velocity(x, sigma))
  exact = mean + 0.3 * 0.7  # the flow keeps the quantile
  return abs(float(x[0]) - exact), float(x[0])


@pytest.mark.parametrize("name", NAMES)
def test_solvers_converge(name):
  coarse, fine = solve(name, 10)[0], solve(name, 40)[0]
  assert fine < 2e-2 and fine < coarse / 2


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_second_order_is_more_accurate_than_first(name):
  assert solve(name, 20)[0] < 0.5 * solve("euler", 20)[0]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_few_steps_are_finite_and_end_at_the_data(name, steps):
  """The last step, to sigma 0, returns the predicted data itself."""
  method = solvers.named(name)
  levels = method.schedule(steps, 5.0)
  rows = method.coefficients(levels.sigmas)
  assert rows.shape[0] == steps and np.all(np.isfinite(rows))
  assert levels.sigmas[-1] == 0
  x, data = jnp.full((2,), 0.3), jnp.full((2,), -2.0)
  state = method.init(x)
  for row, sigma in zip(rows, levels.sigmas):
    state, x = method.step(row, state, x, (x - data) / float(sigma))
  np.testing.assert_allclose(x, data, rtol=1e-5)


def test_unknown_solver_is_named():
  with pytest.raises(ValueError, match=r"'heun' is unknown.*unipc"):
    solvers.named("heun")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", settings.BOUNDS["num_steps"])
@pytest.mark.parametrize("shift", settings.BOUNDS["flow_shift"])
def test_coefficients_are_finite_within_the_bounds(name, steps, shift):
  method = solvers.named(name)
  levels = method.schedule(steps, shift)
  assert np.isfinite(method.coefficients(levels.sigmas)).all()
  assert np.isfinite(levels.t).all() and levels.sigmas[-1] == 0
