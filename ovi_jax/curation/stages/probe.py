"""Reads what a file is: header, first frame and content hash.

The clip's id becomes the sha256 of the content, so copies share an id; `dedup`
removes them. Only the first frame is decoded.
"""

import dataclasses
import os
from collections.abc import Callable

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.media import container as containers
from ovi_jax.media import probe as probing

NAME = "probe"
VERSION = 1
KIND = "clip"
THRESHOLDS = {
  "too short": ("duration", "min_seconds"),
  "too small": ("area", "min_area"),
  "too large": ("area", "max_area"),
  "too long and narrow": ("aspect", "max_aspect_ratio"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Requirements of a file.

  Attributes:
    require_video: reject files without video.
    require_audio: reject files without audio.
    min_seconds: minimum duration in the header.
    min_area: minimum frame area, pixels.
    max_area: maximum frame area; larger frames may not fit into memory.
    max_aspect_ratio: longer side over shorter side.
    allow_interlaced: accept files whose first frame is interlaced.
    allow_hdr: accept PQ and HLG; decoding converts them to SDR.
  """

  require_video: bool = True
  require_audio: bool = True
  min_seconds: float = 5.0
  min_area: int = 720 * 720
  max_area: int = 8192 * 8192
  max_aspect_ratio: float = 4.0
  allow_interlaced: bool = False
  allow_hdr: bool = True

  def __post_init__(self):
    if not (self.require_video or self.require_audio):
      raise ValueError("probe: expected require_video, require_audio or both")
    if not 0 < self.min_area <= self.max_area:
      raise ValueError(
        "probe: expected 0 < min_area <= max_area, got"
        f" {self.min_area} and {self.max_area}"
      )
    if self.min_seconds < 0 or self.max_aspect_ratio < 1:
      raise ValueError(
        "probe: expected min_seconds >= 0 and max_aspect_ratio >= 1, got"
        f" {self.min_seconds} and {self.max_aspect_ratio}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""

  def probe(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    if not os.path.getsize(media.path):
      return _reject(clip, "empty file")
    content = containers.digest(media.path)
    try:
      facts = probing.read(media.path, config.require_video)
    except containers.DamagedError as error:
      return _reject(clip, "damaged or no media", detail=str(error))
    problem = _problem(facts, config)
    if problem is not None:
      reason, score = problem
      return _reject(clip, reason, score, facts.unsupported)
    known = dataclasses.asdict(facts)
    del known["unsupported"], known["interlaced"]
    found = dataclasses.replace(clip, id=content, seconds=facts.duration)
    return found.with_facts(NAME, sha256=content, **known)

  return probe


def _reject(
  clip: clips.Clip, reason: str, score: float | None = None, detail: str = ""
) -> clips.Reject:
  return clips.Reject(
    clip=clip, stage=NAME, reason=reason, score=score, detail=detail
  )


def _problem(
  facts: probing.Facts, config: Config
) -> tuple[str, float | None] | None:
  """The reject reason and score; None if the file passes."""
  width, height = facts.width, facts.height
  area = width * height
  if config.require_video and not facts.has_video:
    return "no video", None
  if config.require_audio and not facts.has_audio:
    return "no sound", None
  if facts.unsupported or (facts.hdr and not config.allow_hdr):
    return "unsupported colours", None
  if facts.interlaced and not config.allow_interlaced:
    return "interlaced", None
  if facts.duration < config.min_seconds:
    return "too short", facts.duration
  if not facts.has_video:
    return None
  if area < config.min_area:
    return "too small", float(area)
  if area > config.max_area:
    return "too large", float(area)
  aspect = max(width, height) / min(width, height)
  if aspect > config.max_aspect_ratio:
    return "too long and narrow", aspect
  return None
