"""What a file is, from its header, its first frame and its bytes.

In: a file. Out: the file with its content's hash as id and what it holds, or
why nothing can be made of it. Only the first frame is decoded. Copies of a file
get the same id; leaving them out needs all files and is done where they meet.
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
BOUNDS = {
  "too short": ("duration", "least_seconds"),
  "too small": ("area", "least_area"),
  "too large": ("area", "largest_area"),
  "too long and narrow": ("aspect", "largest_aspect"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What a file must have.

  Attributes:
    video: it must have pictures; without, sound alone will do.
    audio: it must have sound.
    least_seconds: by its header.
    least_area: pixels of an upright frame.
    largest_area: likewise; frames of more may not fit into memory.
    largest_aspect: the longer side over the shorter.
    interlaced: files whose first frame is interlaced are taken.
    hdr: files in PQ or HLG are taken; they are made SDR when read.
  """

  video: bool = True
  audio: bool = True
  least_seconds: float = 5.0
  least_area: int = 720 * 720
  largest_area: int = 8192 * 8192
  largest_aspect: float = 4.0
  interlaced: bool = False
  hdr: bool = True

  def __post_init__(self):
    if not (self.video or self.audio):
      raise ValueError("probe: expected video, audio or both to be wanted")
    if not 0 < self.least_area <= self.largest_area:
      raise ValueError(
        "probe: expected 0 < least_area <= largest_area, got"
        f" {self.least_area} and {self.largest_area}"
      )
    if self.least_seconds < 0 or self.largest_aspect < 1:
      raise ValueError(
        "probe: expected least_seconds >= 0 and largest_aspect >= 1, got"
        f" {self.least_seconds} and {self.largest_aspect}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for files."""

  def probe(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    if not os.path.getsize(media.path):
      return _reject(clip, "empty file")
    content = containers.digest(media.path)
    try:
      facts = probing.read(media.path, config.video)
    except containers.DamagedError as error:
      return _reject(clip, "damaged or no media", detail=str(error))
    problem = _problem(facts, config)
    if problem is not None:
      reason, score = problem
      return _reject(clip, reason, score, facts.unsupported)
    known = dataclasses.asdict(facts)
    del known["unsupported"], known["interlaced"]
    found = dataclasses.replace(clip, id=content, seconds=facts.duration)
    return found.found(NAME, content=content, **known)

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
  """Why a file is refused, and the score by which; None if it is not."""
  width, height = facts.width, facts.height
  area = width * height
  if config.video and not facts.has_video:
    return "no video", None
  if config.audio and not facts.has_audio:
    return "no sound", None
  if facts.unsupported or (facts.hdr and not config.hdr):
    return "unsupported colours", None
  if facts.interlaced and not config.interlaced:
    return "interlaced", None
  if facts.duration < config.least_seconds:
    return "too short", facts.duration
  if not facts.has_video:
    return None
  if area < config.least_area:
    return "too small", float(area)
  if area > config.largest_area:
    return "too large", float(area)
  aspect = max(width, height) / min(width, height)
  if aspect > config.largest_aspect:
    return "too long and narrow", aspect
  return None
