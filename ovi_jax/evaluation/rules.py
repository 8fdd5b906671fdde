"""Rules: from features to the value of a clip or of a set. float64.

A rule of clips maps the features of one clip (and of its counterpart in the
reference) to a number, NaN where it cannot be measured; it raises ValueError if
features have another form than it expects. A rule of sets maps the features of
all clips, and those of the reference set, to a number; see `distributions`.
Protocols name rules and their parameters.
"""

import math
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from ovi_jax.evaluation import distributions
from ovi_jax.evaluation import features
from ovi_jax.evaluation import matching
from ovi_jax.evaluation import word_errors

MAX_LAG = 1.5  # seconds
_MIN_OVERLAP = 0.5  # share of the clip
_ENVELOPE_STEP = 0.01  # seconds, of `sound.envelope_T`

# Features of the clip, of its reference (None without) and parameters.
ClipRule = Callable[..., float]


def value(
  clip: features.Arrays, reference: features.Arrays | None, *, array: str
) -> float:
  """A feature that is a number."""
  del reference
  number = features.numbers(clip, array, 0)
  return math.nan if number is None else float(number)


def av_align(
  clip: features.Arrays, reference: features.Arrays | None, *, threshold: float
) -> float:
  """AV-Align (Yariv et al., 2023): IoU of flow peaks and sound onsets.

  A peak is a local maximum of the flow of at least the threshold; it matches an
  onset less than a frame apart, one to one.

  Returns:
    Matches over the union; NaN if there are neither peaks nor onsets.
  """
  del reference
  flow_T = features.numbers(clip, "flow.flow_T", 1)
  onset_N = features.numbers(clip, "sound.onsets", 1)
  fps = _fps(clip, "flow.fps")
  if flow_T is None or onset_N is None or fps is None:
    return math.nan
  peaks = [t / fps for t in local_maxima(flow_T, threshold)]
  onsets = [float(t) for t in onset_N]
  tolerance = float(np.nextafter(1 / fps, 0))
  both = len(matching.match(peaks, onsets, tolerance))
  either = len(peaks) + len(onsets) - both
  return both / either if either else math.nan


def _fps(clip: features.Arrays, name: str) -> float | None:
  """A frame rate of a clip."""
  fps = features.numbers(clip, name, 0)
  if fps is not None and not fps > 0:
    raise ValueError(f"{name}: expected a rate above 0, found {fps:g}")
  return None if fps is None else float(fps)


def local_maxima(value_T: np.ndarray, threshold: float) -> list[int]:
  """Places above both neighbours and not below the threshold."""
  value_T = np.asarray(value_T, np.float64)
  middle = value_T[1:-1]
  higher = (middle > value_T[:-2]) & (middle > value_T[2:])
  return [int(t) + 1 for t in np.flatnonzero(higher & (middle >= threshold))]


def envelope_lag(
  clip: features.Arrays, reference: features.Arrays | None
) -> float:
  """Seconds between motion and sound where they correlate best, unsigned."""
  del reference
  found = _correlations(clip)
  if found is None:
    return math.nan
  lag_L, correlation_L, fps = found
  # Of equal maxima the smallest lag.
  best = np.lexsort((np.abs(lag_L), -correlation_L))[0]
  return abs(float(lag_L[best])) / fps


def envelope_correlation(
  clip: features.Arrays, reference: features.Arrays | None
) -> float:
  """Correlation of motion and loudness of sound over time, without a lag."""
  del reference
  found = _correlations(clip)
  if found is None:
    return math.nan
  lag_L, correlation_L, _ = found
  at_zero = correlation_L[lag_L == 0]
  return float(at_zero[0]) if len(at_zero) else math.nan


def _correlations(
  clip: features.Arrays,
) -> tuple[np.ndarray, np.ndarray, float] | None:
  """Lags in frames, correlations where both vary, and the frame rate.

  None if they never vary.

  At a positive lag the sound is late.
  """
  motion_T = features.numbers(clip, "picture.motion_T", 1)
  envelope = features.numbers(clip, "sound.envelope_T", 1)
  fps = _fps(clip, "picture.fps")
  if motion_T is None or envelope is None or fps is None:
    return None
  times = np.arange(len(motion_T)) / fps
  seconds = np.arange(len(envelope)) * _ENVELOPE_STEP
  if len(motion_T) < 3 or not len(envelope):
    return None
  level_T = np.interp(times, seconds, envelope)
  # The first frame has no difference from one before.
  motion_T, level_T = motion_T[1:], level_T[1:]
  count = len(motion_T)
  most = min(round(MAX_LAG * fps), math.floor(count * (1 - _MIN_OVERLAP)))
  lags, found = [], []
  for lag in range(-most, most + 1):
    motion = motion_T[max(0, -lag) : count - max(0, lag)]
    level = level_T[max(0, lag) : count - max(0, -lag)]
    if motion.std() > 1e-9 and level.std() > 1e-9:
      lags.append(lag)
      found.append(float(np.corrcoef(motion, level)[0, 1]))
  return (np.array(lags), np.array(found), fps) if lags else None


def difference(
  clip: features.Arrays,
  reference: features.Arrays | None,
  *,
  first: str,
  second: str,
) -> float:
  """Absolute difference of two features of a clip."""
  del reference
  one, two = (features.numbers(clip, name, 0) for name in (first, second))
  if one is None or two is None:
    return math.nan
  return abs(float(one) - float(two))


def cosine(
  clip: features.Arrays,
  reference: features.Arrays | None,
  *,
  first: str,
  second: str,
  of_reference: bool = False,
) -> float:
  """Cosine of two features.

  Args:
    clip: features of the clip.
    reference: features of the clip of the same name in the reference.
    first: name of an array of the clip.
    second: name of the other array.
    of_reference: take the second array of the reference.
  """
  other = reference if of_reference else clip
  one = _vector(clip, first)
  two = None if other is None else _vector(other, second)
  if one is None or two is None:
    return math.nan
  if one.shape != two.shape:
    raise ValueError(
      f"{first} and {second}: expected one width, found {one.size} and"
      f" {two.size}"
    )
  lengths = np.linalg.norm(one) * np.linalg.norm(two)
  return float(one @ two / lengths) if lengths > 0 else math.nan


def _vector(clip: features.Arrays, name: str) -> np.ndarray | None:
  """A list of numbers, that may be a single row."""
  if name in clip and np.ndim(clip[name]) == 2 and len(clip[name]) == 1:
    clip = {name: clip[name][0]}
  return features.numbers(clip, name, 1)


def mean_of(
  clip: features.Arrays,
  reference: features.Arrays | None,
  *,
  array: str,
  signed: bool = False,
) -> float:
  """Mean of a list of numbers, unsigned unless `signed`."""
  del reference
  numbers = _vector(clip, array)
  if numbers is None or not numbers.size:
    return math.nan
  return float((numbers if signed else np.abs(numbers)).mean())


def lowest_mean(
  clip: features.Arrays,
  reference: features.Arrays | None,
  *,
  array: str,
  share: float,
) -> float:
  """Mean of the lowest numbers of a list, a share of it rounded down.

  At least one number counts.
  """
  del reference
  numbers = _vector(clip, array)
  if numbers is None or not numbers.size:
    return math.nan
  numbers = np.sort(numbers)
  return float(numbers[: max(1, int(share * len(numbers)))].mean())


def consistency(
  clip: features.Arrays, reference: features.Arrays | None, *, array: str
) -> float:
  """Mean over frames of (cos(f_i, f_i-1) + cos(f_i, f_0)) / 2.

  Negative cosines count as 0.
  """
  del reference
  frame_TD = features.numbers(clip, array, 2)
  if frame_TD is None or len(frame_TD) < 2:
    return math.nan
  length_T1 = np.linalg.norm(frame_TD, axis=1, keepdims=True)
  frame_TD = frame_TD / np.maximum(length_T1, np.finfo(np.float64).tiny)
  before_T = (frame_TD[1:] * frame_TD[:-1]).sum(axis=1)
  first_T = frame_TD[1:] @ frame_TD[0]
  return float(((np.maximum(before_T, 0) + np.maximum(first_T, 0)) / 2).mean())


CLIP_RULES: Mapping[str, ClipRule] = {
  "value": value,
  "difference": difference,
  "cosine": cosine,
  "kl": distributions.kl,
  "wer": word_errors.word_error_rate,
  "mean_of": mean_of,
  "lowest_mean": lowest_mean,
  "consistency": consistency,
  "av_align": av_align,
  "envelope_lag": envelope_lag,
  "envelope_correlation": envelope_correlation,
}
SET_RULES: Mapping[str, Callable[..., distributions.Statistic]] = {
  **distributions.RULES,
}
