"""Previews: latents decoded small, while a clip is still denoised.

Latents are averaged over rows and columns, and thinned out in time, before the
video VAE decodes them; so a preview costs a small part of a clip's decoding.
Sound is decoded whole.
"""

import dataclasses
import functools
import math

import jax
import numpy as np

from ovi_jax import geometry
from ovi_jax.modality import AV
from ovi_jax.pretrained import decoders

MAX_AREA = 320 * 320  # pixels a frame
MAX_LATENT_FRAMES = 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
  """A clip as it is predicted at a step.

  Attributes:
    step: number of finished steps.
    frames: uint8 RGB [T, h, w, 3]; `None` of sound alone.
    fps: frames a second; fewer than those of the clip.
    audio: float32 samples [A] in [-1, 1], mono; `None` of video alone.
    sample_rate: samples a second.
  """

  step: int
  frames: np.ndarray | None
  fps: float
  audio: np.ndarray | None
  sample_rate: int = geometry.SAMPLE_RATE


def decode(
  decoder: decoders.Decoder, latents: AV[jax.Array], step: int
) -> Preview:
  """Decode a clip small.

  Args:
    decoder: of the modalities.
    latents: clean video_BTHWC and audio_BTC, B = 1; either may be `None`.
    step: number of finished steps.

  Raises:
    ValueError: decoded values are not finite.
  """
  frames, audio, stride = None, None, 1
  if latents.video is not None:
    _, count, height, width, _ = latents.video.shape
    stride = math.ceil(count / MAX_LATENT_FRAMES)
    size = small_size(height, width)
    with decoder.components.computing():
      small_BTHWC = _shrink(latents.video, stride, size)
    frames = np.concatenate(list(decoder.frames(small_BTHWC)))
  if latents.audio is not None:
    audio = decoder.wave(latents.audio)
  return Preview(
    step=step, frames=frames, fps=geometry.FPS / stride, audio=audio
  )


def small_size(height: int, width: int) -> tuple[int, int]:
  """Rows and columns of latents whose frames have at most `MAX_AREA` pixels."""
  _, row, column = geometry.VIDEO_STRIDES
  scale = math.sqrt(MAX_AREA / (height * row * width * column))
  if scale >= 1:
    return height, width
  return max(1, int(height * scale)), max(1, int(width * scale))


@functools.partial(jax.jit, static_argnames=("stride", "size"))
def _shrink(
  latents_BTHWC: jax.Array, stride: int, size: tuple[int, int]
) -> jax.Array:
  """Every so many latent frames, averaged to fewer rows and columns."""
  thinned_BTHWC = latents_BTHWC[:, ::stride]
  batch, count, _, _, channels = thinned_BTHWC.shape
  return jax.image.resize(
    thinned_BTHWC, (batch, count, *size, channels), "linear"
  )
