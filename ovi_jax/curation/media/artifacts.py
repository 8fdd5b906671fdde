"""What the trainer gets of a clip, as earlier stages left it.

In: a clip and its media. Out: bytes: mp4, JPEGs and PCM (int16 little-endian,
mono, 16 kHz). A clip of which `cut` kept no mp4 is a sound alone.
"""

import itertools
from collections.abc import Sequence

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.data import clips as samples

ENCODE = "encode"
VIDEO, AUDIO, FACES = "video.mp4", "audio.pcm", "faces.npz"
FRAME = "frame_{}.jpg"
NUM_FRAMES = 7  # unless `cut` was told to keep others


def video(clip: clips.Clip, media: stage.Media) -> bytes | None:
  """The mp4; None of a sound alone; KeyError if `cut` did not keep it."""
  return media.read_artifact(VIDEO) if VIDEO in _names(clip) else None


def frames(clip: clips.Clip, media: stage.Media) -> list[bytes]:
  """All JPEGs, evenly spaced; none of a sound alone; KeyError if not kept."""
  every = map(FRAME.format, itertools.count())
  names = set(_names(clip))
  return [
    media.read_artifact(n)
    for n in itertools.takewhile(names.__contains__, every)
  ]


def audio(clip: clips.Clip, media: stage.Media) -> bytes:
  """PCM; b"" of a silent clip.

  Raises:
    KeyError: `cut` says that it kept it, and did not.
    ValueError, OSError: a sound that was not cut cannot be read.
  """
  if ENCODE in clip.facts:
    return media.read_artifact(AUDIO) if AUDIO in _names(clip) else b""
  return samples.pcm(media.audio_A)


def _names(clip: clips.Clip) -> Sequence[str]:
  """What `cut` says that it kept."""
  return clip.facts.get(ENCODE, {}).get("artifacts", ())
