"""When sounds begin, also while others still ring.

Magnitudes in bands, every 4 ms; a sound begins where they rise above all that
was in their band shortly before. What rings, beats or glides does not. Levels
are shares of the clip's own, above its noise. float64.
"""

import itertools

import numpy as np

_HOP, _WINDOW = 0.004, 0.016  # seconds
_LOW, _BANDS_AN_OCTAVE, _BANDS = 60.0, 4, 28  # Hz
_BACK, _GAP, _AHEAD = 0.044, 0.008, 0.020  # seconds
_NEW = 0.3  # share of what sounds that is new where a sound begins
_QUIET = 0.08  # of the clip's loudest, that a sound is louder than
_SILENCE = 0.03  # magnitude, peak 1, that is no sound yet
_APART = 0.06  # seconds between two beginnings
_REST = 10  # percent of the time that a band rests
_NOISE, _MOST_NOISE = 5.0, 0.15  # times what it then has; of the loudest


def times(wave_A: np.ndarray, rate: int) -> list[float]:
  """Seconds at which sounds begin.

  Args:
    wave_A: mono, in [-1, 1].
    rate: samples a second, at least 1000.
  """
  if not len(wave_A):
    return []
  level_TB = _levels(np.asarray(wave_A, np.float64), rate)
  if level_TB.sum(axis=1).max(initial=0.0) < _SILENCE:
    return []
  back, gap, ahead = (round(s / _HOP) for s in (_BACK, _GAP, _AHEAD))
  # For each moment what was loudest before it, and is loudest after it.
  before_TB = _shift(_running_max(level_TB, back), gap)
  after_TB = _running_max(level_TB[::-1], ahead)[::-1]
  new_T = np.maximum(after_TB - before_TB, 0).sum(axis=1)
  all_T = after_TB.sum(axis=1)
  least = _QUIET * all_T.max()
  share_T = np.where(all_T > least, new_T / np.maximum(all_T, least), 0)
  found = [
    _moment(level_TB, before_TB[frame], frame) * _HOP
    for frame in _peaks(share_T * new_T, share_T > _NEW, round(_APART / _HOP))
  ]
  # Where a track ends while something rings there is a click.
  return [begin for begin in found if begin < len(wave_A) / rate - _WINDOW]


def _levels(wave_A: np.ndarray, rate: int) -> np.ndarray:
  """Magnitude above the noise in each band [T, bands], every `_HOP`."""
  hop, window = round(_HOP * rate), round(_WINDOW * rate)
  wave_A = np.pad(wave_A, window // 2)
  places = np.arange(0, len(wave_A) - window + 1, hop)
  hann = np.hanning(window + 1)[:-1]
  parts_TA = wave_A[places[:, None] + np.arange(window)[None]] * hann[None]
  power_TF = np.abs(np.fft.rfft(parts_TA, 4 * window) / hann.sum() * 2) ** 2
  edges = _LOW * 2 ** (np.arange(_BANDS + 1) / _BANDS_AN_OCTAVE)
  bins = np.searchsorted(np.fft.rfftfreq(4 * window, 1 / rate), edges)
  level_TB = np.sqrt(
    np.stack(
      [
        power_TF[:, a:b].max(axis=1)
        for a, b in itertools.pairwise(bins)
        if b > a
      ],
      axis=1,
    )
  )
  noise_B = np.percentile(level_TB, _REST, axis=0)
  loudest = level_TB.max(initial=0.0)
  # A band that never rests is no noise.
  noise_B = np.minimum(_NOISE * noise_B, _MOST_NOISE * loudest)
  return np.maximum(level_TB - noise_B[None], 0)


def _running_max(value_TB: np.ndarray, count: int) -> np.ndarray:
  """The largest of each value and the `count` before it."""
  largest = value_TB
  for back in range(1, count + 1):
    largest = np.maximum(largest, _shift(value_TB, back))
  return largest


def _shift(value_TB: np.ndarray, later: int) -> np.ndarray:
  shifted = np.zeros_like(value_TB)
  shifted[later:] = value_TB[: max(0, len(value_TB) - later)]
  return shifted


def _peaks(value_T: np.ndarray, counts_T: np.ndarray, apart: int) -> list[int]:
  """Frames of the highest values that count, at least so far apart."""
  left = np.where(counts_T, value_T, 0)
  found = []
  while left.max() > 0:
    frame = int(left.argmax())
    found.append(frame)
    left[max(0, frame - apart) : frame + apart + 1] = 0
  return sorted(found)


def _moment(level_TB: np.ndarray, before_B: np.ndarray, frame: int) -> float:
  """Where half of what is new is there, between frames."""
  first = max(0, frame - round(_AHEAD / _HOP))
  last = frame + round((_AHEAD + _WINDOW) / _HOP)
  new_T = np.maximum(level_TB[first:last] - before_B[None], 0).sum(axis=1)
  half = new_T.max() / 2
  at = int((new_T >= half).argmax())
  if not at:
    return float(first)
  return first + at - (new_T[at] - half) / (new_T[at] - new_T[at - 1])
