"""A clip stage for tests: every line of a text file becomes a clip."""

import dataclasses
import hashlib

from ovi_jax.curation import clip as clips

VERSION = 1
KIND = "clip"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  lines: int = 100


def load(config):
  def split(clip, media):
    with open(media.path, "rb") as file:
      text = file.read()
    lines = text.decode().splitlines()[: config.lines]
    if not lines:
      return clips.Reject(clip=clip, stage="split", reason="empty")
    content = hashlib.sha256(text).hexdigest()[:12]
    return [
      dataclasses.replace(
        clip, id=f"{content}-{number}", start=float(number), seconds=1.0
      ).with_facts("split", text=line, place=(number,))
      for number, line in enumerate(lines)
    ]

  return split
