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

NAME = artifacts.CUT
VERSION = 2
KIND = "clip"
BOUNDS = {
  "too small within its margins": ("enlargement", "largest_enlargement"),
}
ASPECTS = ("kept", "square")
_QUALITY = 90  # of the JPEGs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What is kept.

  Attributes:
    area: pixels of a frame; sides are the nearest multiples of 32.
    aspect: "kept", or "square", the middle of the picture alone.
    largest_enlargement: times a side may be made longer.
    frames: that are kept as JPEG.
  """

  area: int = 720 * 720
  aspect: str = "kept"
  largest_enlargement: float = 1.1
  frames: int = artifacts.FRAMES

  def __post_init__(self):
    if self.aspect not in ASPECTS:
      raise ValueError(
        f"cut: aspect {self.aspect!r} is unknown; choose from"
        f" {', '.join(ASPECTS)}"
      )
    if not 0 < self.area <= decode.LARGEST_AREA:
      raise ValueError(
        f"cut: expected an area from 1 to {decode.LARGEST_AREA}, which frames"
        f" are decoded at, got {self.area}"
      )
    if self.largest_enlargement < 1 or self.frames < 0:
      raise ValueError(
        "cut: expected largest_enlargement >= 1 and frames >= 0, got"
        f" {self.largest_enlargement} and {self.frames}"
      )


def missing(config: Config) -> list[str]:
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
      box = letterbox.told(clip, media)
      long = geometry.elongation(box.height, box.width)
      if config.aspect == "kept" and long > geometry.MAX_ASPECT:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too long and narrow within its margins",
          score=round(long, 4),
        )
      box, (height, width) = target(box, config)
      enlarged = height / box.height
      if enlarged > config.largest_enlargement:
        return clips.Reject(
          clip=clip,
          stage=NAME,
          reason="too small within its margins",
          score=round(enlarged, 4),
        )
      video_THWC = resize(box.cut(media.video_THWC), height, width)
      frames = len(video_THWC)
      made[artifacts.VIDEO] = encode(video_THWC)
      made |= _pictures(video_THWC, config.frames)
    # `synchrony` reads the faces of clips in which someone speaks.
    spoken = clip.facts.get("speech", {}).get("speaking", True)
    if "people" in clip.facts and spoken:
      tracks = clip.facts["people"]["tracks"]
      faces = crops.of_tracks(media.pictures_25, tracks)
      made[artifacts.FACES] = crops.pack(faces)
    if media.audio_A.size:
      made[artifacts.SOUND] = samples.pcm(media.audio_A)
    for name, value in made.items():
      media.keep(name, value)
    return clip.found(
      NAME, height=height, width=width, frames=frames, kept=sorted(made)
    )

  return cut


def target(
  box: letterbox.Box, config: Config
) -> tuple[letterbox.Box, tuple[int, int]]:
  """The part of the picture that is kept, and the size it is made.

  The part has the aspect of the size, so that nothing is stretched.
  """
  wished = (1, 1) if config.aspect == "square" else (box.height, box.width)
  height, width = geometry.snap(*wished, config.area)
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


def encode(video_THWC: np.ndarray) -> bytes:
  """An mp4 without sound; the same frames give the same bytes anywhere."""
  return mp4.to_bytes([video_THWC], preset=mp4.FAST)


def _pictures(video_THWC: np.ndarray, count: int) -> dict[str, bytes]:
  """Frames as JPEG, by name."""
  pictures = {}
  for number, place in enumerate(_places(len(video_THWC), count)):
    file = io.BytesIO()
    Image.fromarray(video_THWC[place]).save(file, "JPEG", quality=_QUALITY)
    pictures[artifacts.FRAME.format(number)] = file.getvalue()
  return pictures


def _places(frames: int, count: int) -> Sequence[int]:
  """Frame numbers, evenly spaced from the first to the last."""
  steps = max(1, count - 1)
  return [math.floor(n * (frames - 1) / steps + 0.5) for n in range(count)]
