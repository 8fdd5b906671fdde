"""Confidence intervals (95 %) of scores over clips. float64.

Clips are the unit that is resampled: values within a clip are not independent.
All draws come from a seed.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SIGMAS = 1.96  # of 95 %
_PERCENT = (2.5, 97.5)
DRAWS = 2000
_ELEMENTS = 1 << 20  # resampled at once


class Interval(NamedTuple):
  """An estimate and its 95 % interval; NaN where there is nothing."""

  value: float
  low: float
  high: float


NOTHING = Interval(math.nan, math.nan, math.nan)


def wilson(right: float, of: int) -> tuple[float, float]:
  """95 % interval of a share of `of` independent trials.

  Wilson (1927), Journal of the American Statistical Association 22.
  """
  share, z2 = right / of, _SIGMAS**2
  centre = share + z2 / (2 * of)
  half = _SIGMAS * math.sqrt(share * (1 - share) / of + z2 / (4 * of**2))
  return (
    max(0.0, (centre - half) / (1 + z2 / of)),
    min(1.0, (centre + half) / (1 + z2 / of)),
  )


def bootstrap_ratio(
  right_N: np.ndarray, of_N: np.ndarray
) -> tuple[float, float]:
  """95 % interval of a ratio of sums over clips drawn with replacement."""
  random = np.random.default_rng(0)
  resampled = random.integers(len(of_N), size=(DRAWS, len(of_N)))
  ratios = right_N[resampled].sum(axis=1) / of_N[resampled].sum(axis=1)
  low, high = np.percentile(ratios, _PERCENT)
  return float(low), float(high)


def bootstrap_mean(
  value_N: np.ndarray,
  draws: int = DRAWS,
  seed: int = 0,
  groups: Sequence[str] | None = None,
  weight_N: np.ndarray | None = None,
) -> Interval:
  """Mean over clips and its percentile interval.

  Args:
    value_N: one value per clip; NaN for clips that have none.
    draws: number of resamplings.
    seed: of the resamplings.
    groups: of each clip; the value is then the mean of the groups' means, and
      clips are resampled within their groups.
    weight_N: of each clip, above 0 where it has a value; equal ones if None.
      Not with groups.
  """
  value_N = np.asarray(value_N, np.float64)
  there_N = np.isfinite(value_N)
  if not there_N.any():
    return NOTHING
  if groups is not None:
    parts = [
      value_N[there_N & (np.array(groups) == group)]
      for group in dict.fromkeys(groups)
    ]
    return _grouped([part for part in parts if len(part)], draws, seed)
  value_N, random = value_N[there_N], np.random.default_rng(seed)
  if weight_N is None:
    means = _resampled_means(value_N, draws, random)
    return _percentiles(float(value_N.mean()), means, len(value_N))
  weight_N = np.asarray(weight_N, np.float64)[there_N]
  means = _resampled_means(value_N, draws, random, weight_N)
  mean = float(np.average(value_N, weights=weight_N))
  return _percentiles(mean, means, len(value_N))


def _resampled_means(
  value_N: np.ndarray,
  draws: int,
  random: np.random.Generator,
  weight_N: np.ndarray | None = None,
) -> np.ndarray:
  """Means of clips drawn with replacement, [draws]."""
  count = len(value_N)
  # In parts: draws times clips may be large.
  size = max(1, _ELEMENTS // count)
  parts = []
  for start in range(0, draws, size):
    index = random.integers(count, size=(min(size, draws - start), count))
    weights = None if weight_N is None else weight_N[index]
    parts.append(np.average(value_N[index], axis=1, weights=weights))
  return np.concatenate(parts) if parts else np.zeros(0)


def _grouped(parts: Sequence[np.ndarray], draws: int, seed: int) -> Interval:
  """The mean of the means of groups."""
  random = np.random.default_rng(seed)
  mean = float(np.mean([part.mean() for part in parts]))
  means = np.mean([_resampled_means(p, draws, random) for p in parts], axis=0)
  return _percentiles(mean, means, max(map(len, parts)))


def _percentiles(value: float, drawn: np.ndarray, clips: int) -> Interval:
  if not len(drawn) or clips < 2:
    return Interval(value, math.nan, math.nan)
  low, high = np.percentile(drawn, _PERCENT)
  return Interval(value, float(low), float(high))


def bootstrap_statistic(
  statistic: Callable[[np.ndarray], float],
  count: int,
  draws: int,
  seed: int = 0,
) -> Interval:
  """A statistic of a set and its interval of 1.96 bootstrap standard errors.

  Statistics such as FD are biased upwards on resampled sets, which have
  repeated clips, so percentiles would lie above the value. The standard error
  does not have this bias.

  Args:
    statistic: maps indices of clips [n] to the value.
    count: number of clips.
    draws: number of resamplings; 0 or one clip give no interval.
    seed: of the resamplings.
  """
  value = float(statistic(np.arange(count)))
  if not math.isfinite(value) or draws < 2 or count < 2:
    return Interval(value, math.nan, math.nan)
  random = np.random.default_rng(seed)
  found = np.array(
    [statistic(random.integers(count, size=count)) for _ in range(draws)]
  )
  found = found[np.isfinite(found)]
  if len(found) < 2:
    return Interval(value, math.nan, math.nan)
  half = _SIGMAS * float(found.std(ddof=1))
  return Interval(value, value - half, value + half)
