"""The clip as training reads it, and what later passes need of it.

In: a window, with margins if `motion` was there. Kept of it, each by its name:
  "video.mp4": H.264 at 24 fps, without margins, about `area` large, sides
    multiples of 32;
  "audio.pcm": int16 little-endian mono at 16 kHz, of the window's length;
  "frame_0.jpg" to "frame_6.jpg": as many frames of the cut, evenly spaced, the
    first and the last one too;
  "faces.npz": crops of the faces that `people` found, see `crops`.
Of a clip without pictures only "audio.pcm" is kept.
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
  "too small within its margins": ("upscale", "max_upscale"),
}
ASPECTS = ("original", "square")
_JPEG_QUALITY = 90  # of the JPEGs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is kept.

  Attributes:
    target_area: pixels of a frame; sides are the nearest multiples of 32.
    aspect: "kept", or "square", the middle of the picture alone.
    max_upscale: times a side may be made longer.
    num_jpegs: that are kept as JPEG.
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
        f"encode: expected an area from 1 to {decode.LARGEST_AREA}, which frames"
        f" are decoded at, got {self.target_area}"
      )
    if self.max_upscale < 1 or self.num_jpegs < 0:
      raise ValueError(
        "encode: expected max_upscale >= 1 and frames >= 0, got"
        f" {self.max_upscale} and {self.num_jpegs}"
      )


def missing_requirements(config: Config) -> list[str]:
  """OpenCV, if it is not installed."""
  del config
  return opencv.missing()


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for windows."""

  def cut(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    made = {}
    height = width = frames = 0
    seen = clip.facts.get("probe", {}).get("has_video")
    if seen or "motion" in clip.facts:
      box = letterbox.crop_box(clip, media)
      long = geometry.elongation(box.height, box.width)
      if config.aspect == "original" and long > geometry.MAX_ASPECT:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too long and narrow within its margins",
          score=round(long, 4),
        )
      box, (height, width) = crop_and_size(box, config)
      enlarged = height / box.height
      if enlarged > config.max_upscale:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too small within its margins",
          score=round(enlarged, 4),
        )
      video_THWC = resize(box.crop(media.video_THWC), height, width)
      frames = len(video_THWC)
      made[artifacts.VIDEO] = encode_mp4(video_THWC)
      made |= _jpegs(video_THWC, config.num_jpegs)
    # `synchrony` reads the faces of clips in which someone speaks.
    spoken = clip.facts.get("vad", {}).get("speaking", True)
    if "face_tracks" in clip.facts and spoken:
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

  return cut


def crop_and_size(
  box: letterbox.Box, config: Config
) -> tuple[letterbox.Box, tuple[int, int]]:
  """The part of the picture that is kept, and the size it is made.

  The part has the aspect of the size, so that nothing is stretched.
  """
  wished = (1, 1) if config.aspect == "square" else (box.height, box.width)
  height, width = geometry.snap(*wished, config.target_area)
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
  """The frames at another size: by area if smaller, else bicubic."""
  cv2 = opencv.library()
  shrinks = height <= video_THWC.shape[1]
  way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  resized_THWC = np.empty((len(video_THWC), height, width, 3), np.uint8)
  for frame_HWC, out_HWC in zip(video_THWC, resized_THWC, strict=True):
    whole_HWC = np.ascontiguousarray(frame_HWC)
    cv2.resize(whole_HWC, (width, height), out_HWC, interpolation=way)
  return resized_THWC


def encode_mp4(video_THWC: np.ndarray) -> bytes:
  """An mp4 without sound; the same frames give the same bytes anywhere."""
  return mp4.to_bytes([video_THWC], preset=mp4.FAST)


def _jpegs(video_THWC: np.ndarray, count: int) -> dict[str, bytes]:
  """Frames as JPEG, by name."""
  pictures = {}
  for number, place in enumerate(_spaced_indices(len(video_THWC), count)):
    file = io.BytesIO()
    Image.fromarray(video_THWC[place]).save(file, "JPEG", quality=_JPEG_QUALITY)
    pictures[artifacts.FRAME.format(number)] = file.getvalue()
  return pictures


def _spaced_indices(frames: int, count: int) -> Sequence[int]:
  """Frame numbers, evenly spaced from the first to the last."""
  steps = max(1, count - 1)
  return [math.floor(n * (frames - 1) / steps + 0.5) for n in range(count)]
