"""Scores of a set of clips, each with how sure it is.

A score is what is right over what there is, summed over clips. Its interval is
Wilson's where a clip is right or wrong, else bootstrapped over clips.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SIGMAS = 1.96  # of 95 %
_DRAWS = 2000


class Part(NamedTuple):
  """The contribution of one clip to a score."""

  right: float
  of: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """A score, with its 95 % interval.

  Attributes:
    name: what is scored.
    value: NaN if there is nothing to score.
    low: end of the interval.
    high: the other end.
    clips: that have something to score.
    of: what was counted in them, all together.
    unit: "%" for a share in [0, 1], or "ms".
  """

  name: str
  value: float
  low: float
  high: float
  clips: int
  of: float
  unit: str = "%"


def score(name: str, parts: Sequence[Part | None]) -> Score:
  """Sum what clips add; `None` and nothing of nothing add no clip."""
  given = [part for part in parts if part is not None and part.of > 0]
  found = _ratio(name, given, "%")
  same = found.low == found.high or all(part.of == 1 for part in given)
  if given and same:
    # Where all clips are alike, there is nothing to draw from.
    low, high = wilson(found.value * found.clips, found.clips)
    return dataclasses.replace(found, low=low, high=high)
  return found


def mean(name: str, groups: Sequence[Sequence[float]]) -> Score:
  """Mean of what clips measure in seconds, told in milliseconds."""
  parts = [Part(1000 * sum(group), len(group)) for group in groups if group]
  return _ratio(name, parts, "ms")


def _ratio(name: str, parts: Sequence[Part], unit: str) -> Score:
  """What is right over what there is, its interval bootstrapped over clips."""
  value = low = high = math.nan
  right, of = np.array(parts, np.float64).reshape(-1, 2).T
  if parts:
    value = float(right.sum() / of.sum())
    low, high = _bootstrap(right, of)
  return Score(
    name=name,
    value=value,
    low=low,
    high=high,
    clips=len(parts),
    of=float(of.sum()),
    unit=unit,
  )


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


def _bootstrap(right_N: np.ndarray, of_N: np.ndarray) -> tuple[float, float]:
  """95 % interval of a ratio of sums over clips drawn with replacement."""
  random = np.random.default_rng(0)
  resampled = random.integers(len(of_N), size=(_DRAWS, len(of_N)))
  ratios = right_N[resampled].sum(axis=1) / of_N[resampled].sum(axis=1)
  low, high = np.percentile(ratios, (2.5, 97.5))
  return float(low), float(high)


def aligned(asked: Sequence[str], given: Sequence[str]) -> int:
  """How many words are right, place by place.

  If there are more or fewer than asked for, what is too much is left out of
  the longer sequence where that makes the most of the rest right.
  """
  short, long = sorted((asked, given), key=len)
  spare = len(long) - len(short)
  # best[k]: right so far with k of the longer left out.
  best = [0] * (spare + 1)
  for place, word in enumerate(short):
    here = [best[k] + (word == long[place + k]) for k in range(spare + 1)]
    best = [max(here[: k + 1]) for k in range(spare + 1)]
  return best[-1]
