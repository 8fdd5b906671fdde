"""Thumbnails of clips for the report: a strip of frames, or a waveform.

Made from stored artifacts, or decoded from the file if an earlier stage has
decoded it without crashing.
"""

import io

import numpy as np
from PIL import Image

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.media import artifacts
from ovi_jax.media import container
from ovi_jax.media import decode
from ovi_jax.media import images

HEIGHT = 108  # of a frame, pixels
FRAMES = 4
_AREA = 480 * 270  # of decoded frames, pixels
_QUALITY = 80
_MAX_AUDIO_SECONDS = 60.0  # seconds; durations in headers may be wrong


def thumbnail(
  clip: clips.Clip, read_artifact: shard_store.ArtifactReader
) -> bytes | None:
  """A JPEG of a clip; None if its media cannot be read."""
  media, _ = shards.open_media(clip, read_artifact)
  try:
    frames = _stored_frames(clip, media) or _decoded_frames(clip, media)
    if frames:
      return _jpeg(_strip(frames))
    wave_A = _wave(clip, media)
  except (container.DamagedError, OSError, ValueError, MemoryError):
    return None
  if not wave_A.size:
    return None
  return _jpeg(
    images.waveform_png(wave_A, geometry.SAMPLE_RATE, 3 * HEIGHT, HEIGHT)
  )


def _stored_frames(clip: clips.Clip, media: stage.Media) -> list[Image.Image]:
  """Some of the stored frames; empty if there are none."""
  try:
    some = artifacts.frames(clip, media)[::2]
  except KeyError:
    return []
  found = [images.read_image(io.BytesIO(value)) for value in some]
  return [Image.fromarray(image_HWC) for image_HWC, _ in found]


def _decoded_frames(clip: clips.Clip, media: stage.Media) -> list[Image.Image]:
  """Frames decoded from a window; empty for audio and whole files."""
  if (
    not clip.facts.get("probe", {}).get("has_video")
    or "shots" not in clip.facts
  ):
    return []
  video_THWC = decode.video(media.path, clip.start, clip.seconds, _AREA)
  spread = np.linspace(0, len(video_THWC) - 1, FRAMES).round().astype(int)
  return [Image.fromarray(frame_HWC) for frame_HWC in video_THWC[spread]]


def _wave(clip: clips.Clip, media: stage.Media) -> np.ndarray:
  """The audio of a clip, float32 in [-1, 1]; truncated for long files."""
  try:
    pcm = media.read_artifact(artifacts.AUDIO)
  except KeyError:
    seconds = min(clip.seconds, _MAX_AUDIO_SECONDS)
    return decode.audio(media.path, clip.start, seconds)
  return np.frombuffer(pcm, "<i2").astype(np.float32) / 32_768


def _strip(frames: list[Image.Image]) -> Image.Image:
  """Frames of equal height, side by side."""
  sized = [
    f.resize((max(1, round(f.width * HEIGHT / f.height)), HEIGHT))
    for f in frames
  ]
  strip = Image.new("RGB", (sum(f.width for f in sized), HEIGHT))
  left = 0
  for frame in sized:
    strip.paste(frame, (left, 0))
    left += frame.width
  return strip


def _jpeg(image: Image.Image) -> bytes:
  """The image as JPEG."""
  file = io.BytesIO()
  image.convert("RGB").save(file, "JPEG", quality=_QUALITY)
  return file.getvalue()
