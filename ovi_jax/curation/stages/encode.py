"""Encodes the clip for training and stores artifacts for later stages.

Artifacts:
  "video.mp4": H.264 at 24 fps without letterbox bars, about `target_area`
    pixels, sides multiples of 32;
  "audio.pcm": int16 little-endian mono at 16 kHz, of the window's length;
  "frame_0.jpg" to "frame_6.jpg": evenly spaced frames of the video, including
    the first and the last;
  "faces.npz": face crops of the tracks of `face_tracks`, see `crops`.
Audio-only clips have only "audio.pcm".
"""

import dataclasses
import io
import math
from collections.abc import Callable
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.faces import crops
from ovi_jax.curation.media import artifacts
from ovi_jax.curation.media import letterbox
from ovi_jax.curation.media import opencv
from ovi_jax.data import clips as samples
from ovi_jax.media import decode
from ovi_jax.media import mp4

NAME = artifacts.ENCODE
VERSION = 2
KIND = "clip"
THRESHOLDS = {
  "too small within its bars": ("upscale", "max_upscale"),
}
ASPECTS = ("original", "square")
_JPEG_QUALITY = 90  # of the JPEGs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Output size and artifacts.

  Attributes:
    target_area: pixels per frame; sides are the nearest multiples of 32.
    aspect: "original", or "square" for a centre crop.
    max_upscale: maximum scale factor of a side.
    num_jpegs: number of frames stored as JPEG.
  """

  target_area: int = 720 * 720
  aspect: str = "original"
  max_upscale: float = 1.1
  num_jpegs: int = artifacts.NUM_FRAMES

  def __post_init__(self):
    if self.aspect not in ASPECTS:
      raise ValueError(
        f"encode: aspect {self.aspect!r} is unknown; choose from"
        f" {', '.join(ASPECTS)}"
      )
    if not 0 < self.target_area <= decode.LARGEST_AREA:
      raise ValueError(
        f"encode: expected target_area from 1 to {decode.LARGEST_AREA}, the"
        f" maximum when decoding, got {self.target_area}"
      )
    if self.max_upscale < 1 or self.num_jpegs < 0:
      raise ValueError(
        "encode: expected max_upscale >= 1 and num_jpegs >= 0, got"
        f" {self.max_upscale} and {self.num_jpegs}"
      )


def missing_requirements(config: Config) -> list[str]:
  """OpenCV, if missing."""
  del config
  return opencv.missing_requirements()


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""

  def encode(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    made = {}
    height = width = frames = 0
    has_video = clip.facts.get("probe", {}).get("has_video")
    if has_video or "motion" in clip.facts:
      box = letterbox.crop_box(clip, media)
      elongation = geometry.elongation(box.height, box.width)
      if config.aspect == "original" and elongation > geometry.MAX_ASPECT:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too long and narrow within its bars",
          score=round(elongation, 4),
        )
      box, (height, width) = crop_and_size(box, config)
      enlarged = height / box.height
      if enlarged > config.max_upscale:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too small within its bars",
          score=round(enlarged, 4),
        )
      video_THWC = resize(box.crop(media.video_THWC), height, width)
      frames = len(video_THWC)
      made[artifacts.VIDEO] = encode_mp4(video_THWC)
      made |= _jpegs(video_THWC, config.num_jpegs)
    # `av_sync` reads the faces of clips with a speaker.
    has_speech = clip.facts.get("vad", {}).get("speaking", True)
    if "face_tracks" in clip.facts and has_speech:
      tracks = clip.facts["face_tracks"]["tracks"]
      faces = crops.crop_tracks(media.frames_25fps, tracks)
      made[artifacts.FACES] = crops.pack(faces)
    if media.audio_A.size:
      made[artifacts.AUDIO] = samples.pcm(media.audio_A)
    for name, value in made.items():
      media.save_artifact(name, value)
    return clip.with_facts(
      NAME, height=height, width=width, frames=frames, artifacts=sorted(made)
    )

  return encode


def crop_and_size(
  box: letterbox.Box, config: Config
) -> tuple[letterbox.Box, tuple[int, int]]:
  """The crop box and the output size, both of the same aspect ratio."""
  aspect = (1, 1) if config.aspect == "square" else (box.height, box.width)
  height, width = geometry.snap(*aspect, config.target_area)
  scale = min(box.height / height, box.width / width)
  rows = min(box.height, max(1, round(height * scale)))
  columns = min(box.width, max(1, round(width * scale)))
  part = letterbox.Box(
    top=box.top + (box.height - rows) // 2,
    left=box.left + (box.width - columns) // 2,
    height=rows,
    width=columns,
  )
  return part, (height, width)


def resize(video_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resize frames: by area when downscaling, else bicubic."""
  cv2 = opencv.library()
  shrinks = height <= video_THWC.shape[1]
  interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  resized_THWC = np.empty((len(video_THWC), height, width, 3), np.uint8)
  for frame_HWC, out_HWC in zip(video_THWC, resized_THWC, strict=True):
    whole_HWC = np.ascontiguousarray(frame_HWC)
    cv2.resize(whole_HWC, (width, height), out_HWC, interpolation=interpolation)
  return resized_THWC


def encode_mp4(video_THWC: np.ndarray) -> bytes:
  """An mp4 without audio; the same frames give the same bytes."""
  return mp4.to_bytes([video_THWC], preset=mp4.FAST)


def _jpegs(video_THWC: np.ndarray, count: int) -> dict[str, bytes]:
  """Evenly spaced frames as JPEG, by artifact name."""
  jpegs = {}
  for number, index in enumerate(_spaced_indices(len(video_THWC), count)):
    file = io.BytesIO()
    Image.fromarray(video_THWC[index]).save(file, "JPEG", quality=_JPEG_QUALITY)
    jpegs[artifacts.FRAME.format(number)] = file.getvalue()
  return jpegs


def _spaced_indices(frames: int, count: int) -> Sequence[int]:
  """Frame indices, evenly spaced from the first to the last."""
  steps = max(1, count - 1)
  return [math.floor(n * (frames - 1) / steps + 0.5) for n in range(count)]
