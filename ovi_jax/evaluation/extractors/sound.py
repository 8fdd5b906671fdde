"""Features of sound without a network.

Arrays: `onsets`, seconds at which sounds begin; `envelope_T`, RMS in windows of
20 ms every 10 ms; `loudness`, LUFS of all channels (absent if no part is above
the gate); `silence`, share of the windows below -60 dBFS; `peak`; `seconds`.
All but the loudness are of the mean of the channels, at the file's own rate.
"""

import math

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation import onsets
from ovi_jax.media import loudness

STEP, _WINDOW = 0.01, 0.02  # seconds of the envelope
_SILENCE = 10 ** (-60 / 20)
_MAX_CHANNELS = 6


def sound() -> features.Extractor:
  """Onsets, envelope, loudness and silence."""
  return features.Extractor(
    name="sound",
    version=2,
    needs=(clips.SOUND,),
    settings={"step": STEP, "window": _WINDOW, "silence": _SILENCE},
    load=lambda: lambda media: [_describe(each) for each in media],
  )


def _describe(media: clips.Media) -> features.Arrays:
  mono_A, rate = media.mono().astype(np.float64), media.rate
  envelope_T = envelope(mono_A, rate)
  arrays = {
    "envelope_T": envelope_T,
    "onsets": np.array(onsets.times(mono_A, rate), np.float64),
    "peak": np.abs(media.wave_CA).max(initial=0.0).astype(np.float64),
    "seconds": np.float64(mono_A.size / rate),
  }
  if envelope_T.size:
    arrays["silence"] = np.float64((envelope_T < _SILENCE).mean())
  lufs = loudness.integrated(media.wave_CA[:_MAX_CHANNELS], rate)
  if math.isfinite(lufs):
    arrays["loudness"] = np.float64(lufs)
  return arrays


def envelope(mono_A: np.ndarray, rate: int) -> np.ndarray:
  """RMS [T] in windows around 0, 10, 20, … ms."""
  power_A = np.concatenate([[0.0], np.cumsum(np.square(mono_A))])
  centres = np.arange(0, mono_A.size, STEP * rate)
  half = _WINDOW * rate / 2
  begin, end = (
    np.clip(np.round(centres + side), 0, mono_A.size).astype(int)
    for side in (-half, half)
  )
  energy_T = power_A[end] - power_A[begin]
  return np.sqrt(np.maximum(energy_T, 0) / np.maximum(end - begin, 1))
