"""Log-mel spectrogram: the sound that the audio VAE sees.

A waveform becomes magnitudes of windowed Fourier transforms, summed over mel
bands and taken to the logarithm. Everything is float32, products included.

Source: MMAudio (arXiv 2412.15322), the 16 kHz front end it takes from
Make-An-Audio 2; mel scale and normalisation as in Slaney's Auditory Toolbox.
"""

import dataclasses
import functools

import einops
import jax.numpy as jnp
import numpy as np
from jax import lax

# Slaney's scale: linear up to 1000 Hz, then 27 mels for every factor of 6.4.
_LINEAR_HZ = 200 / 3
_KNEE_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27


@dataclasses.dataclass(frozen=True, kw_only=True)
class MelConfig:
  """Settings of a log-mel spectrogram.

  Attributes:
    sample_rate: samples a second, Hz.
    fft_size: samples of a window, a multiple of `hop`.
    hop: samples from one frame to the next.
    bins: mel bands.
    low: lower edge of the lowest band, Hz.
    high: upper edge of the highest band, Hz.
    floor: least magnitude of a band, so that its logarithm exists.
  """

  sample_rate: int = 16_000
  fft_size: int = 1024
  hop: int = 256
  bins: int = 80
  low: float = 0.0
  high: float = 8_000.0
  floor: float = 1e-5

  def __post_init__(self):
    if self.fft_size % self.hop or (self.fft_size - self.hop) % 2:
      raise ValueError(
        "mel: expected fft_size to be a multiple of hop that differs from it"
        f" by an even number, got {self.fft_size} and {self.hop}"
      )
    if not 0 <= self.low < self.high <= self.sample_rate / 2:
      raise ValueError(
        f"mel: expected 0 <= low < high <= {self.sample_rate / 2} Hz, half the"
        f" sampling rate, got {self.low} and {self.high}"
      )

  @property
  def padding(self) -> int:
    """Samples mirrored at each end: `hop · n` samples then give n frames."""
    return (self.fft_size - self.hop) // 2


def log_mel(config: MelConfig, wave_BA):
  """Take the log-mel spectrogram of a waveform.

  Args:
    config: what it is made of.
    wave_BA: samples; those outside [-1, 1] are clipped.

  Returns:
    mel_BTM, float32: log10 of each band's magnitude, one frame every `hop`
    samples; samples after the last whole hop are not seen.

  Raises:
    ValueError: the waveform is too short to be mirrored at its ends.
  """
  if wave_BA.shape[-1] <= config.padding:
    raise ValueError(
      f"mel: expected more than {config.padding} samples, got"
      f" {wave_BA.shape[-1]}; pad the waveform with silence"
    )
  wave_BA = jnp.clip(wave_BA.astype(jnp.float32), -1.0, 1.0)
  wave_BA = jnp.pad(wave_BA, ((0, 0), (config.padding,) * 2), mode="reflect")
  windows_BTA = _windows(config, wave_BA) * _hann(config.fft_size)[None, None]
  spectrum = jnp.fft.rfft(windows_BTA)
  power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
  mel_BTM = jnp.einsum(
    "btf,mf->btm",
    jnp.sqrt(power + 1e-9),
    filterbank(config),
    precision=lax.Precision.HIGHEST,
  )
  return jnp.log10(jnp.maximum(mel_BTM, config.floor))


def _windows(config: MelConfig, wave_BA):
  """Overlapping windows: `fft_size / hop` shifted runs of hops side by side."""
  hops = wave_BA.shape[-1] // config.hop
  wave_BA = wave_BA[:, : hops * config.hop]
  hops_BTA = einops.rearrange(wave_BA, "b (t a) -> b t a", a=config.hop)
  overlap = config.fft_size // config.hop
  frames = hops - overlap + 1
  shifted = [hops_BTA[:, i : i + frames] for i in range(overlap)]
  return jnp.concatenate(shifted, axis=-1)


def _hann(size: int) -> np.ndarray:
  """The periodic Hann window, float32."""
  turns = np.arange(size) / size
  return (0.5 - 0.5 * np.cos(2 * np.pi * turns)).astype(np.float32)


def filterbank(config: MelConfig) -> np.ndarray:
  """The bands of a config; see `bands`."""
  return bands(
    config.sample_rate, config.fft_size, config.bins, config.low, config.high
  )


@functools.cache
def bands(
  sample_rate: int, fft_size: int, bins: int, low: float, high: float
) -> np.ndarray:
  """Triangular bands [mel bins, frequencies], float32, each of area one Hz.

  Edges are evenly spaced in mel: a band rises from one edge to the next and
  falls to the one after; its height is two over its width in Hz.

  Args:
    sample_rate: samples a second, Hz.
    fft_size: samples of a window.
    bins: mel bands.
    low: lower edge of the lowest band, Hz.
    high: upper edge of the highest band, Hz.
  """
  low_mel, high_mel = _to_mel(np.array([low, high]))
  edges = _to_hz(np.linspace(low_mel, high_mel, bins + 2))
  left, peak, right = (edges[i : i + bins, None] for i in range(3))
  hz = np.fft.rfftfreq(fft_size, 1 / sample_rate)[None]
  rise = (hz - left) / (peak - left)
  fall = (right - hz) / (right - peak)
  heights = np.maximum(0, np.minimum(rise, fall)) * 2 / (right - left)
  return heights.astype(np.float32)


def _to_mel(hz: np.ndarray) -> np.ndarray:
  above = np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _LOG_STEP
  return np.minimum(hz, _KNEE_HZ) / _LINEAR_HZ + above


def _to_hz(mel: np.ndarray) -> np.ndarray:
  knee = _KNEE_HZ / _LINEAR_HZ
  above = np.exp(np.maximum(mel - knee, 0) * _LOG_STEP)
  return np.minimum(mel, knee) * _LINEAR_HZ * above
