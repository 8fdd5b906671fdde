"""Mel spectrograms of power, as librosa computes them. float32."""

import numpy as np

from ovi_jax.models import mel


def power_mel(
  wave_A: np.ndarray, rate: int, *, fft_size: int, hop: int, bins: int
) -> np.ndarray:
  """Power in mel bands up to half the sample rate.

  Windows (periodic Hann) are centred at multiples of `hop`, with zeros around
  the sound.

  Args:
    wave_A: mono.
    rate: samples a second.
    fft_size: samples of a window.
    hop: samples from a window to the next.
    bins: number of bands.

  Returns:
    mel_TM.
  """
  padded_A = np.pad(wave_A.astype(np.float32), fft_size // 2)
  if padded_A.size < fft_size:
    return np.zeros((0, bins), np.float32)
  views = np.lib.stride_tricks.sliding_window_view(padded_A, fft_size)[::hop]
  turns = np.arange(fft_size) / fft_size
  window = (0.5 - 0.5 * np.cos(2 * np.pi * turns)).astype(np.float32)
  power_TF = np.square(np.abs(np.fft.rfft(views * window[None])))
  bands_MF = mel.bands(rate, fft_size, bins, 0.0, rate / 2)
  return (power_TF.astype(np.float32) @ bands_MF.T).astype(np.float32)
