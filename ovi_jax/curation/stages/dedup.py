"""Removes files with identical content.

Of files with the same content hash, the first in the manifest passes; the
others are rejected.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator

from ovi_jax.curation import clip as clips

NAME = "dedup"
VERSION = 1
KIND = "global"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """This stage has no settings."""


def load(config: Config) -> Callable:
  """The stage function."""
  del config
  return _decide


def _decide(
  all_clips: Iterator[clips.Clip],
) -> Callable[[clips.Clip], clips.Clip | clips.Reject]:
  """Record the first file of each hash, then decide."""
  first: dict[str, tuple[str, float]] = {}
  for clip in all_clips:
    first.setdefault(clip.id, (clip.path, clip.start))

  def decide(clip: clips.Clip) -> clips.Clip | clips.Reject:
    path, start = first[clip.id]
    if (path, start) == (clip.path, clip.start):
      return clip
    return clips.Reject(clip=clip, stage=NAME, reason="duplicate", detail=path)

  return decide
