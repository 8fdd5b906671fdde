"""What the trainer gets of a clip, as earlier stages left it.

In: a clip and its media. Out: bytes: mp4, JPEGs and PCM (int16 little-endian,
mono, 16 kHz). A clip that `cut` has not made is a sound alone.
"""

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.data import clips as samples

CUT = "cut"
VIDEO, SOUND, FRAME = "video.mp4", "audio.pcm", "frame_{}.jpg"
FRAMES = 7


def video(clip: clips.Clip, media: stage.Media) -> bytes | None:
  """The mp4; None of a sound alone; KeyError if `cut` did not keep it."""
  return media.kept(VIDEO) if CUT in clip.facts else None


def frames(clip: clips.Clip, media: stage.Media) -> list[bytes]:
  """JPEGs, evenly spaced; none of a sound alone; KeyError if not kept."""
  if CUT not in clip.facts:
    return []
  return [media.kept(FRAME.format(number)) for number in range(FRAMES)]


def sound(clip: clips.Clip, media: stage.Media) -> bytes:
  """PCM; b"" of a silent clip.

  Raises:
    KeyError: `cut` says that it kept it, and did not.
    ValueError, OSError: of a sound alone: its file cannot be read.
  """
  if CUT in clip.facts:
    there = SOUND in clip.facts[CUT]["kept"]
    return media.kept(SOUND) if there else b""
  try:
    return media.kept(SOUND)
  except KeyError:
    return samples.pcm(media.audio_A)
