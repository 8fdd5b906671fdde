"""Distances between sets of features: FD, KID, KL and IS. float64.

FD is the Fréchet distance of two Gaussians,

  |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2),

with unbiased covariances S. With centred features A [n, D] and B [m, D] the
last trace is the nuclear norm of A B^T / sqrt((n - 1)(m - 1)), so no matrix
square root is needed and the value is exact also for fewer clips than features.
FD and IS are biased by the number of clips: sets of different sizes cannot be
compared. KID, the squared MMD of the kernel (x y / D + 1)^3, is unbiased.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ovi_jax.evaluation import features

NO_REFERENCE = "needs a reference: --reference=DIR"
_SPLIT_SEED = 2020  # of IS, as in torch-fidelity and what descends from it


class Statistic(NamedTuple):
  """A statistic of a set of clips.

  Attributes:
    value: maps indices of clips, which may repeat, to the value.
    warnings: what limits it.
  """

  value: Callable[[np.ndarray], float]
  warnings: tuple[str, ...] = ()


Clips = Sequence[features.Arrays]


def _rows(clips: Clips, array: str) -> list[np.ndarray]:
  """The rows of each clip, float64 [rows, D]; a clip may have several."""
  found = [
    np.atleast_2d(np.asarray(clip[array], np.float64))
    for clip in clips
    if array in clip
  ]
  if not found:
    raise ValueError(f"no clip has {array}")
  widths = {rows.shape[1:] for rows in found}
  if len(widths) > 1 or found[0].ndim != 2:
    raise ValueError(f"{array}: expected rows of one width, found {widths}")
  return found


def _against(reference: Clips | None, array: str) -> np.ndarray:
  if reference is None:
    raise ValueError(NO_REFERENCE)
  return np.concatenate(_rows(reference, array))


def _few(count: int, other: int, width: int) -> tuple[str, ...]:
  least = min(count, other)
  if least > width:
    return ()
  return (
    f"{least} rows for {width} features: biased upwards, compare only sets of"
    " this size",
  )


def fd(clips: Clips, reference: Clips | None, *, array: str) -> Statistic:
  """Fréchet distance from the reference.

  Args:
    clips: with features [D] or [rows, D] under `array`.
    reference: likewise.
    array: name of the features.

  Raises:
    ValueError: there is no reference, or no features.
  """
  rows, other = _rows(clips, array), _against(reference, array)
  count, width = sum(map(len, rows)), other.shape[1]

  def value(index: np.ndarray) -> float:
    return frechet_distance(np.concatenate([rows[i] for i in index]), other)

  return Statistic(value, _few(count, len(other), width))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
  """FD of features [n, D] and [m, D]; NaN with less than two rows."""
  one, other = (np.asarray(x, np.float64) for x in (one, other))
  if min(len(one), len(other)) < 2:
    return math.nan
  mean, mean_other = one.mean(axis=0), other.mean(axis=0)
  centred = (one - mean) / math.sqrt(len(one) - 1)
  centred_other = (other - mean_other) / math.sqrt(len(other) - 1)
  root = np.linalg.svd(_small(centred, centred_other), compute_uv=False).sum()
  return float(
    np.square(mean - mean_other).sum()
    + np.square(centred).sum()
    + np.square(centred_other).sum()
    - 2 * root
  )


def _small(one_ND: np.ndarray, other_MD: np.ndarray) -> np.ndarray:
  """A matrix of the singular values of A B^T, of at most D rows and columns."""
  sides = []
  for side in (one_ND, other_MD):
    # Q has orthonormal columns: A B^T has the singular values of Ra Rb^T.
    tall = len(side) > side.shape[1]
    sides.append(np.linalg.qr(side, mode="r") if tall else side)
  return sides[0] @ sides[1].T


def kid(clips: Clips, reference: Clips | None, *, array: str) -> Statistic:
  """Kernel distance from the reference, of all pairs (no subsets).

  Args and errors are those of `fd`.
  """
  rows, other = _rows(clips, array), _against(reference, array)

  def value(index: np.ndarray) -> float:
    return kernel_distance(np.concatenate([rows[i] for i in index]), other)

  return Statistic(value)


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
  """Unbiased squared MMD; NaN with less than two rows."""
  one, other = (np.asarray(x, np.float64) for x in (one, other))
  n, m = len(one), len(other)
  if min(n, m) < 2:
    return math.nan

  def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3

  def within(a: np.ndarray) -> float:
    own = kernel(a, a)
    return float((own.sum() - np.trace(own)) / (len(a) * (len(a) - 1)))

  return within(one) + within(other) - 2 * float(kernel(one, other).mean())


def inception_score(
  clips: Clips,
  reference: Clips | None,
  *,
  array: str,
  splits: int = 1,
  shuffle: bool = True,
) -> Statistic:
  """Inception score: mean over splits of exp(mean KL(p | mean p)).

  Args:
    clips: with logits [classes] under `array`.
    reference: ignored.
    array: name of the logits.
    splits: parts of the set, each with its own mean.
    shuffle: permute the set first, by `RandomState(2020)`.
  """
  del reference
  logits = np.concatenate(_rows(clips, array))
  warnings: tuple[str, ...] = ()
  if len(logits) < 10 * splits:
    warnings = (f"{len(logits)} clips in {splits} splits: biased downwards",)

  def value(index: np.ndarray) -> float:
    return split_scores(logits[index], splits, shuffle)

  return Statistic(value, warnings)


def split_scores(logits: np.ndarray, splits: int, shuffle: bool) -> float:
  """The score; NaN with fewer clips than splits."""
  if len(logits) < splits or splits < 1:
    return math.nan
  log_p = log_softmax(logits)
  if shuffle:
    log_p = log_p[np.random.RandomState(_SPLIT_SEED).permutation(len(log_p))]
  count, found = len(log_p), []
  for number in range(splits):
    part = log_p[number * count // splits : (number + 1) * count // splits]
    p = np.exp(part)
    mean = p.mean(axis=0, keepdims=True)
    with np.errstate(divide="ignore"):
      log_mean = np.log(mean)
    gain = np.where(p > 0, p * (part - log_mean), 0.0).sum(axis=1)
    found.append(math.exp(gain.mean()))
  return float(np.mean(found))


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Over the last axis, float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def kl(
  clip: features.Arrays, reference: features.Arrays | None, *, array: str
) -> float:
  """KL(reference | clip) of the softmax of logits; a rule of clips.

  Args:
    clip: with logits [classes] under `array`.
    reference: the clip of the same name.
    array: name of the logits.
  """
  if reference is None or array not in clip or array not in reference:
    return math.nan
  log_q, log_p = (
    log_softmax(np.ravel(each[array])) for each in (clip, reference)
  )
  if log_q.shape != log_p.shape:
    return math.nan
  return float((np.exp(log_p) * (log_p - log_q)).sum())


RULES: Mapping[str, Callable[..., Statistic]] = {
  "fd": fd,
  "kid": kid,
  "is": inception_score,
}
