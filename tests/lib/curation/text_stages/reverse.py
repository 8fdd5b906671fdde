"""A batch stage for tests: reverses lines, fails as a whole."""

import ctypes
import dataclasses
import os

VERSION = 1
KIND = "batch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  mark: str = "!"
  missing: str = ""


def fingerprint(config):
  return {"mark": config.mark}


def load(config):
  if config.missing and not os.path.exists(config.missing):
    raise ValueError(f"reverse: no weights at {config.missing}")

  def reverse(pairs):
    texts = [media.read_artifact("text").decode() for _, media in pairs]
    if any("unturnable" in text for text in texts):
      raise ValueError(f"one of {len(texts)} cannot be turned")
    if len(texts) > 2 and any("large" in text for text in texts):
      raise MemoryError
    if any("explosive" in text for text in texts):
      ctypes.string_at(0)
    for (_, media), text in zip(pairs, texts, strict=True):
      media.save_artifact("turned", (text[::-1] + config.mark).encode())
    return [
      clip.with_facts("reverse", turned=text[::-1])
      for (clip, _), text in zip(pairs, texts, strict=True)
    ]

  return reverse
