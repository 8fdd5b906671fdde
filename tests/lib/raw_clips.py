"""Records that hold media: moving stripes with a tone."""

import pathlib

import numpy as np

from ovi_jax.data import clips
from ovi_jax.data import schema
from ovi_jax.media import mp4

SIZES = schema.Geometry(text_dim=48)
CAPTIONS = ("a bell", "a dog barks", "Audio: rain.", "waves and a gull")


def clip(number: int, frames: int, folder: pathlib.Path) -> schema.Record:
  """A clip of moving stripes with a tone; without a video for no frames."""
  video, rows = None, np.arange(64)
  if frames:
    moved = rows[None] + np.arange(frames)[:, None] * (number + 1)
    stripes = (moved * 8 % 256).astype(np.uint8)
    frames_THWC = np.broadcast_to(
      stripes[:, :, None, None], (frames, 64, 64, 3)
    )
    mp4.write(folder / "clip.mp4", [frames_THWC], None)
    video = (folder / "clip.mp4").read_bytes()
  samples = int(frames / 24 * 16_000) if frames else 2800
  wave = 0.5 * np.sin(np.arange(samples) * 0.05 * (number + 1))
  return schema.Record(
    id=f"clip-{number}",
    source="generated",
    captions=CAPTIONS[number % 3 : number % 3 + 2],
    video=video,
    audio=clips.pcm(wave),
    frames=frames,
    height=64 * bool(frames),
    width=64 * bool(frames),
  )
