"""Helpers of caption tests: numbered clips and their captions."""

import json
import pathlib

import numpy as np

from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import captions
from ovi_jax.data import clips as samples
from tests.lib.curation import caption_server as captioner

KEPT = [f"frame_{n}.jpg" for n in range(7)]


def spent(folder: pathlib.Path) -> tuple[int, int, int]:
  """Answers in a cache, tokens of their requests, tokens of themselves."""
  found = [json.loads(p.read_text()) for p in folder.glob("*/*.json")]
  tokens = [
    sum(each[name] for each in found) for name in ("tokens_in", "tokens_out")
  ]
  return len(found), *tokens


class Media:
  """Media of a clip, derived from its number."""

  def __init__(self, number, heard=True):
    self.audio_A = np.full(1600, number / 1000, np.float32)
    if not heard:
      self.audio_A = self.audio_A[:0]
    self.bytes = {name: f"{name} {number}".encode() for name in KEPT}
    self.bytes["audio.pcm"] = samples.pcm(self.audio_A)

  def read_artifact(self, name):
    return self.bytes[name]


def pair(number, seen=True, heard=True):
  """A clip and its media."""
  facts = {}
  if seen:
    facts["encode"] = {
      "artifacts": ["video.mp4", *KEPT, *["audio.pcm"] * heard]
    }
  made = clips.Clip(id=f"clip-{number}", path=f"{number}.mp4", facts=facts)
  return made, Media(number, heard)


def config(url, folder, **changes):
  return captions.Config(
    **{
      "url": url,
      "model": "m",
      "cache_dir": str(folder),
      "backoff_base": 0.001,
      "backoff_max": 0.01,
      **changes,
    }
  )


def captioned(url, folder, pairs, **changes):
  return captions.load(config(url, folder, **changes))(pairs)


def undisturbed(pairs, folder, **changes):
  """The outcomes of a server that is well."""
  with captioner.serving() as server:
    return captioned(server.url, folder, pairs, **changes)
