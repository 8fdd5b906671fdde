"""Bootstrap intervals over prompts, over raters, and over both.

Votes of one prompt, and of one rater, are correlated, so votes are never
resampled alone. A bootstrap over prompts treats raters as fixed, and one over
raters prompts. The interval over both uses the variance for two-way clusters,

  V = V(prompts) + V(raters) - V(votes),

and at least V(votes), with the first two corrected for their number of
clusters, and Student's t with the smaller number of clusters less one. Where
all votes agree, replicates do not vary and say nothing of the precision: there
is no interval.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import special

from ovi_jax.study.statistics import votes as votes_lib

LEVEL = 0.95
REPLICATES = 1000
_NO_VARIANCE = 1e-18
# From counts_XEO to [X, estimates].
Estimator = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
  """Estimates with their intervals.

  Attributes:
    value: [estimates].
    over_prompts: [estimates, 2] percentiles of the bootstrap over prompts.
    over_raters: likewise over raters.
    two_way: [estimates, 2] over both.
  """

  value: np.ndarray
  over_prompts: np.ndarray
  over_raters: np.ndarray
  two_way: np.ndarray


def bootstrap(
  votes: votes_lib.Votes,
  estimator: Estimator,
  seed: int = 0,
  replicates: int = REPLICATES,
) -> Intervals:
  """Estimates of votes and their 95 % intervals.

  Args:
    votes: at least one.
    estimator: from counts_XEO to [X, estimates].
    seed: of the bootstrap.
    replicates: of each bootstrap.

  Returns:
    The intervals; NaN over prompts or raters if there is only one, or if
    replicates do not vary.
  """
  random = np.random.default_rng(seed)
  value = estimator(votes.counts())[0]
  found, variances, sizes = [], [], []
  for group in (votes.prompt, votes.rater):
    counts = votes.counts_by(group)
    size = len(counts)
    drawn = random.multinomial(size, np.full(size, 1 / size), replicates)
    estimates = estimator((drawn @ counts).reshape(replicates, -1, 3))
    found.append(_percentiles(estimates) if size > 1 else _nothing(value))
    variances.append(_variance(estimates) * size / max(1, size - 1))
    sizes.append(size)
  total = votes.counts().reshape(-1)
  drawn = random.multinomial(len(votes), total / total.sum(), replicates)
  alone = _variance(
    estimator(drawn.reshape(replicates, -1, 3).astype(np.float64))
  )
  both = np.maximum(alone, variances[0] + variances[1] - alone)
  freedom = min(sizes) - 1
  two_way = _nothing(value)
  if freedom:
    # Not exactly 0, by rounding in the fit.
    both = np.where(both > _NO_VARIANCE, both, np.nan)
    margin = special.stdtrit(freedom, 0.5 + LEVEL / 2) * np.sqrt(both)
    two_way = np.stack([value - margin, value + margin], -1)
  return Intervals(
    value=value,
    over_prompts=found[0],
    over_raters=found[1],
    two_way=two_way,
  )


def _percentiles(estimates: np.ndarray) -> np.ndarray:
  """[estimates, 2]; replicates without an estimate are left out."""
  tail = 100 * (1 - LEVEL) / 2
  columns = [column[np.isfinite(column)] for column in estimates.T]
  return np.array(
    [
      np.percentile(c, [tail, 100 - tail])
      if c.size and c.var() > _NO_VARIANCE
      else [np.nan, np.nan]
      for c in columns
    ]
  ).reshape(-1, 2)


def _variance(estimates: np.ndarray) -> np.ndarray:
  columns = [column[np.isfinite(column)] for column in estimates.T]
  return np.array([c.var() if c.size else np.nan for c in columns])


def _nothing(value: np.ndarray) -> np.ndarray:
  return np.full((len(value), 2), np.nan)


def wilson(successes: float, trials: float) -> tuple[float, float]:
  """The 95 % Wilson interval of a share; NaN without trials."""
  if not trials:
    return np.nan, np.nan
  z = special.ndtri(0.5 + LEVEL / 2)
  share = successes / trials
  middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
  half = (
    z
    * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    / (1 + z * z / trials)
  )
  return float(max(0.0, middle - half)), float(min(1.0, middle + half))
