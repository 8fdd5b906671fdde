"""Integrated loudness of a sound by ITU-R BS.1770-4, in LUFS. float64.

Channels are K-weighted (a high shelf and a high pass, whose analog prototypes
are sampled at the sound's own rate), their powers are weighted and added in
blocks of 0.4 s every 0.1 s, and blocks below an absolute gate of -70 LUFS and a
relative gate 10 LU below the mean of the others are left out.
"""

import math

import numpy as np
from etils import epy

# SciPy takes a second to import; few programs reach what needs it.
with epy.lazy_imports():
  from scipy import signal

_BLOCK, _HOP = 0.4, 0.1  # seconds
_ABSOLUTE, _RELATIVE = -70.0, -10.0  # LUFS, LU
_OFFSET = -0.691  # dB: a sine of 997 Hz, full scale, in one channel is -3.01
# L, R, C, LFE and two surrounds.
_CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 0.0, 1.41, 1.41)
# Analog prototypes that give the coefficients of the standard at 48 kHz.
_SHELF_HZ, _SHELF_Q = 1681.974450955533, 0.7071752369554196
_SHELF_DB = 3.999843853973347
_PASS_HZ, _PASS_Q = 38.13547087602444, 0.5003270373238773
_SHELF_POWER = 0.4996667741545416


def integrated(wave_CA: np.ndarray, rate: int) -> float:
  """Integrated loudness.

  Args:
    wave_CA: channels in the order L, R, C, LFE, Ls, Rs; in [-1, 1].
    rate: samples a second.

  Returns:
    LUFS; minus infinity if no block of 0.4 s is above -70 LUFS, also for
    sounds shorter than a block.

  Raises:
    ValueError: not one to six channels.
  """
  wave_CA = np.asarray(wave_CA, np.float64)
  if wave_CA.ndim != 2 or not 1 <= len(wave_CA) <= len(_CHANNEL_WEIGHTS):
    raise ValueError(
      f"expected sound of 1 to {len(_CHANNEL_WEIGHTS)} channels, got shape"
      f" {list(wave_CA.shape)}"
    )
  power_T = _block_powers(wave_CA, rate)
  power_T = power_T[_lufs(power_T) > _ABSOLUTE]
  if not power_T.size:
    return -math.inf
  gate = float(_lufs(power_T.mean())) + _RELATIVE
  return float(_lufs(power_T[_lufs(power_T) > gate].mean()))


def _lufs(power: np.ndarray | float) -> np.ndarray:
  return _OFFSET + 10 * np.log10(np.maximum(power, 1e-30))


def _block_powers(wave_CA: np.ndarray, rate: int) -> np.ndarray:
  """Weighted sum of the channels' mean squares in each block."""
  weighted_CA = wave_CA
  for numerator, denominator in k_weighting(rate):
    weighted_CA = signal.lfilter(numerator, denominator, weighted_CA, axis=1)
  weights = np.array(_CHANNEL_WEIGHTS[: len(wave_CA)])
  square_A = weights @ np.square(np.asarray(weighted_CA))
  total_A = np.concatenate([[0.0], np.cumsum(square_A)])
  size = round(_BLOCK * rate)
  count = 1 + math.floor((square_A.size - size) / (_HOP * rate) + 1e-9)
  starts = np.round(np.arange(max(0, count)) * _HOP * rate).astype(int)
  return (total_A[starts + size] - total_A[starts]) / size


def k_weighting(rate: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Numerator and denominator of the shelf and of the high pass."""
  shelf, high_pass = (
    math.tan(math.pi * hz / rate) for hz in (_SHELF_HZ, _PASS_HZ)
  )
  top = 10 ** (_SHELF_DB / 20)
  middle = top**_SHELF_POWER
  numerator = np.array(
    [
      top + middle * shelf / _SHELF_Q + shelf**2,
      2 * (shelf**2 - top),
      top - middle * shelf / _SHELF_Q + shelf**2,
    ]
  )
  low = _denominator(shelf, _SHELF_Q)
  below = _denominator(high_pass, _PASS_Q)
  return [
    (numerator / low[0], low / low[0]),
    (np.array([1.0, -2.0, 1.0]), below / below[0]),
  ]


def _denominator(tangent: float, quality: float) -> np.ndarray:
  return np.array(
    [
      1 + tangent / quality + tangent**2,
      2 * (tangent**2 - 1),
      1 - tangent / quality + tangent**2,
    ]
  )
