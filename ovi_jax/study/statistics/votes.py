"""Votes as columns, and their counts by cell.

A cell is an ordered pair of systems (left, right) and a choice. All estimates
are functions of the counts of cells, so that bootstrap replicates are counts
with another leading axis: counts_XEO with X replicates, E ordered pairs and the
three outcomes O (left, right, equal).
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

LEFT, RIGHT, EQUAL = 0, 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Votes:
  """Answers to one question, without those that could not judge.

  Attributes:
    systems: names, numbered from 0.
    prompt: [votes] number of the prompt.
    rater: [votes] number of the rater.
    left: [votes] number of the system on the left.
    right: [votes] likewise.
    choice: [votes] LEFT, RIGHT or EQUAL.
  """

  systems: tuple[str, ...]
  prompt: np.ndarray
  rater: np.ndarray
  left: np.ndarray
  right: np.ndarray
  choice: np.ndarray

  def __len__(self) -> int:
    return len(self.choice)

  def of(self, keep: np.ndarray) -> "Votes":
    """Some of the votes, by a mask or by their numbers."""
    columns = ("prompt", "rater", "left", "right", "choice")
    return dataclasses.replace(
      self, **{name: getattr(self, name)[keep] for name in columns}
    )

  @functools.cached_property
  def ordered_pairs(self) -> np.ndarray:
    """[E, 2] ordered pairs (left, right) that have votes."""
    both = np.stack([self.left, self.right], 1)
    return np.unique(both, axis=0).reshape(-1, 2)

  @functools.cached_property
  def pairs(self) -> list[tuple[int, int]]:
    """Pairs of systems that have votes, the smaller number first."""
    found = np.unique(np.sort(self.ordered_pairs, 1), axis=0).reshape(-1, 2)
    return [(int(i), int(j)) for i, j in found]

  @functools.cached_property
  def cell(self) -> np.ndarray:
    """[votes] number of the cell: ordered pair times 3 plus choice."""
    size = len(self.systems)
    codes = self.ordered_pairs[:, 0] * size + self.ordered_pairs[:, 1]
    return 3 * np.searchsorted(codes, self.left * size + self.right) + (
      self.choice
    )

  def counts_by(self, group: np.ndarray) -> np.ndarray:
    """[groups, cells] votes of each group and cell.

    Args:
      group: [votes] numbers, such as `prompt`.
    """
    _, group = np.unique(group, return_inverse=True)
    cells = 3 * len(self.ordered_pairs)
    size = (int(group.max()) + 1 if group.size else 0) * cells
    flat = np.bincount(group * cells + self.cell, minlength=size)
    return flat.reshape(-1, cells).astype(np.float64)

  def counts(self) -> np.ndarray:
    """counts_1EO of all votes."""
    cells = 3 * len(self.ordered_pairs)
    return (
      np.bincount(self.cell, minlength=cells)
      .astype(np.float64)
      .reshape(1, -1, 3)
    )


def make(
  systems: Sequence[str],
  rows: Sequence[tuple[int, int, int, int, int]],
) -> Votes:
  """Votes from rows of prompt, rater, left, right and choice."""
  columns = np.array(rows, np.int64).reshape(-1, 5)
  prompt, rater, left, right, choice = columns.T
  return Votes(
    systems=tuple(systems),
    prompt=prompt,
    rater=rater,
    left=left,
    right=right,
    choice=choice,
  )


def outcomes(
  counts_XEO: np.ndarray, ordered: np.ndarray, pair: tuple[int, int]
) -> np.ndarray:
  """Wins of the first system, of the second, and ties.

  Args:
    counts_XEO: votes by ordered pair and choice.
    ordered: [E, 2] ordered pairs.
    pair: of systems.

  Returns:
    [X, 3].
  """
  first, second = pair
  forward = (ordered[:, 0] == first) & (ordered[:, 1] == second)
  backward = (ordered[:, 0] == second) & (ordered[:, 1] == first)
  ahead = counts_XEO[:, forward].sum(1)
  behind = counts_XEO[:, backward].sum(1)
  return ahead + behind[:, [RIGHT, LEFT, EQUAL]]


def win_rates(outcomes_XO: np.ndarray) -> np.ndarray:
  """Pairwise win rates.

  Args:
    outcomes_XO: wins, losses and ties.

  Returns:
    [X, 3]: (W + T/2) / N, W / (W + L), (W - L) / N; NaN where N or W + L is 0.
  """
  win, loss, tie = outcomes_XO.T
  total = win + loss + tie
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.stack(
      [(win + tie / 2) / total, win / (win + loss), (win - loss) / total], -1
    )
