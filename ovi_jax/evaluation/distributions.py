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
  found = []
  for clip in clips:
    if array in clip:
      rows = features.numbers({array: np.atleast_2d(clip[array])}, array, 2)
      assert rows is not None
      found.append(rows)
  if not found:
    raise ValueError(f"no clip has {array}")
  widths = sorted({rows.shape[1] for rows in found})
  if len(widths) > 1 or not widths[0]:
    raise ValueError(f"{array}: expected rows of one width, found {widths}")
  if not all(np.isfinite(rows).all() for rows in found):
    raise ValueError(f"{array}: expected finite numbers, found NaN or infinity")
  return found


def _against(
  reference: Clips | None, array: str, rows: Sequence[np.ndarray]
) -> np.ndarray:
  """The rows of the reference [M, D], as wide as those of the clips."""
  if reference is None:
    raise ValueError(NO_REFERENCE)
  other = np.concatenate(_rows(reference, array))
  width = rows[0].shape[1]
  if other.shape[1] != width:
    raise ValueError(
      f"{array}: expected rows of one width, found {width} and"
      f" {other.shape[1]} of the reference"
    )
  return other


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
  rows = _rows(clips, array)
  other = _against(reference, array, rows)
  count, width = sum(map(len, rows)), other.shape[1]
  true = _gaussian(other)

  def value(index: np.ndarray) -> float:
    return _distance(_gaussian(np.concatenate([rows[i] for i in index])), true)

  return Statistic(value, _few(count, len(other), width))


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
  """FD of features [n, D] and [m, D]; NaN with less than two rows."""
  return _distance(_gaussian(one), _gaussian(other))


class _Gaussian(NamedTuple):
  """A fitted Gaussian.

  Attributes:
    mean: [D].
    root: R [at most D, D] with R^T R the covariance.
    trace: of the covariance.
  """

  mean: np.ndarray
  root: np.ndarray
  trace: float


def _gaussian(rows_ND: np.ndarray) -> _Gaussian | None:
  """Of features; None of less than two rows."""
  rows_ND = np.asarray(rows_ND, np.float64)
  count, width = rows_ND.shape
  if count < 2:
    return None
  mean = rows_ND.mean(axis=0)
  root = (rows_ND - mean) / math.sqrt(count - 1)
  trace = float(np.square(root).sum())
  if count > width:
    # Q has orthonormal columns: A B^T has the singular values of Ra Rb^T.
    root = np.asarray(np.linalg.qr(root, mode="r"))
  return _Gaussian(mean, root, trace)


def _distance(one: _Gaussian | None, other: _Gaussian | None) -> float:
  if one is None or other is None:
    return math.nan
  roots = np.linalg.svd(one.root @ other.root.T, compute_uv=False)
  squared = float(np.square(one.mean - other.mean).sum())
  return squared + one.trace + other.trace - 2 * float(roots.sum())


def kid(clips: Clips, reference: Clips | None, *, array: str) -> Statistic:
  """Kernel distance from the reference, of all pairs (no subsets).

  Args and errors are those of `fd`.
  """
  rows = _rows(clips, array)
  other = _against(reference, array, rows)
  own = _within(other)

  def value(index: np.ndarray) -> float:
    one = np.concatenate([rows[i] for i in index])
    return _within(one) + own - 2 * _between(one, other)

  return Statistic(value)


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
  """Unbiased squared MMD; NaN with less than two rows."""
  one, other = (np.asarray(x, np.float64) for x in (one, other))
  return _within(one) + _within(other) - 2 * _between(one, other)


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  return (one @ other.T / one.shape[1] + 1) ** 3


def _within(rows: np.ndarray) -> float:
  """Mean kernel of two different rows; NaN with less than two."""
  if len(rows) < 2:
    return math.nan
  own = _kernel(rows, rows)
  return float((own.sum() - np.trace(own)) / (len(rows) * (len(rows) - 1)))


def _between(one: np.ndarray, other: np.ndarray) -> float:
  return float(_kernel(one, other).mean())


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
  rows = _rows(clips, array)
  if any(len(each) != 1 for each in rows):
    raise ValueError(f"{array}: expected one row for each clip, found several")
  logits = np.concatenate(rows)
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
  rows, other = _rows([clip], array), _rows([reference], array)
  if rows[0].shape != other[0].shape or len(rows[0]) != 1:
    raise ValueError(
      f"{array}: expected one row of one width, found {rows[0].shape} and"
      f" {other[0].shape} of the reference"
    )
  log_q, log_p = log_softmax(rows[0][0]), log_softmax(other[0][0])
  return float((np.exp(log_p) * (log_p - log_q)).sum())


RULES: Mapping[str, Callable[..., Statistic]] = {
  "fd": fd,
  "kid": kid,
  "is": inception_score,
}
