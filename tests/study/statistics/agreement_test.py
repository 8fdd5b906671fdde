"""Krippendorff's alpha against published examples."""

import numpy as np
import pytest

from ovi_jax.study.statistics import agreement

# K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), examples
# A (binary), B (nominal) and C (missing values): a row for each coder.
BINARY = ["0100000000", "1110010010"], 0.095
NOMINAL = ["aabbdcccedda", "babbbccceddd"], 0.692
MISSING = (
  ["123321412...", "1233224125.3", ".3332342251.", "12332441251."],
  0.743,
)


def alpha_of(rows: list[str]) -> float:
  units, values = [], []
  for row in rows:
    for unit, value in enumerate(row):
      if value != ".":
        units.append(unit)
        values.append(ord(value))
  counts = agreement.value_counts(np.array(units), np.array(values))
  return float(agreement.alpha(counts)[0])


@pytest.mark.parametrize(("rows", "expected"), [BINARY, NOMINAL, MISSING])
def test_alpha_equals_published_examples(rows, expected):
  assert alpha_of(rows) == pytest.approx(expected, abs=5e-4)


def test_alpha_is_one_for_equal_and_about_zero_for_random_values():
  assert alpha_of(["0101", "0101"]) == 1
  random = np.random.default_rng(0)
  units = np.repeat(np.arange(3000), 3)
  counts = agreement.value_counts(units, random.integers(0, 3, units.size))
  assert abs(agreement.alpha(counts)[0]) < 0.03
  low, high = agreement.alpha_interval(counts, replicates=200)
  assert low < 0.0 < high or abs(low) < 0.03


def test_alpha_of_units_with_one_value_is_undefined():
  assert np.isnan(alpha_of(["01"]))
  counts = agreement.value_counts(np.array([0, 1]), np.array([0, 1]))
  assert all(np.isnan(agreement.alpha_interval(counts)))
