"""Reads the artifacts that `encode` stores for a clip.

Returns bytes: mp4, JPEGs and PCM (int16 little-endian, mono, 16 kHz). A clip
without a stored mp4 is audio only.
"""

import itertools
from collections.abc import Sequence

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.data import clips as samples

ENCODE = "encode"
VIDEO, AUDIO, FACES = "video.mp4", "audio.pcm", "faces.npz"
FRAME = "frame_{}.jpg"
NUM_FRAMES = 7  # default of `encode`


def video(clip: clips.Clip, media: stage.Media) -> bytes | None:
  """The mp4; None for audio only; KeyError if it is missing."""
  return media.read_artifact(VIDEO) if VIDEO in _names(clip) else None


def frames(clip: clips.Clip, media: stage.Media) -> list[bytes]:
  """All JPEGs, evenly spaced; none for audio only; KeyError if missing."""
  every = map(FRAME.format, itertools.count())
  names = set(_names(clip))
  return [
    media.read_artifact(n)
    for n in itertools.takewhile(names.__contains__, every)
  ]


def audio(clip: clips.Clip, media: stage.Media) -> bytes:
  """PCM; b"" for a clip without audio.

  Raises:
    KeyError: the artifact is missing.
    ValueError, OSError: the audio of a clip without artifacts is unreadable.
  """
  if ENCODE in clip.facts:
    return media.read_artifact(AUDIO) if AUDIO in _names(clip) else b""
  return samples.pcm(media.audio_A)


def _names(clip: clips.Clip) -> Sequence[str]:
  """Names of the stored artifacts."""
  return clip.facts.get(ENCODE, {}).get("artifacts", ())
