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

NAME = "audio_segments"
VERSION = 2
KIND = "clip"
THRESHOLDS = {
  "too quiet": ("volume_db", "min_volume_db"),
}
KINDS = ("long", "short")
_STEP_SECONDS = 0.02  # seconds that loudness is measured over
_SMOOTHING_STEPS = 10  # steps around a place that must be quiet to cut there
_MIN_POWER = 1e-12  # mean square of silence
_MAX_GAP_SECONDS = 60.0  # seconds without sound; behind more the file is over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
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
    begin = math.floor(self.start / _STEP_SECONDS + 1e-6)
    end = math.ceil((self.start + self.seconds) / _STEP_SECONDS - 1e-6)
    return power_T[begin:end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which windows are made.

  Attributes:
    kinds: of windows; "long", "short" or both.
    max_long_seconds: seconds of a long window.
    min_long_seconds: seconds; what is left over and shorter is not used.
    short_seconds: seconds of a short window.
    min_volume_db: dB below full scale, of the mean square.
  """

  kinds: tuple[str, ...] = KINDS
  max_long_seconds: float = 12.0
  min_long_seconds: float = 2.0
  short_seconds: float = 121 / 24
  min_volume_db: float = -60.0

  def __post_init__(self):
    object.__setattr__(self, "kinds", tuple(self.kinds))
    if not self.kinds or set(self.kinds) - set(KINDS):
      raise ValueError(
        f"audio_segments: expected kinds among {', '.join(KINDS)}, got {self.kinds}"
      )
    if (
      not 0 < self.min_long_seconds <= self.max_long_seconds / 2
      or self.short_seconds <= 0
    ):
      raise ValueError(
        "audio_segments: expected 0 < shortest <= longest / 2 and short > 0, got"
        f" {self.min_long_seconds}, {self.max_long_seconds} and {self.short_seconds}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for files."""

  def sounds(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    try:
      power_T = power_curve(decode.sweep_sound(media.path))
    except containers.DamagedError as error:
      return clips.Reject(
        clip=clip, stage=NAME, reason="damaged or no media", detail=str(error)
      )
    spans = list(_segments(power_T, config))
    if not spans:
      score = len(power_T) * _STEP_SECONDS
      return clips.Reject(
        clip=clip, stage=NAME, reason="too short", score=score
      )
    windows = [_window(clip, span) for span in spans]
    volumes = [volume_db(span.of(power_T)) for span in spans]
    kinds = [span.kind for span in spans]
    return [
      window.with_facts(NAME, {"volume_db": loud}, index=number, kind=kind)
      if loud >= config.min_volume_db
      else clips.Reject(clip=window, stage=NAME, reason="too quiet", score=loud)
      for number, (window, loud, kind) in enumerate(
        zip(windows, volumes, kinds, strict=True)
      )
    ]

  return sounds


def power_curve(parts: Iterator[tuple[float, np.ndarray]]) -> np.ndarray:
  """Mean square of every 20 ms of a file; gaps are silence.

  Args:
    parts: seconds from the beginning, and sound at 16 kHz, in order.
  """
  size = round(_STEP_SECONDS * geometry.SAMPLE_RATE)
  power, left, place = [], np.zeros(0, np.float32), 0
  for time, part_A in parts:
    gap = round(time * geometry.SAMPLE_RATE) - place - left.size
    if gap > _MAX_GAP_SECONDS * geometry.SAMPLE_RATE:
      break
    silence = np.zeros(max(0, gap), np.float32)
    left = np.concatenate([left, silence, part_A])
    whole = left.size // size * size
    if whole:
      blocks = left[:whole].reshape(-1, size).astype(np.float64)
      power.append(np.square(blocks).mean(-1))
      left, place = left[whole:], place + whole
  return np.concatenate(power) if power else np.zeros(0)


def volume_db(power_T: np.ndarray) -> float:
  """Decibels below full scale."""
  mean = float(power_T.mean()) if power_T.size else 0.0
  return round(10 * math.log10(max(mean, _MIN_POWER)), 4)


def _segments(power_T: np.ndarray, config: Config) -> Iterator[Segment]:
  """All windows, the long ones first."""
  total = len(power_T)
  if "long" in config.kinds:
    begin, longest = 0, int(config.max_long_seconds / _STEP_SECONDS)
    while (total - begin) * _STEP_SECONDS >= config.min_long_seconds:
      end = min(total, begin + longest)
      if end < total:
        end = _quietest(power_T, begin + longest // 2, end)
      start, seconds = begin * _STEP_SECONDS, (end - begin) * _STEP_SECONDS
      yield Segment(
        kind="long", start=round(start, 6), seconds=round(seconds, 6)
      )
      begin = end
  if "short" in config.kinds:
    for number in range(int(total * _STEP_SECONDS / config.short_seconds)):
      start = round(number * config.short_seconds, 6)
      yield Segment(kind="short", start=start, seconds=config.short_seconds)


def _quietest(power_T: np.ndarray, low: int, high: int) -> int:
  """The step from low to high with the quietest surroundings, the last one."""
  sums = np.concatenate([[0.0], np.cumsum(power_T)])
  places = np.arange(low, high + 1)
  before = np.maximum(places - _SMOOTHING_STEPS, 0)
  behind = np.minimum(places + _SMOOTHING_STEPS, len(power_T))
  around = (sums[behind] - sums[before]) / (behind - before)
  return int(places[len(around) - 1 - np.argmin(around[::-1])])


def _window(clip: clips.Clip, span: Segment) -> clips.Clip:
  """A window of a file, as a clip of its own."""
  return dataclasses.replace(
    clip,
    # Windows of both kinds may begin at once.
    id=f"{clip.id}-{round(span.start * 1000):09d}-{span.kind}",
    start=span.start,
    seconds=span.seconds,
  )
