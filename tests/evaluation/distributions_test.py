"""FD, KID, KL and IS, against independent computations."""

import math

import numpy as np
import pytest
from scipy import linalg
from scipy import stats

from ovi_jax.evaluation import distributions


def normal(seed, count, width, shift=0.0):
  random = np.random.default_rng(seed)
  mix = random.normal(0, 1, (width, width))
  return random.normal(0, 1, (count, width)) @ mix + shift


def by_square_root(one, other):
  first, second = np.cov(one.T), np.cov(other.T)
  root = np.asarray(linalg.sqrtm(first @ second)).real
  away = one.mean(axis=0) - other.mean(axis=0)
  return away @ away + np.trace(first + second - 2 * root)


def by_eigenvalues(one, other):
  first, second = np.cov(one.T), np.cov(other.T)
  values = np.linalg.eigvals(first @ second).real
  away = one.mean(axis=0) - other.mean(axis=0)
  roots = np.sqrt(np.maximum(values, 0)).sum()
  return away @ away + np.trace(first) + np.trace(second) - 2 * roots


@pytest.mark.parametrize("counts", [(200, 150), (500, 90)])
def test_fd_equals_the_matrix_square_root(counts):
  one, other = normal(0, counts[0], 16), normal(1, counts[1], 16, shift=0.5)
  found = distributions.frechet_distance(one, other)
  assert found == pytest.approx(by_square_root(one, other), rel=1e-9)


@pytest.mark.parametrize("counts", [(5, 7), (5, 300), (40, 6)])
def test_fd_is_exact_for_fewer_clips_than_features(counts):
  one, other = normal(0, counts[0], 32), normal(1, counts[1], 32)
  found = distributions.frechet_distance(one, other)
  assert found == pytest.approx(by_eigenvalues(one, other), rel=1e-5)


def test_fd_of_a_set_from_itself_is_zero():
  one = normal(3, 12, 40)
  assert abs(distributions.frechet_distance(one, one)) < 1e-8
  assert math.isnan(distributions.frechet_distance(one[:1], one))


def test_kid_equals_its_sums_and_is_zero_on_average():
  one, other = normal(0, 9, 4), normal(1, 7, 4)

  def kernel(a, b):
    return (a @ b / 4 + 1) ** 3

  within = [
    np.mean(
      [
        kernel(x[i], x[j])
        for i in range(len(x))
        for j in range(len(x))
        if i != j
      ]
    )
    for x in (one, other)
  ]
  across = np.mean([kernel(a, b) for a in one for b in other])
  found = distributions.kernel_distance(one, other)
  assert found == pytest.approx(sum(within) - 2 * across, rel=1e-12)
  draws = np.random.default_rng(0).normal(0, 1, (2, 400, 10, 3))
  values = [distributions.kernel_distance(a, b) for a, b in zip(*draws)]
  assert abs(np.mean(values)) < 3 * np.std(values) / 20


def test_kl_is_from_the_reference_to_the_clip():
  random = np.random.default_rng(0)
  clip, reference = random.normal(0, 2, (2, 527))
  p, q = (np.exp(x) / np.exp(x).sum() for x in (reference, clip))
  found = distributions.kl({"a.l": clip}, {"a.l": reference}, array="a.l")
  assert found == pytest.approx(stats.entropy(p, q), rel=1e-12)
  for other in (None, {}):
    assert math.isnan(distributions.kl({"a.l": clip}, other, array="a.l"))


def test_is_of_ten_shuffled_splits_equals_its_definition():
  logits = np.random.default_rng(0).normal(0, 3, (53, 11))
  order = np.random.RandomState(2020).permutation(53)
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  expected = []
  for number in range(10):
    part = p[order][number * 53 // 10 : (number + 1) * 53 // 10]
    kl = [stats.entropy(row, part.mean(axis=0)) for row in part]
    expected.append(np.exp(np.mean(kl)))
  found = distributions.split_scores(logits, 10, shuffle=True)
  assert found == pytest.approx(np.mean(expected), rel=1e-12)
  assert math.isnan(distributions.split_scores(logits[:9], 10, shuffle=True))
  assert distributions.split_scores(logits, 1, shuffle=False) != found


def test_all_rows_of_a_clip_count_and_few_rows_are_warned_of():
  clips = [{"v.e": normal(n, 3, 8)} for n in range(4)]
  reference = [{"v.e": normal(n, 5, 8)} for n in range(4, 7)]
  found = distributions.fd(clips, reference, array="v.e")
  one = np.concatenate([c["v.e"] for c in clips])
  other = np.concatenate([c["v.e"] for c in reference])
  assert found.value(np.arange(4)) == distributions.frechet_distance(one, other)
  assert not found.warnings
  few = distributions.fd(clips[:2], reference, array="v.e")
  assert "6 rows for 8 features" in few.warnings[0]
  with pytest.raises(ValueError, match="--reference=DIR"):
    distributions.fd(clips, None, array="v.e")
  with pytest.raises(ValueError, match="no clip has"):
    distributions.kid([{}], reference, array="v.e")
  mixed = [*clips, {"v.e": np.zeros((1, 3))}]
  with pytest.raises(ValueError, match="rows of one width"):
    distributions.fd(mixed, reference, array="v.e")


@pytest.mark.parametrize("rule", ["fd", "kid"])
def test_widths_and_numbers_are_checked_before_they_are_compared(rule):
  made = distributions.RULES[rule]
  clips = [{"v.e": np.ones(3)}, {"v.e": np.zeros(3)}]
  with pytest.raises(ValueError, match="3 and 2 of the reference"):
    made(clips, [{"v.e": np.ones(2)}], array="v.e")
  clips[0] = {"v.e": np.full(3, np.nan)}
  with pytest.raises(ValueError, match="expected finite numbers"):
    made(clips, clips, array="v.e")


def test_the_inception_score_takes_one_row_of_each_clip():
  clips = [{"v.e": np.ones((2, 3))}] * 4
  with pytest.raises(ValueError, match="one row for each clip"):
    distributions.inception_score(clips, None, array="v.e")
