"""Davidson's model: exact cases, recovery of parameters, hard data."""

import math

import numpy as np
import pytest
from scipy import optimize

from ovi_jax.study.statistics import davidson
from ovi_jax.study.statistics import simulate
from ovi_jax.study.statistics import votes as votes_lib

ORDERED = np.array([[0, 1], [1, 0]])


def test_two_systems_have_the_odds_of_their_counts():
  counts = np.array([[[300.0, 100, 200], [100, 300, 200]]])
  fit = davidson.fit(counts, ORDERED, 2)
  assert fit.theta_XS[0] @ [1, -1] == pytest.approx(math.log(3), abs=1e-3)
  # nu of Davidson: ties over the geometric mean of wins and losses.
  nu = 200 / math.sqrt(300 * 100)
  assert fit.log_nu_X[0] == pytest.approx(math.log(nu), abs=1e-3)
  assert fit.beta_X[0] == pytest.approx(0, abs=1e-9)
  assert fit.elo_XS[0].mean() == pytest.approx(1000)
  difference = 400 * math.log(3) / math.log(10)
  assert np.ptp(fit.elo_XS[0]) == pytest.approx(difference, abs=0.3)


def test_parameters_of_expected_counts_are_recovered():
  model = simulate.Raters(
    theta=(0.6, 0.1, -0.7), nu=0.4, beta=0.3, prompt_sd=0, rater_sd=0
  )
  counts, ordered = simulate.expected_counts(model)
  fit = davidson.fit(counts, ordered, 3)
  np.testing.assert_allclose(fit.theta_XS[0], model.theta, atol=1e-5)
  assert math.exp(fit.log_nu_X[0]) == pytest.approx(0.4, abs=1e-5)
  assert fit.beta_X[0] == pytest.approx(0.3, abs=1e-5)


def test_the_fit_is_the_maximum_that_another_optimizer_finds():
  random = np.random.default_rng(3)
  ordered = np.array([(i, j) for i in range(4) for j in range(4) if i != j])
  counts = random.integers(0, 9, (2, len(ordered), 3)).astype(float)
  fit = davidson.fit(counts, ordered, 4)

  def loss(x, of):
    difference = x[ordered[:, 0]] - x[ordered[:, 1]] + x[5]
    chances = davidson.probabilities(difference, x[4])
    return -(of * np.log(chances)).sum() + davidson.RIDGE / 2 * x @ x

  for row in range(2):
    found = optimize.minimize(loss, np.zeros(6), (counts[row],), tol=1e-12).x
    ours = [*fit.theta_XS[row], fit.log_nu_X[row], fit.beta_X[row]]
    np.testing.assert_allclose(ours, found, atol=1e-4)


@pytest.mark.parametrize(
  "counts",
  [
    [[50, 0, 0], [0, 50, 0]],  # one system wins all
    [[0, 0, 50], [0, 0, 50]],  # ties alone
    [[50, 0, 0], [50, 0, 0]],  # always the left
    [[0, 0, 0], [0, 0, 0]],
  ],
)
def test_parameters_are_finite_for_extreme_counts(counts):
  fit = davidson.fit(np.array([counts], float), ORDERED, 2)
  assert np.isfinite(fit.theta_XS).all() and np.abs(fit.theta_XS).max() < 20
  assert np.isfinite(fit.log_nu_X).all() and np.isfinite(fit.beta_X).all()


def test_win_rates_count_ties_as_half():
  rates = votes_lib.win_rates(np.array([[6.0, 2, 4], [0, 0, 0]]))
  np.testing.assert_allclose(rates[0], [8 / 12, 6 / 8, 4 / 12])
  assert np.isnan(rates[1]).all()


def test_counts_do_not_depend_on_the_side():
  rows = [(0, 0, 0, 1, votes_lib.LEFT), (0, 1, 1, 0, votes_lib.RIGHT)]
  rows += [(1, 0, 1, 0, votes_lib.LEFT), (1, 1, 0, 1, votes_lib.EQUAL)]
  votes = votes_lib.make(["a", "b"], rows)
  ordered = votes.ordered_pairs
  found = votes_lib.outcomes(votes.counts(), ordered, (0, 1))
  assert found.tolist() == [[2, 1, 1]]
  by_prompt = votes.counts_by(votes.prompt).reshape(2, -1, 3)
  found = votes_lib.outcomes(by_prompt, ordered, (0, 1))
  assert found.tolist() == [[2, 0, 0], [0, 1, 1]]
