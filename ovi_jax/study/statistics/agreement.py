"""Agreement between raters: Krippendorff's alpha for nominal values.

alpha = 1 - D_o / D_e, the observed disagreement within units over that expected
by chance. Units with less than two values do not count.
"""

import numpy as np

from ovi_jax.study.statistics import intervals


def value_counts(units: np.ndarray, values: np.ndarray) -> np.ndarray:
  """[units, values] how often each unit has each value.

  Args:
    units: [judgements] numbers of units.
    values: [judgements] numbers of values.
  """
  _, units = np.unique(units, return_inverse=True)
  kinds, values = np.unique(values, return_inverse=True)
  counts = np.zeros((int(units.max(initial=-1)) + 1, len(kinds)))
  np.add.at(counts, (units, values), 1)
  return counts


def alpha(counts: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
  """Krippendorff's alpha for nominal values.

  Args:
    counts: [units, values] how often each unit has each value.
    weights: [X, units] times that each unit is counted, for a bootstrap.

  Returns:
    [X], or [1] without weights; 1 for perfect agreement, 0 for chance, NaN if
    no two values can be compared or all are equal.
  """
  judged = counts.sum(1)
  counts, judged = counts[judged > 1], judged[judged > 1]
  if weights is None:
    weights = np.ones((1, len(counts)))
  within = (counts * (judged[:, None] - counts)).sum(1) / (judged - 1)
  values = weights @ counts
  total = values.sum(1)
  expected = (values * (total[:, None] - values)).sum(1)
  with np.errstate(invalid="ignore", divide="ignore"):
    return 1 - (weights @ within) * (total - 1) / expected


def alpha_interval(
  counts: np.ndarray, seed: int = 0, replicates: int = intervals.REPLICATES
) -> tuple[float, float]:
  """The 95 % percentile interval of alpha, by bootstrap over units."""
  counts = counts[counts.sum(1) > 1]
  size = len(counts)
  if size < 2:
    return float("nan"), float("nan")
  random = np.random.default_rng(seed)
  drawn = random.multinomial(size, np.full(size, 1 / size), replicates)
  found = alpha(counts, drawn.astype(np.float64))
  found = found[np.isfinite(found)]
  if not found.size:
    return float("nan"), float("nan")
  tail = 100 * (1 - intervals.LEVEL) / 2
  low, high = np.percentile(found, [tail, 100 - tail])
  return float(low), float(high)
