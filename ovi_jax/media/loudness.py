"""Integrated loudness of mono sound (ITU-R BS.1770-4).

K-weighting, mean squares of blocks of 400 ms every 100 ms, an absolute gate at
-70 LUFS and a relative one 10 LU below the mean of what passes it. float64.
"""

import math

import numpy as np
from scipy import signal

MAX_GAIN = 30.0  # dB
_PEAK = 10 ** (-1 / 20)
_ABSOLUTE, _RELATIVE = -70.0, -10.0
_OFFSET = -0.691


def integrated(wave_A: np.ndarray, rate: int) -> float:
  """The integrated loudness of a sound.

  Args:
    wave_A: mono, in [-1, 1]; shorter ones than 400 ms count as one block.
    rate: samples a second.

  Returns:
    LUFS; minus infinity if all of it is below the absolute gate.
  """
  weighted_A = np.asarray(wave_A, np.float64)
  for numerator, denominator in _k_weighting(rate):
    weighted_A = signal.lfilter(numerator, denominator, weighted_A)
  block, hop = round(0.4 * rate), round(0.1 * rate)
  energy = np.concatenate([[0.0], np.cumsum(weighted_A**2)])
  starts = np.arange(0, max(1, wave_A.size - block + 1), hop)
  ends = np.minimum(starts + block, wave_A.size)
  power = (energy[ends] - energy[starts]) / np.maximum(ends - starts, 1)
  power = power[_level(power) > _ABSOLUTE]
  if not power.size:
    return -math.inf
  power = power[_level(power) > _level(power.mean()) + _RELATIVE]
  return float(_level(power.mean()))


def normalize(wave_A: np.ndarray, rate: int, target: float) -> np.ndarray:
  """Scale a sound to a loudness.

  Args:
    wave_A: mono, in [-1, 1].
    rate: samples a second.
    target: LUFS.

  Returns:
    The wave, float32. The gain is at most 30 dB and leaves peaks at -1 dB of
    full scale; silence is returned as it is.
  """
  found = integrated(wave_A, rate)
  if not math.isfinite(found):
    return np.asarray(wave_A, np.float32)
  gain = 10 ** (min(target - found, MAX_GAIN) / 20)
  peak = float(np.abs(wave_A).max())
  return np.asarray(wave_A * min(gain, _PEAK / peak), np.float32)


def _level(power: np.ndarray) -> np.ndarray:
  with np.errstate(divide="ignore"):
    return _OFFSET + 10 * np.log10(power)


def _k_weighting(rate: int) -> list[tuple[list[float], list[float]]]:
  """Both filters, their analog prototypes transformed for a sample rate."""
  # High shelf: +4 dB above 1.68 kHz.
  k = math.tan(math.pi * 1681.974450955533 / rate)
  q, gain = 0.7071752369554196, 10 ** (3.999843853973347 / 20)
  middle = gain**0.4996667741545416
  scale = 1 + k / q + k * k
  shelf = (
    [
      (gain + middle * k / q + k * k) / scale,
      2 * (k * k - gain) / scale,
      (gain - middle * k / q + k * k) / scale,
    ],
    [1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale],
  )
  # High pass at 38 Hz.
  k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
  scale = 1 + k / q + k * k
  high_pass = (
    [1.0, -2.0, 1.0],
    [1.0, 2 * (k * k - 1) / scale, (1 - k / q + k * k) / scale],
  )
  return [shelf, high_pass]
