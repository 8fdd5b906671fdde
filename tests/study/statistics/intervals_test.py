"""Intervals: clusters, and coverage of the truth over simulated studies."""

import math

import numpy as np
import pytest

from ovi_jax.study.statistics import davidson
from ovi_jax.study.statistics import intervals
from ovi_jax.study.statistics import simulate
from ovi_jax.study.statistics import votes as votes_lib

MODEL = simulate.Raters(theta=(0.4, 0.0, -0.4), nu=0.5, beta=0.15)


def estimator(ordered, pairs, systems):
  def estimate(counts_XEO):
    fit = davidson.fit(counts_XEO, ordered, systems)
    rates = [
      votes_lib.win_rates(votes_lib.outcomes(counts_XEO, ordered, pair))
      for pair in pairs
    ]
    others = np.stack([fit.beta_X, fit.log_nu_X], 1)
    return np.concatenate([fit.theta_XS, others, *rates], 1)

  return estimate


def test_votes_of_one_prompt_are_not_independent():
  """Ten equal votes on each of ten prompts are as good as ten votes."""
  random = np.random.default_rng(0)
  better = np.repeat(random.integers(0, 2, 10), 10)
  rows = [(i // 10, i, 0, 1, int(c)) for i, c in enumerate(better)]
  votes = votes_lib.make(["a", "b"], rows)

  def rate(counts_XEO):
    return votes_lib.win_rates(
      votes_lib.outcomes(counts_XEO, votes.ordered_pairs, (0, 1))
    )[:, :1]

  found = intervals.bootstrap(votes, rate, replicates=500)
  width = np.ptp(found.over_prompts[0])
  share = np.mean(better == 0)
  expected = 2 * 1.96 * math.sqrt(share * (1 - share) / 10)
  assert width == pytest.approx(expected, rel=0.15)
  assert np.ptp(found.two_way[0]) > width
  assert np.ptp(found.over_raters[0]) < width / 2


def test_one_rater_alone_has_no_interval_over_raters():
  rows = [(i, 0, 0, 1, i % 3) for i in range(9)]
  votes = votes_lib.make(["a", "b"], rows)
  estimate = estimator(votes.ordered_pairs, votes.pairs, 2)
  found = intervals.bootstrap(votes, estimate, replicates=50)
  assert np.isnan(found.over_raters).all() and np.isnan(found.two_way).all()
  assert np.isfinite(found.over_prompts).all()


def test_votes_that_all_agree_have_no_interval():
  """Not one of no width, which would say that the value is certain."""
  rows = [(i // 3, i % 3, 0, 1, votes_lib.LEFT) for i in range(9)]
  votes = votes_lib.make(["a", "b"], rows)
  estimate = estimator(votes.ordered_pairs, votes.pairs, 2)
  found = intervals.bootstrap(votes, estimate, replicates=50)
  assert found.value[-3:].tolist() == [1, 1, 1]
  for name in ("over_prompts", "over_raters", "two_way"):
    assert np.isnan(getattr(found, name)).all(), name


def test_wilson_intervals_have_known_values():
  low, high = intervals.wilson(8, 10)
  assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
  assert intervals.wilson(0, 10)[0] == 0
  assert all(np.isnan(intervals.wilson(0, 0)))


def test_shares_of_simulated_votes_are_those_of_the_model():
  votes = simulate.study(MODEL, 2000, 3, 500, np.random.default_rng(1))
  found = votes_lib.outcomes(votes.counts(), votes.ordered_pairs, (0, 2))[0]
  deviation = math.hypot(MODEL.prompt_sd, MODEL.rater_sd)
  sides = np.array([0.8 + MODEL.beta, 0.8 - MODEL.beta])
  expected = simulate.shares(sides, MODEL.nu, deviation).mean(0)
  np.testing.assert_allclose(found / found.sum(), expected, atol=0.02)
  assert len(votes) == 2000 * 3 * 3
  assert np.bincount(votes.rater).tolist() == [36] * 500


def coverage(prompts, raters_per_item, raters, studies, seed):
  """Share of intervals that cover the truth, by kind and estimate."""
  counts, ordered = simulate.expected_counts(MODEL)
  truth = estimator(ordered, [(0, 1), (0, 2), (1, 2)], 3)(counts)[0]
  random = np.random.default_rng(seed)
  hits: dict[str, list] = {"over_prompts": [], "two_way": []}
  for number in range(studies):
    votes = simulate.study(MODEL, prompts, raters_per_item, raters, random)
    found = intervals.bootstrap(
      votes,
      estimator(votes.ordered_pairs, votes.pairs, 3),
      seed=number,
      replicates=200,
    )
    for name, values in hits.items():
      low, high = getattr(found, name).T
      values.append((low <= truth) & (truth <= high))
  return {name: np.mean(values, 0) for name, values in hits.items()}


@pytest.mark.slow
def test_intervals_of_300_studies_with_10000_raters_cover_the_truth():
  """Log strengths, side bias, log nu and win rates; 34 raters a study."""
  found = coverage(60, 3, 34, 300, seed=1)
  for name, covered in found.items():
    assert 0.93 <= covered.mean() <= 0.97, (name, covered)
    # Of one estimate, the share has a standard error of 0.013.
    assert covered.min() > 0.91, (name, covered)
