"""A clip stage for tests: length and kind of a line, scripted failures."""

import ctypes
import dataclasses
import errno
import pathlib
import tempfile
import time

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage

VERSION = 1
KIND = "clip"
THRESHOLDS = {"too short": ("length", "least")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  least: int = 3
  seen: str = ""  # a file that gets a line for each clip
  delay: float = 0.0

  def __post_init__(self):
    if self.least < 0:
      raise ValueError(f"measure.least must not be negative, got {self.least}")


def fingerprint(config):
  return {"least": config.least}


def load(config):
  def measure(clip, media):
    text = clip.facts["split"]["text"]
    if config.seen:
      with pathlib.Path(config.seen).open("a") as file:
        file.write(f"{text}\n")
    time.sleep(config.delay)
    word = text.split()[0] if text else ""
    if word == "hang":
      ctypes.PyDLL(None).sleep(600)  # holds the interpreter as it sleeps
    elif word == "litter":
      tempfile.mkstemp()
      ctypes.string_at(0)
    elif word == "crash":
      ctypes.string_at(0)
    elif word == "raise":
      raise ValueError(f"what is {text!r}?")
    elif word == "full":
      raise OSError(errno.ENOSPC, "no space left")
    elif word == "huge":
      raise MemoryError("9 TB")
    elif word == "strange":
      return clip.with_facts("measure", value=object())
    elif word == "away":
      raise stage.Unavailable("the backend is unavailable")
    if len(text) < config.least:
      return clips.Reject(
        clip=clip, stage="measure", reason="too short", score=float(len(text))
      )
    media.save_artifact("text", text.encode())
    return clip.with_facts(
      "measure",
      {"length": float(len(text))},
      kind=word,
      came=type(clip.facts["split"]["place"]).__name__,
    )

  return measure
