"""Pictures of clips for a report: a strip of frames, or the sound's wave.

From what was kept of a clip, or else decoded from its file, which a stage has
done before and has not been ended by.
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

HEIGHT = 108  # pixels of a frame
FRAMES = 4
_AREA = 480 * 270  # that frames are decoded at
_QUALITY = 80
_MAX_AUDIO_SECONDS = 60.0  # seconds; a file may say that it lasts for years


def thumbnail(
  clip: clips.Clip, keeper: shard_store.ArtifactReader
) -> bytes | None:
  """A JPEG of a clip; None if there is nothing to be seen or heard of it."""
  of_clip, _ = shards.open_media(clip, keeper)
  try:
    frames = _stored_frames(clip, of_clip) or _decoded_frames(clip, of_clip)
    if frames:
      return _jpeg(_strip(frames))
    wave_A = _wave(clip, of_clip)
  except (container.DamagedError, OSError, ValueError, MemoryError):
    return None
  if not wave_A.size:
    return None
  return _jpeg(
    images.waveform_png(wave_A, geometry.SAMPLE_RATE, 3 * HEIGHT, HEIGHT)
  )


def _stored_frames(clip: clips.Clip, of_clip: stage.Media) -> list[Image.Image]:
  """Some of the frames that were kept; none if none were."""
  try:
    some = artifacts.frames(clip, of_clip)[::2]
  except KeyError:
    return []
  found = [images.read_image(io.BytesIO(value)) for value in some]
  return [Image.fromarray(image_HWC) for image_HWC, _ in found]


def _decoded_frames(
  clip: clips.Clip, of_clip: stage.Media
) -> list[Image.Image]:
  """Frames of a window, from its file; none of sounds, or of whole files."""
  if (
    not clip.facts.get("probe", {}).get("has_video")
    or "shots" not in clip.facts
  ):
    return []
  video_THWC = decode.video(of_clip.path, clip.start, clip.seconds, _AREA)
  spread = np.linspace(0, len(video_THWC) - 1, FRAMES).round().astype(int)
  return [Image.fromarray(frame_HWC) for frame_HWC in video_THWC[spread]]


def _wave(clip: clips.Clip, of_clip: stage.Media) -> np.ndarray:
  """The sound of a clip, float32 in [-1, 1]; of a long file its beginning."""
  try:
    pcm = of_clip.read_artifact(artifacts.AUDIO)
  except KeyError:
    seconds = min(clip.seconds, _MAX_AUDIO_SECONDS)
    return decode.audio(of_clip.path, clip.start, seconds)
  return np.frombuffer(pcm, "<i2").astype(np.float32) / 32_768


def _strip(frames: list[Image.Image]) -> Image.Image:
  """Frames side by side, all of one height."""
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
  """The picture's bytes."""
  file = io.BytesIO()
  image.convert("RGB").save(file, "JPEG", quality=_QUALITY)
  return file.getvalue()
