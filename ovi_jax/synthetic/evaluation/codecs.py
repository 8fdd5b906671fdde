"""Measures codecs: PSNR of frames, log-mel error of audio.

Arrays in, numbers out; the codecs are given as functions.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ovi_jax.models import mel
from ovi_jax.pretrained import distortion


class Loss(NamedTuple):
  """Mean over clips, the worst of them, and their number."""

  mean: float
  worst: float
  clips: int


def psnr_of(
  codec: Callable[[np.ndarray], np.ndarray], clips: Iterable[np.ndarray]
) -> Loss:
  """PSNR of clips (uint8 frames_THWC) encoded and decoded by `codec`."""
  psnr = [distortion.video_psnr(clip, codec(clip)) for clip in clips]
  return Loss(float(np.mean(psnr)), min(psnr), len(psnr))


def log_mel_error_of(
  codec: Callable[[np.ndarray], np.ndarray],
  waves: Iterable[np.ndarray],
  config: mel.MelConfig | None = None,
) -> Loss:
  """Log-mel error of waves [A] after encoding and decoding by `codec`."""
  config = config or mel.MelConfig()
  errors = [
    distortion.log_mel_error(wave, codec(wave), config) for wave in waves
  ]
  return Loss(float(np.mean(errors)), max(errors), len(errors))
