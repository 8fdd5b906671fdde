"""Of files with the same content, the first; the others are refused.

In: the files of all shards, whose ids are hashes of their content. Out: each
once, that whose name comes first in the numbering.
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
  """Nothing to choose."""


def load(config: Config) -> Callable:
  """The stage; see `stage` for its form."""
  del config
  return _decide


def _decide(
  every: Iterator[clips.Clip],
) -> Callable[[clips.Clip], clips.Clip | clips.Reject]:
  """Remember who came first; the decision asks for it."""
  first: dict[str, tuple[str, float]] = {}
  for clip in every:
    first.setdefault(clip.id, (clip.path, clip.start))

  def decide(clip: clips.Clip) -> clips.Clip | clips.Reject:
    path, start = first[clip.id]
    if (path, start) == (clip.path, clip.start):
      return clip
    return clips.Reject(
      clip=clip, stage=NAME, reason="a copy of another", detail=path
    )

  return decide
