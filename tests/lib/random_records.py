"""Seeded records: random latents and text of given sizes."""

from collections.abc import Sequence

import numpy as np

from ovi_jax.data import schema
from ovi_jax.modality import AV

GEOMETRY = schema.Geometry(video_channels=4, audio_channels=3, text_dim=5)
VIDEO = (3, 4, 6)  # 9 frames, 11.7 audio latents


def record(
  number: int,
  *,
  video: tuple[int, int, int] | None = VIDEO,
  audio: int | None = 12,
  captions: int = 2,
) -> schema.Record:
  """The record of that number; its arrays fit float16 exactly."""
  draw = np.random.default_rng(number)

  def array(*shape):
    return draw.standard_normal(shape).astype(np.float16)

  return schema.Record(
    id=f"clip-{number}",
    source="generated",
    captions=tuple(f"caption {k} of {number} é" for k in range(captions)),
    latents=AV(
      video=array(*video, 4) if video else None,
      audio=array(audio, 3) if audio else None,
    ),
    text=tuple(array(2 + k, 5) for k in range(captions)),
    scores={"sync": number / 7},
  )


def null_text() -> np.ndarray:
  """The empty prompt's embedding."""
  return np.full((1, 5), 0.5, np.float32)


def sounds(lengths: Sequence[int]) -> list[schema.Record]:
  """One record without a video for each length in audio latents."""
  return [record(i, video=None, audio=n) for i, n in enumerate(lengths)]
