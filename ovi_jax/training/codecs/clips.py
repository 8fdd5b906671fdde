"""Sources of clips to train codecs on: a world, or a dataset with media.

A source is asked for a clip by number and gives what a task wants of it, cut
to size at a place drawn at random, or nothing if the clip lacks it.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol

import numpy as np

from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.synthetic import world as worlds

WORLD = "world"
NUMBERS = 2**30  # clips of a world that take part: more than are ever drawn
_FORM = f"{WORLD}:SEED, {WORLD}:SEED:WHAT or the folder of a dataset"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """What is taken of each clip; 0 and `False` are nothing.

  Attributes:
    frames: of the video, 1 + 4·k.
    samples: of the sound.
    caption: one of them.
  """

  frames: int = 0
  samples: int = 0
  caption: bool = False

  def __post_init__(self):
    odd = self.frames and self.frames % 4 != 1
    if min(self.frames, self.samples) < 0 or odd:
      raise ValueError(
        "data: num_frames must be 0 or 1 + a multiple of 4 and"
        " num_audio_samples 0 or more,"
        f" got {self.frames} and {self.samples}"
      )
    if not (self.frames or self.samples or self.caption):
      raise ValueError(
        "data: nothing is read of the clips; set frames, samples or tokenizer"
      )


class Crop(NamedTuple):
  """What was taken of a clip; `None` for what was not wanted.

  Attributes:
    frames_THWC: uint8.
    wave_A: float32 in [-1, 1] at 16 kHz.
    caption: one of the clip's.
  """

  frames_THWC: np.ndarray | None
  wave_A: np.ndarray | None
  caption: str | None


class CropPosition(NamedTuple):
  """Where a crop is taken, each in [0, 1): drawn at random."""

  video: float
  audio: float
  caption: float


class Source(Protocol):
  """Clips by number."""

  @property
  def identity(self) -> str:
    """The same for the same clips, wherever they lie."""
    ...

  def __len__(self) -> int: ...

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    """A crop, or `None` of a clip that lacks what is wanted or is shorter."""
    ...


@dataclasses.dataclass(frozen=True)
class World:
  """Clips of a world, drawn when they are asked for; only the frames wanted."""

  world: worlds.World

  @property
  def identity(self) -> str:
    return f"{WORLD}:{self.world.seed}:{self.world.what}"

  def __len__(self) -> int:
    return NUMBERS

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    part = _part(place.video, self.world.frames, wanted.frames or 1)
    made = self.world.clip(number, part, sound=bool(wanted.samples))
    return _crop(
      wanted, place, made.frames_THWC, made.wave_A, tuple(made.captions)
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Records with mp4 and PCM."""

  split: builder.Split

  @property
  def identity(self) -> str:
    return self.split.identity

  def __len__(self) -> int:
    return len(self.split)

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    record = self.split[number]
    frames_THWC, wave_A = None, None
    if wanted.frames and record.video is not None:
      part = _part(place.video, record.frames, wanted.frames)
      frames_THWC = clips.frames(record)[part]
    if wanted.samples and record.audio is not None:
      wave_A = clips.wave(record)
    return _crop(wanted, place, frames_THWC, wave_A, record.captions)


def opened(name: str, split: str) -> Source:
  """The source that a config names.

  Args:
    name: `world:SEED` (`world:SEED:WHAT` for what else it has), or a folder.
    split: of a dataset; a world has none.

  Raises:
    ValueError: there is no such world or dataset.
  """
  kind, *rest = name.split(":")
  if kind != WORLD:
    if not name:
      raise ValueError(f"data.sources: expected {_FORM}, got an empty name")
    return Dataset(builder.read(name, split))
  try:
    seed, what = (*rest, worlds.World.what)[:2]
    return World(worlds.World(seed=int(seed), what=what))
  except ValueError as error:
    raise ValueError(
      f"data.sources: expected {_FORM}, got {name!r} ({error})"
    ) from error


def _part(share: float, have: int, want: int) -> slice:
  """`want` of `have` in a row; all, where that is fewer."""
  start = int(share * max(1, have - want + 1))
  return slice(start, start + want)


def _crop(
  wanted: ClipSpec,
  place: CropPosition,
  frames_THWC: np.ndarray | None,
  wave_A: np.ndarray | None,
  captions: Sequence[str],
) -> Crop | None:
  """What is wanted, of frames that are cut and a wave that is not."""
  video, audio, caption = None, None, None
  if wanted.frames:
    if frames_THWC is None or len(frames_THWC) < wanted.frames:
      return None
    video = frames_THWC
  if wanted.samples:
    if wave_A is None or len(wave_A) < wanted.samples:
      return None
    audio = wave_A[_part(place.audio, len(wave_A), wanted.samples)]
  if wanted.caption:
    caption = captions[int(place.caption * len(captions))]
  return Crop(video, audio, caption)
