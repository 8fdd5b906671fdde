"""Scores of a set of clips, each with how sure it is.

A score is what is right over what there is, summed over clips. Its interval is
Wilson's where a clip is right or wrong, else bootstrapped over clips.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ovi_jax.evaluation import intervals


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
    low, high = intervals.wilson(found.value * found.clips, found.clips)
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
    low, high = intervals.bootstrap_ratio(right, of)
  return Score(
    name=name,
    value=value,
    low=low,
    high=high,
    clips=len(parts),
    of=float(of.sum()),
    unit=unit,
  )


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
