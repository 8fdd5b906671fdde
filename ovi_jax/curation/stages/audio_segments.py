"""Windows of files of sound alone.

In: a file. Out: its windows, of two kinds: "long", up to 12 s, cut where it is
quietest, one behind the other; and "short", of a clip's length, back to back.
Windows that are too quiet are refused, each by itself. The file is decoded
once, in parts.
"""

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Iterator

import numpy as np

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.media import container as containers
from ovi_jax.media import decode

NAME = "sounds"
VERSION = 2
KIND = "clip"
BOUNDS = {
  "too quiet": ("volume_db", "least_volume"),
}
KINDS = ("long", "short")
_STEP = 0.02  # seconds that loudness is measured over
_PAUSE = 10  # steps around a place that must be quiet to cut there
_FLOOR = 1e-12  # mean square of silence
_LONGEST_GAP = 60.0  # seconds without sound; behind more the file is over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """A window to be.

  Attributes:
    kind: "long" or "short".
    start: seconds from the file's beginning.
    seconds: its length.
  """

  kind: str
  start: float
  seconds: float

  def of(self, power_T: np.ndarray) -> np.ndarray:
    """The steps that lie in it."""
    begin = math.floor(self.start / _STEP + 1e-6)
    end = math.ceil((self.start + self.seconds) / _STEP - 1e-6)
    return power_T[begin:end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which windows are made.

  Attributes:
    kinds: of windows; "long", "short" or both.
    longest: seconds of a long window.
    shortest: seconds; what is left over and shorter is not used.
    short: seconds of a short window.
    least_volume: dB below full scale, of the mean square.
  """

  kinds: tuple[str, ...] = KINDS
  longest: float = 12.0
  shortest: float = 2.0
  short: float = 121 / 24
  least_volume: float = -60.0

  def __post_init__(self):
    object.__setattr__(self, "kinds", tuple(self.kinds))
    if not self.kinds or set(self.kinds) - set(KINDS):
      raise ValueError(
        f"sounds: expected kinds among {', '.join(KINDS)}, got {self.kinds}"
      )
    if not 0 < self.shortest <= self.longest / 2 or self.short <= 0:
      raise ValueError(
        "sounds: expected 0 < shortest <= longest / 2 and short > 0, got"
        f" {self.shortest}, {self.longest} and {self.short}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for files."""

  def sounds(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    try:
      power_T = powers(decode.sweep_sound(media.path))
    except containers.DamagedError as error:
      return clips.Reject(
        clip=clip, stage=NAME, reason="damaged or no media", detail=str(error)
      )
    spans = list(_spans(power_T, config))
    if not spans:
      score = len(power_T) * _STEP
      return clips.Reject(
        clip=clip, stage=NAME, reason="too short", score=score
      )
    windows = [_window(clip, span) for span in spans]
    volumes = [volume(span.of(power_T)) for span in spans]
    kinds = [span.kind for span in spans]
    return [
      window.found(NAME, {"volume_db": loud}, number=number, kind=kind)
      if loud >= config.least_volume
      else clips.Reject(clip=window, stage=NAME, reason="too quiet", score=loud)
      for number, (window, loud, kind) in enumerate(
        zip(windows, volumes, kinds, strict=True)
      )
    ]

  return sounds


def powers(parts: Iterator[tuple[float, np.ndarray]]) -> np.ndarray:
  """Mean square of every 20 ms of a file; gaps are silence.

  Args:
    parts: seconds from the beginning, and sound at 16 kHz, in order.
  """
  size = round(_STEP * geometry.SAMPLE_RATE)
  power, left, place = [], np.zeros(0, np.float32), 0
  for time, part_A in parts:
    gap = round(time * geometry.SAMPLE_RATE) - place - left.size
    if gap > _LONGEST_GAP * geometry.SAMPLE_RATE:
      break
    silence = np.zeros(max(0, gap), np.float32)
    left = np.concatenate([left, silence, part_A])
    whole = left.size // size * size
    if whole:
      blocks = left[:whole].reshape(-1, size).astype(np.float64)
      power.append(np.square(blocks).mean(-1))
      left, place = left[whole:], place + whole
  return np.concatenate(power) if power else np.zeros(0)


def volume(power_T: np.ndarray) -> float:
  """Decibels below full scale."""
  mean = float(power_T.mean()) if power_T.size else 0.0
  return round(10 * math.log10(max(mean, _FLOOR)), 4)


def _spans(power_T: np.ndarray, config: Config) -> Iterator[Span]:
  """All windows, the long ones first."""
  total = len(power_T)
  if "long" in config.kinds:
    begin, longest = 0, int(config.longest / _STEP)
    while (total - begin) * _STEP >= config.shortest:
      end = min(total, begin + longest)
      if end < total:
        end = _quietest(power_T, begin + longest // 2, end)
      start, seconds = begin * _STEP, (end - begin) * _STEP
      yield Span(kind="long", start=round(start, 6), seconds=round(seconds, 6))
      begin = end
  if "short" in config.kinds:
    for number in range(int(total * _STEP / config.short)):
      start = round(number * config.short, 6)
      yield Span(kind="short", start=start, seconds=config.short)


def _quietest(power_T: np.ndarray, low: int, high: int) -> int:
  """The step from low to high with the quietest surroundings, the last one."""
  sums = np.concatenate([[0.0], np.cumsum(power_T)])
  places = np.arange(low, high + 1)
  before = np.maximum(places - _PAUSE, 0)
  behind = np.minimum(places + _PAUSE, len(power_T))
  around = (sums[behind] - sums[before]) / (behind - before)
  return int(places[len(around) - 1 - np.argmin(around[::-1])])


def _window(clip: clips.Clip, span: Span) -> clips.Clip:
  """A window of a file, as a clip of its own."""
  return dataclasses.replace(
    clip,
    # Windows of both kinds may begin at once.
    id=f"{clip.id}-{round(span.start * 1000):09d}-{span.kind}",
    start=span.start,
    seconds=span.seconds,
  )
