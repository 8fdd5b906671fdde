"""Mel-frequency cepstral coefficients for SyncNet.

13 coefficients every 10 ms from int16-scaled audio at 16 kHz, as computed by
python_speech_features with its defaults: pre-emphasis 0.97, frames of 25 ms
without a window function, 512-point power spectrum, 26 triangular filters with
corners at integer bins, logarithm, orthonormal DCT, liftering with 22;
coefficient 0 is the log energy of the frame. All computation is float64.
"""

import functools
import math

import numpy as np

RATE = 16_000
STEP = 160  # samples from a frame to the next: 10 ms
COEFFICIENTS = 13
_FRAME = 400  # samples: 25 ms
_POINTS = 512
_FILTERS = 26
_EMPHASIS = 0.97
_LIFTER = 22
_MIN_ENERGY = np.finfo(np.float64).eps  # replaces zero energy


def coefficients(samples_A: np.ndarray) -> np.ndarray:
  """Coefficients of audio.

  Args:
    samples_A: mono at 16 kHz, -32768 to 32767; at least one.

  Returns:
    float64 [frames, 13]; the last frame is zero-padded.

  Raises:
    ValueError: not one-dimensional, or empty.
  """
  samples_A = np.asarray(samples_A, np.float64)
  if samples_A.ndim != 1 or not samples_A.size:
    raise ValueError(
      f"expected samples of a mono sound, got shape {list(samples_A.shape)}"
    )
  emphasised_A = samples_A.copy()
  emphasised_A[1:] -= _EMPHASIS * samples_A[:-1]
  spectrum = np.fft.rfft(_split_frames(emphasised_A), _POINTS)
  power = np.square(np.abs(spectrum)) / _POINTS
  energy = _nonzero(power.sum(axis=1))
  mel = np.log(_nonzero(power @ _mel_filters().T))
  cepstra = mel @ _dct_matrix().T
  cepstra[:, 0] = np.log(energy)
  return cepstra


def _split_frames(samples_A: np.ndarray) -> np.ndarray:
  """[frames, 400], one every 160 samples, zero-padded."""
  count = 1 + max(0, math.ceil((samples_A.size - _FRAME) / STEP))
  padded_A = np.zeros((count - 1) * STEP + _FRAME)
  padded_A[: samples_A.size] = samples_A
  return np.lib.stride_tricks.sliding_window_view(padded_A, _FRAME)[::STEP]


def _nonzero(energy: np.ndarray) -> np.ndarray:
  """Replace zeros, for the logarithm."""
  return np.where(energy == 0, _MIN_ENERGY, energy)


@functools.cache
def _mel_filters() -> np.ndarray:
  """[26, 257]: triangular mel filters over the power spectrum."""
  top = 2595 * math.log10(1 + RATE / 2 / 700)
  hz = 700 * (10 ** (np.linspace(0, top, _FILTERS + 2) / 2595) - 1)
  corners = np.floor((_POINTS + 1) * hz / RATE)[:, None]
  low, peak, high = corners[:-2], corners[1:-1], corners[2:]
  points = np.arange(_POINTS // 2 + 1, dtype=np.float64)[None]
  rise = (points - low) / (peak - low)
  fall = (high - points) / (high - peak)
  rising = (low <= points) & (points < peak)
  falling = (peak <= points) & (points < high)
  return np.where(rising, rise, np.where(falling, fall, 0.0))


@functools.cache
def _dct_matrix() -> np.ndarray:
  """[13, 26]: the orthonormal DCT-II with liftering."""
  number = np.arange(COEFFICIENTS)[:, None]
  place = np.arange(_FILTERS)[None] + 0.5
  basis = np.cos(np.pi * number * place / _FILTERS)
  scale = np.where(number == 0, 1, 2) / _FILTERS
  lifter = 1 + _LIFTER / 2 * np.sin(np.pi * number / _LIFTER)
  return basis * np.sqrt(scale) * lifter
