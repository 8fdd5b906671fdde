"""Every size of a clip: seconds, pixels, latents and tokens of both towers.

The first video frame stands alone in its latent and four frames share each
later one; rows and columns shrink by 16, then the tower takes patches of 2×2.
An audio latent stands for two mel columns of 256 samples. (Ovi, section 3;
`processing_utils.py` of the original for the snapping.)
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

FPS = 24
SAMPLE_RATE = 16_000  # Hz
HOP = 256  # waveform samples a mel column
MELS_PER_AUDIO_LATENT = 2
SAMPLES_PER_AUDIO_LATENT = HOP * MELS_PER_AUDIO_LATENT
AUDIO_LATENT_RATE = SAMPLE_RATE / SAMPLES_PER_AUDIO_LATENT  # 31.25 Hz
VIDEO_STRIDES = (4, 16, 16)  # frames, pixel rows, pixel columns a latent
PATCH = 2  # latent rows, and columns, a token
PIXEL_MULTIPLE = VIDEO_STRIDES[1] * PATCH  # sides of a clip divide by this
DEFAULT_SIZE = (704, 1280)  # height and width asked for where nobody says

# Largest sizes of a clip: about 64 times the longest that was released (61
# frames of 60x60 latents, 314 audio latents), and 16384 pixels a side.
MAX_LATENTS = {
  "latent_frames": 2**12,
  "latent_height": 2**10,
  "latent_width": 2**10,
  "audio_latents": 2**15,
}
MAX_TOKENS = 2**22  # of the video
# Longer side over the shorter. Sizes that are named for the released weights go
# up to 2.5 (448x1120); curation takes films up to 4. Beyond 8 a clip has more
# columns (or rows) than any position that the model has seen.
USUAL_ASPECT = 4.0
MAX_ASPECT = 8.0

# How far around the ideal number of rows `image_size` looks.
_ROWS_AROUND = range(-3, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """The latent sizes of a clip, and every size that follows from them.

  Attributes:
    latent_frames: video latents in time, T.
    latent_height: rows of a video latent, H; even.
    latent_width: columns of a video latent, W; even.
    audio_latents: audio latents, at 31.25 Hz.
  """

  latent_frames: int
  latent_height: int
  latent_width: int
  audio_latents: int

  def __post_init__(self):
    problems = []
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        problems.append(f"{name} must be at least 1, got {value}")
      if value > MAX_LATENTS[name]:
        problems.append(f"{name} must be at most {MAX_LATENTS[name]}: {value}")
    for name in ("latent_height", "latent_width"):
      if getattr(self, name) % PATCH:
        problems.append(
          f"{name} must be a multiple of {PATCH}, got {getattr(self, name)}"
        )
    if self.tokens > MAX_TOKENS:
      problems.append(
        f"a clip may have {MAX_TOKENS} video tokens, {self.latent_frames}x"
        f"{self.latent_height}x{self.latent_width} latents have {self.tokens}"
      )
    if problems:
      raise ValueError("; ".join(problems))

  @property
  def frames(self) -> int:
    """Video frames: one for the first latent, four for each other one."""
    return 1 + VIDEO_STRIDES[0] * (self.latent_frames - 1)

  @property
  def pixels(self) -> tuple[int, int]:
    """Height and width of a frame."""
    _, row, column = VIDEO_STRIDES
    return self.latent_height * row, self.latent_width * column

  @property
  def tokens(self) -> int:
    """Video tokens; the audio tower has one token a latent."""
    return self.latent_frames * self.tokens_per_frame

  @property
  def tokens_per_frame(self) -> int:
    """Video tokens of one latent frame."""
    return self.latent_height // PATCH * (self.latent_width // PATCH)

  @property
  def samples(self) -> int:
    """Waveform samples at 16 kHz."""
    return self.audio_latents * SAMPLES_PER_AUDIO_LATENT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """A released set of weights and what it was trained on.

  Attributes:
    name: as the original names it.
    checkpoint: file of the fusion weights, under `Ovi/` of the release.
    area: pixels of a frame, height times width.
    latent_frames: video latents in time.
    audio_latents: audio latents.
    audio_tag: how captions mark the description of the sound; may be empty.
  """

  name: str
  checkpoint: str
  area: int
  latent_frames: int
  audio_latents: int
  audio_tag: str

  def clip(
    self, height: int, width: int, latent_frames: int | None = None
  ) -> Clip:
    """The sizes of a clip.

    Args:
      height: pixels, a multiple of 32 (`snap` and `image_size` give those).
      width: pixels, a multiple of 32.
      latent_frames: video latents in time; `None` for the variant's.

    Returns:
      Latent frames, rows and columns of the video, and audio latents.

    Raises:
      ValueError: a side is not a positive multiple of 32.
    """
    _positive(height, width)
    if height % PIXEL_MULTIPLE or width % PIXEL_MULTIPLE:
      raise ValueError(
        f"height and width must be multiples of {PIXEL_MULTIPLE}, got"
        f" {height}x{width}; snap(height, width, area) gives the nearest"
      )
    latent_frames = latent_frames or self.latent_frames
    audio_latents = self.audio_latents
    if latent_frames != self.latent_frames:
      frames = 1 + VIDEO_STRIDES[0] * (latent_frames - 1)
      audio_latents = math.floor(frames / FPS * AUDIO_LATENT_RATE)
    return Clip(
      latent_frames=latent_frames,
      latent_height=height // VIDEO_STRIDES[1],
      latent_width=width // VIDEO_STRIDES[2],
      audio_latents=audio_latents,
    )


VARIANTS: Mapping[str, Variant] = {
  name: Variant(
    name=name,
    checkpoint=checkpoint,
    area=side * side,
    latent_frames=latent_frames,
    audio_latents=audio_latents,
    audio_tag=audio_tag,
  )
  for name, checkpoint, side, latent_frames, audio_latents, audio_tag in (
    ("720x720_5s", "model.safetensors", 720, 31, 157, "<AUDCAP>"),
    ("960x960_5s", "model_960x960.safetensors", 960, 31, 157, "Audio:"),
    ("960x960_10s", "model_960x960_10s.safetensors", 960, 61, 314, "Audio:"),
  )
}


def variant(name: str) -> Variant:
  """The released variant of a name; ValueError lists the known ones."""
  if name not in VARIANTS:
    known = ", ".join(VARIANTS)
    raise ValueError(f"variant {name!r} is unknown; choose from {known}")
  return VARIANTS[name]


def latent_frames(frames: int) -> int:
  """The number of video latents of a clip.

  Args:
    frames: 1 + 4·k.

  Returns:
    1 + k.

  Raises:
    ValueError: the number of frames is not 1, 5, 9, ...
  """
  stride = VIDEO_STRIDES[0]
  if frames < 1 or (frames - 1) % stride:
    below = max(1, frames - (frames - 1) % stride)
    raise ValueError(
      f"frames must be 1 + {stride}·k, got {frames}; use {below}"
    )
  return 1 + (frames - 1) // stride


def latent_place(seconds: Any) -> Any:
  """Position of a time among the video latents: k is the middle of latent k.

  Numbers or arrays; exact but for the first latent, which is one frame long.
  """
  return (FPS * seconds + 1) / VIDEO_STRIDES[0]


def snap(height: int, width: int, area: int) -> tuple[int, int]:
  """Choose the size of a text-to-video clip.

  Args:
    height: wished height; only its ratio to the width counts.
    width: wished width.
    area: pixels a frame the variant was trained on.

  Returns:
    Height and width in pixels: scaled to the area, then each side rounded to a
    multiple of 32.

  Raises:
    ValueError: an argument is not positive, or the aspect is too extreme.
  """
  _positive(height, width, area)
  check_aspect(height, width)
  scale = math.sqrt(area / (height * width))
  return _multiple(round(height * scale)), _multiple(round(width * scale))


def image_size(height: int, width: int, area: int) -> tuple[int, int]:
  """Choose the size that a first-frame image is resized to.

  Among row counts near the ideal one, each with the columns that keep the
  image's aspect, and the plainly scaled and rounded size: the nearest in area,
  then in aspect.

  Args:
    height: pixel rows of the image.
    width: pixel columns of the image.
    area: pixels a frame the variant was trained on.

  Returns:
    Height and width in pixels, multiples of 32.

  Raises:
    ValueError: an argument is not positive, or the aspect is too extreme.
  """
  _positive(height, width, area)
  check_aspect(height, width)
  aspect = width / height
  ideal = round(math.sqrt(max(1, area // PIXEL_MULTIPLE**2) / aspect))
  rows = [max(1, max(1, ideal) + offset) for offset in _ROWS_AROUND]
  sizes = [
    (r * PIXEL_MULTIPLE, max(1, round(r * aspect)) * PIXEL_MULTIPLE)
    for r in rows
  ]
  scale = math.sqrt(area / (height * width))
  sizes.append((_multiple(height * scale), _multiple(width * scale)))
  return min(
    sizes, key=lambda s: (abs(s[0] * s[1] - area), abs(s[1] / s[0] - aspect))
  )


def elongation(height: int, width: int) -> float:
  """The longer side over the shorter side."""
  return max(height, width) / min(height, width)


def check_aspect(height: int, width: int) -> None:
  """ValueError if a size is not positive or more extreme than `MAX_ASPECT`."""
  _positive(height, width)
  if elongation(height, width) > MAX_ASPECT:
    raise ValueError(
      f"expected a height and width of at most {MAX_ASPECT:g} to 1, got"
      f" {height}x{width}; crop it"
    )


def _multiple(side: float) -> int:
  """The multiple of 32 nearest to `side`, at least 32."""
  return max(1, round(side / PIXEL_MULTIPLE)) * PIXEL_MULTIPLE


def _positive(height: int, width: int, area: int = 1) -> None:
  """ValueError unless every size is at least 1."""
  if min(height, width, area) < 1:
    raise ValueError(
      "height, width and area must be positive pixel counts, got"
      f" {height}x{width}, area {area}"
    )
