"""Sign-flip tests and Holm's correction."""

import numpy as np
import pytest

from ovi_jax.study.statistics import significance


def test_few_prompts_have_the_exact_p_value():
  assert significance.sign_flip(np.ones(5)) == 2 / 32
  assert significance.sign_flip(np.array([1, 1, 1, -1.0])) == 10 / 16
  assert significance.sign_flip(np.zeros(0)) == 1
  assert significance.sign_flip(np.zeros(6)) == 1


def test_random_flips_agree_with_the_exact_test():
  random = np.random.default_rng(2)
  scores = random.normal(0.5, 1, 13)
  exact = significance.sign_flip(scores)
  # A fourteenth prompt without an effect makes the test a random one.
  drawn = significance.sign_flip(np.append(scores, 0.0))
  assert drawn == pytest.approx(exact, abs=0.015)


def test_p_values_are_uniform_without_a_difference():
  random = np.random.default_rng(0)
  found = [
    significance.sign_flip(random.normal(size=20), seed, flips=199)
    for seed in range(300)
  ]
  assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09


def test_holm_multiplies_by_the_number_of_remaining_hypotheses():
  adjusted = significance.holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])
  assert significance.holm([0.9, 0.8]) == [1.0, 1.0]
  assert significance.holm([]) == []


def test_prompts_without_votes_are_left_out():
  scores = significance.prompt_scores(
    np.array([2.0, 0]), np.array([1.0, 0]), np.array([4.0, 0])
  )
  assert scores.tolist() == [0.25]
