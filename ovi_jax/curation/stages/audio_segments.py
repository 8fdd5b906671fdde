"""Splits audio files into windows.

Windows are "long" (up to 12 s, cut at quiet points, consecutive) or "short" (of
a clip's length, back to back). Windows below the volume threshold are rejected
singly. The file is decoded once, in parts.
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
_STEP_SECONDS = 0.02  # resolution of the power curve
_SMOOTHING_STEPS = 10  # averaged on each side of a cut
_MIN_POWER = 1e-12  # mean square of silence
_MAX_GAP_SECONDS = 60.0  # a longer gap ends the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
  """A window.

  Attributes:
    kind: "long" or "short".
    start: start in the file, seconds.
    seconds: length.
  """

  kind: str
  start: float
  seconds: float

  def slice_power(self, power_T: np.ndarray) -> np.ndarray:
    """The part of the power curve within it."""
    begin = math.floor(self.start / _STEP_SECONDS + 1e-6)
    end = math.ceil((self.start + self.seconds) / _STEP_SECONDS - 1e-6)
    return power_T[begin:end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Window lengths.

  Attributes:
    kinds: window kinds: "long", "short" or both.
    max_long_seconds: maximum length of a long window.
    min_long_seconds: minimum length; a shorter remainder is dropped.
    short_seconds: length of a short window.
    min_volume_db: mean square level in dB full scale.
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
        f"audio_segments: expected kinds among {', '.join(KINDS)}, got"
        f" {self.kinds}"
      )
    if (
      not 0 < self.min_long_seconds <= self.max_long_seconds / 2
      or self.short_seconds <= 0
    ):
      raise ValueError(
        "audio_segments: expected 0 < min_long_seconds <= max_long_seconds / 2"
        f" and short_seconds > 0, got {self.min_long_seconds},"
        f" {self.max_long_seconds} and {self.short_seconds}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""

  def split(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    try:
      power_T = power_curve(decode.sweep_sound(media.path))
    except containers.DamagedError as error:
      return clips.Reject(
        clip=clip, stage=NAME, reason="damaged or no media", detail=str(error)
      )
    segments = list(_segments(power_T, config))
    if not segments:
      score = len(power_T) * _STEP_SECONDS
      return clips.Reject(
        clip=clip, stage=NAME, reason="too short", score=score
      )
    windows = [_window(clip, segment) for segment in segments]
    volumes = [volume_db(segment.slice_power(power_T)) for segment in segments]
    kinds = [segment.kind for segment in segments]
    return [
      window.with_facts(NAME, {"volume_db": level}, index=number, kind=kind)
      if level >= config.min_volume_db
      else clips.Reject(
        clip=window, stage=NAME, reason="too quiet", score=level
      )
      for number, (window, level, kind) in enumerate(
        zip(windows, volumes, kinds, strict=True)
      )
    ]

  return split


def power_curve(parts: Iterator[tuple[float, np.ndarray]]) -> np.ndarray:
  """Mean square of every 20 ms of a file; gaps are silence.

  Args:
    parts: start times in seconds and audio at 16 kHz, in order.
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
  """Mean level in dB full scale."""
  mean = float(power_T.mean()) if power_T.size else 0.0
  return round(10 * math.log10(max(mean, _MIN_POWER)), 4)


def _segments(power_T: np.ndarray, config: Config) -> Iterator[Segment]:
  """All windows, long ones first."""
  total = len(power_T)
  if "long" in config.kinds:
    begin, max_steps = 0, int(config.max_long_seconds / _STEP_SECONDS)
    while (total - begin) * _STEP_SECONDS >= config.min_long_seconds:
      end = min(total, begin + max_steps)
      if end < total:
        end = _quietest(power_T, begin + max_steps // 2, end)
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
  """The last of the quietest steps from low to high, after smoothing."""
  sums = np.concatenate([[0.0], np.cumsum(power_T)])
  steps = np.arange(low, high + 1)
  before = np.maximum(steps - _SMOOTHING_STEPS, 0)
  behind = np.minimum(steps + _SMOOTHING_STEPS, len(power_T))
  around = (sums[behind] - sums[before]) / (behind - before)
  return int(steps[len(around) - 1 - np.argmin(around[::-1])])


def _window(clip: clips.Clip, segment: Segment) -> clips.Clip:
  """A window of a file, as a clip."""
  return dataclasses.replace(
    clip,
    # Windows of both kinds may have the same start.
    id=f"{clip.id}-{round(segment.start * 1000):09d}-{segment.kind}",
    start=segment.start,
    seconds=segment.seconds,
  )
