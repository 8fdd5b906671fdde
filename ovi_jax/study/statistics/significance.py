"""Sign-flip tests over prompts, and Holm's correction.

If neither of two systems is better, the mean score of a prompt (win 1, tie 0,
loss -1) is as likely as its negative. The test flips the signs of whole
prompts, so votes of one prompt need not be independent.
"""

from collections.abc import Sequence

import numpy as np

FLIPS = 9_999
_EXACT = 13  # prompts up to which all sign patterns are enumerated


def prompt_scores(wins: np.ndarray, losses: np.ndarray, total: np.ndarray):
  """[prompts] mean scores; prompts without votes are left out."""
  has = total > 0
  return (wins[has] - losses[has]) / total[has]


def sign_flip(scores: np.ndarray, seed: int = 0, flips: int = FLIPS) -> float:
  """Two-sided p-value of the mean of scores.

  Args:
    scores: [prompts] mean score of each prompt.
    seed: of the signs.
    flips: random sign patterns; up to 13 prompts have all of them instead.

  Returns:
    The p-value; 1 without prompts.
  """
  size = len(scores)
  if not size:
    return 1.0
  if size <= _EXACT:
    signs = 1 - 2 * ((np.arange(1 << size)[:, None] >> np.arange(size)) & 1)
    return float(np.mean(_as_large(signs @ scores, scores.sum())))
  random = np.random.default_rng(seed)
  signs = 1 - 2 * random.integers(0, 2, (flips, size), dtype=np.int8)
  hits = _as_large(signs.astype(np.float64) @ scores, scores.sum())
  return float((1 + hits.sum()) / (1 + flips))


def _as_large(sums: np.ndarray, observed: float) -> np.ndarray:
  # Equal sums differ by rounding.
  return np.abs(sums) >= np.abs(observed) - 1e-9


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values adjusted for their number by Holm's method."""
  order = np.argsort(p_values, kind="stable")
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
    adjusted[index] = largest
  return adjusted
