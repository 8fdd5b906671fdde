"""Settings of an import: input files, and how clips are cut and resized."""

import dataclasses
import math
import pathlib

from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.data import builder

FITS = ("crop", "pad", "keep")
SHORT = ("keep", "pad", "refuse")
LONG = ("first", "center", "split")
FRAMES = 121
MAX_FRAMES = (
  24 * 60 + 1
)  # of a record: they are decoded into memory in training
MAX_SIDE = 4096
SOUND_SECONDS = 12.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """An import.

  Attributes:
    clips: folder of the files.
    captions: table of captions; "" for text files beside the clips.
    out: dataset to write.
    audio_only: import audio without video.
    height: of a record's frames, a multiple of 32.
    width: likewise.
    fit: "crop" cuts the middle of the picture to height by width, "pad" puts
      black bars around all of it, "keep" keeps the aspect and takes the area
      of height by width.
    frames: of a record at 24 fps, 1 + 4·k.
    seconds: of a record with audio only.
    short_clips: "keep" their length, "pad" them with their last frame and
      silence, or "refuse" them.
    long_clips: keep the "first" part, the "center", or "split" them into
      windows one after another; the rest that fills no window is dropped.
    variant: released variant whose form of audio tags captions are
      rewritten in; "" leaves them.
    require_audio: refuse clips without an audio track.
    max_upscale: refuse clips that would be enlarged by more; 0 for no limit.
    eval_fraction: fraction of the files whose clips go to the split "test",
      where the table does not say.
    seed: of that choice.
    num_workers: processes; 0 works in this one.
    records_per_shard: in a file of the dataset.
  """

  clips: pathlib.Path
  captions: str = ""
  out: storage.AnyPath
  audio_only: bool = False
  height: int = 704
  width: int = 736
  fit: str = "crop"
  frames: int = FRAMES
  seconds: float = SOUND_SECONDS
  short_clips: str = "keep"
  long_clips: str = "first"
  variant: str = ""
  require_audio: bool = False
  max_upscale: float = 0.0
  eval_fraction: float = 0.1
  seed: int = 0
  num_workers: int = 0
  records_per_shard: int = builder.RECORDS_PER_SHARD

  def __post_init__(self):
    config_lib.check_types(type(self), vars(self), "")
    problems = [
      f"--{name}: expected one of {', '.join(known)}, got {value!r}"
      for name, known, value in (
        ("fit", FITS, self.fit),
        ("short_clips", SHORT, self.short_clips),
        ("long_clips", LONG, self.long_clips),
        ("variant", ("", *geometry.VARIANTS), self.variant),
      )
      if value not in known
    ]
    multiple = geometry.PIXEL_MULTIPLE
    if (
      min(self.height, self.width) < multiple
      or max(self.height, self.width) > MAX_SIDE
      or self.height % multiple
      or self.width % multiple
    ):
      near = f"{_near(self.height)}x{_near(self.width)}"
      problems.append(
        f"--size: expected multiples of {multiple} up to {MAX_SIDE}, got"
        f" {self.height}x{self.width}; use {near}"
      )
    stride = geometry.VIDEO_STRIDES[0]
    if not 1 <= self.frames <= MAX_FRAMES or (self.frames - 1) % stride:
      below = min(max(1, self.frames), MAX_FRAMES)
      below -= (below - 1) % stride
      problems.append(
        f"--frames: expected 1 + {stride}·k up to {MAX_FRAMES}, got"
        f" {self.frames}; use {below}"
      )
    if not 0.1 <= self.seconds <= 600:
      problems.append(f"--seconds: expected 0.1 to 600, got {self.seconds:g}")
    if not 0 <= self.eval_fraction < 1:
      problems.append(
        "--eval_fraction: expected a fraction in [0, 1), got"
        f" {self.eval_fraction:g}"
      )
    if not (self.max_upscale == 0 or self.max_upscale >= 1):
      problems.append(
        "--max_upscale: expected 0 (no limit) or 1 and more, got"
        f" {self.max_upscale:g}"
      )
    if self.num_workers < 0 or self.records_per_shard < 1:
      problems.append(
        "--num_workers: expected -1 or more, --records_per_shard: 1 or more,"
        f" got {self.num_workers} and {self.records_per_shard}"
      )
    if not self.clips.is_dir():
      problems.append(f"--clips: {self.clips} is not a folder")
    if self.captions and not pathlib.Path(self.captions).is_file():
      problems.append(f"--captions: {self.captions} is not a file")
    config_lib.check(problems, "")

  @property
  def folder(self) -> pathlib.Path:
    """The folder of the report and of an unfinished dataset's files."""
    if not isinstance(self.out, pathlib.Path):
      return pathlib.Path(f"{self.out.name}.import")
    return self.out.with_name(f"{self.out.name}.import")

  @property
  def length(self) -> float:
    """Seconds of a record."""
    return self.seconds if self.audio_only else self.frames / geometry.FPS


def frames_of(seconds: float) -> int:
  """The number of frames, 1 + 4·k, nearest to a length in seconds."""
  if not (math.isfinite(seconds) and seconds > 0):
    raise ValueError(f"--seconds: expected more than 0, got {seconds}")
  stride = geometry.VIDEO_STRIDES[0]
  return 1 + stride * max(0, round((seconds * geometry.FPS - 1) / stride))


def size_of(text: str) -> tuple[int, int]:
  """Parse a flag such as 512x992, or 64 for a square, as height and width.

  Raises:
    ValueError: it is no such text.
  """
  parts = text.lower().split("x")
  if len(parts) not in (1, 2) or not all(
    part.strip().isascii() and part.strip().isdecimal() and len(part) < 6
    for part in parts
  ):
    raise ValueError(f"--size: expected HEIGHTxWIDTH or SIDE, got {text!r}")
  return int(parts[0]), int(parts[-1])


def _near(side: int) -> int:
  """The side that is possible and nearest."""
  multiple = geometry.PIXEL_MULTIPLE
  return min(max(round(side / multiple), 1), MAX_SIDE // multiple) * multiple
