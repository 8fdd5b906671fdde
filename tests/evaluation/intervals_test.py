"""Confidence intervals over clips."""

import math

import numpy as np
import pytest

from ovi_jax.evaluation import intervals


def test_wilson_intervals_equal_values_computed_by_hand():
  # 9 of 10, as tables have it.
  np.testing.assert_allclose(
    intervals.wilson(9, 10), (0.5958, 0.9821), atol=1e-4
  )
  assert intervals.wilson(0, 4)[0] == 0 and intervals.wilson(4, 4)[1] == 1


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
  random = np.random.default_rng(1)
  covered = 0
  for seed in range(300):
    found = intervals.bootstrap_mean(random.normal(2, 3, 60), 200, seed)
    covered += found.low <= 2 <= found.high
  assert 0.9 <= covered / 300 <= 0.985


def test_clips_without_a_value_do_not_count():
  value_N = np.array([1.0, np.nan, 3.0, np.nan, 5.0])
  found = intervals.bootstrap_mean(value_N)
  assert found.value == 3 and 1 <= found.low < 3 < found.high <= 5
  assert math.isnan(intervals.bootstrap_mean(np.full(3, np.nan)).value)
  alone = intervals.bootstrap_mean(np.array([4.0]))
  assert alone.value == 4 and math.isnan(alone.low)


def test_the_interval_of_a_statistic_has_the_width_of_its_standard_error():
  value_N = np.random.default_rng(0).normal(0, 1, 400)
  found = intervals.bootstrap_statistic(
    lambda index: value_N[index].mean(), 400, 400
  )
  assert found.value == pytest.approx(value_N.mean())
  expected = 2 * 1.96 * value_N.std(ddof=1) / 20
  assert found.high - found.low == pytest.approx(expected, rel=0.15)
  none = intervals.bootstrap_statistic(lambda index: 1.0, 5, 0)
  assert none.value == 1 and math.isnan(none.low)
