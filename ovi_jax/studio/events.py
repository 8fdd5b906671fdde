"""When something happens in a clip: peaks of motion, and onsets of sound.

Motion is the mean absolute difference of frames, of small ones. Its local
maxima that are higher than most of the clip are the picture's events; those of
the sound are where sounds begin (`evaluation.onsets`).
"""

import pathlib
from typing import Any

import numpy as np

from ovi_jax import geometry
from ovi_jax.evaluation import onsets
from ovi_jax.evaluation import rules
from ovi_jax.media import decode
from ovi_jax.media import probe
from ovi_jax.modality import AV

MAX_SECONDS = 120.0  # of a clip
_SIDE = 64  # pixels
_APART = 0.2  # seconds between two events
_STILL = 0.5  # levels of 255 that are no motion


def find(path: pathlib.Path) -> AV[list[float]]:
  """Events of a clip.

  Args:
    path: of an mp4 or a wav.

  Returns:
    Seconds of the events of each modality that the clip has.

  Raises:
    ValueError: the file is damaged, or longer than `MAX_SECONDS`.
  """
  facts, seconds = probe.read(path), probe.seconds(path)
  if seconds > MAX_SECONDS:
    raise ValueError(
      f"events are found in clips of at most {MAX_SECONDS:g} s, this one has"
      f" {seconds:.0f}"
    )
  video: Any = None
  audio: Any = None
  if facts.has_video:
    frames = decode.frames(
      path, 0.0, max(1, round(seconds * geometry.FPS)), _small
    )
    motion_T, before = [], None
    for frame_HWC in frames:
      now = frame_HWC.astype(np.float32)
      motion_T.append(0.0 if before is None else np.abs(now - before).mean())
      before = now
    video = peaks(np.array(motion_T), geometry.FPS)
  if facts.has_audio:
    wave_A = decode.audio(path, 0.0, seconds)
    audio = [float(t) for t in onsets.times(wave_A, geometry.SAMPLE_RATE)]
  return AV(video, audio)


def _small(rows: int, columns: int) -> tuple[int, int]:
  scale = min(1.0, _SIDE / max(rows, columns))
  return max(1, round(rows * scale)), max(1, round(columns * scale))


def peaks(motion_T: np.ndarray, fps: float) -> list[float]:
  """Seconds of the peaks of motion, of near ones the highest.

  Args:
    motion_T: difference of each frame from the one before, in levels of 255.
    fps: frames a second.
  """
  if not len(motion_T):
    return []
  least = max(_STILL, float(motion_T.mean() + motion_T.std()))
  kept: list[int] = []
  for place in sorted(
    rules.local_maxima(motion_T, least), key=lambda t: -motion_T[t]
  ):
    if all(abs(place - other) >= _APART * fps for other in kept):
      kept.append(place)
  return [place / fps for place in sorted(kept)]
