"""Integrated loudness of a sound (ITU-R BS.1770-4).

K-weighting, mean squares of blocks of 400 ms every 100 ms, an absolute gate at
-70 LUFS and a relative one 10 LU below the mean of what passes it. float64.
"""

import math

import numpy as np
from scipy import signal

_ABSOLUTE, _RELATIVE = -70.0, -10.0
_OFFSET = -0.691


def integrated(wave_CA: np.ndarray, rate: int) -> float:
  """Integrated loudness.

  Args:
    wave_CA: one or two channels, in [-1, 1].
    rate: samples a second.

  Returns:
    LUFS; minus infinity if no block of 0.4 s is above -70 LUFS, also for
    sounds shorter than a block.
  """
  weighted_CA = np.asarray(wave_CA, np.float64)
  for numerator, denominator in _k_weighting(rate):
    weighted_CA = np.asarray(
      signal.lfilter(numerator, denominator, weighted_CA)
    )
  block, hop = round(0.4 * rate), round(0.1 * rate)
  energy = np.cumsum((weighted_CA**2).sum(0))
  energy = np.concatenate([[0.0], energy])
  starts = np.arange(0, energy.size - block, hop)
  power = (energy[starts + block] - energy[starts]) / block
  power = power[_level(power) > _ABSOLUTE]
  if not power.size:
    return -math.inf
  power = power[_level(power) > _level(power.mean()) + _RELATIVE]
  return float(_level(power.mean()))


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
