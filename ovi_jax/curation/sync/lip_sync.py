"""SyncNet inputs from face crops and audio, and scores from embeddings.

As in `SyncNetInstance.py` of joonson/syncnet_python: video at 25 fps, BGR, 0 to
255; MFCC of int16-scaled audio, four columns per frame; windows of five frames.
Every face window is compared with audio windows up to 15 frames earlier and
later, zero-padded at the ends. Distances are float64.
"""

from typing import NamedTuple

import numpy as np

from ovi_jax.curation.faces import crops
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.sync import mfcc

MAX_OFFSET = 15  # frames in each direction
_SAMPLES = mfcc.RATE // crops.FPS  # per frame
_EPSILON = 1e-6  # torch adds it to differences before the norm


class Windows(NamedTuple):
  """Network inputs of one track.

  Attributes:
    frames_THWC: uint8 BGR; window t is frames t to t + 4.
    sound_TKM: float32 [windows, 13, 20].
  """

  frames_THWC: np.ndarray
  sound_TKM: np.ndarray


class Score(NamedTuple):
  """Lip sync score of a track.

  Attributes:
    offset: frames at 25 fps by which the audio is early; negative if late.
    confidence: median minus minimum of the distances over offsets.
    distance: the minimum.
  """

  offset: int
  confidence: float
  distance: float


def make_windows(track: crops.TrackCrops, samples_A: np.ndarray) -> Windows:
  """Build the windows of a track.

  Args:
    track: crops of the face.
    samples_A: int16, audio of the clip at 16 kHz.

  Returns:
    All windows that fit into video and audio except the last; possibly none.
  """
  start = track.first * _SAMPLES
  end = start + len(track.frames_THWC) * _SAMPLES
  audio_A = samples_A[start:end]
  frames = min(len(track.frames_THWC), len(audio_A) // _SAMPLES)
  # The last window is omitted, as in the original.
  count = max(0, frames - syncnet.WINDOW)
  frames_THWC = track.frames_THWC[: count + syncnet.WINDOW - 1, :, :, ::-1]
  if not count:
    empty = np.zeros((0, mfcc.COEFFICIENTS, syncnet.COLUMNS), np.float32)
    return Windows(frames_THWC[:0], empty)
  cepstra = mfcc.coefficients(audio_A).astype(np.float32)
  views = np.lib.stride_tricks.sliding_window_view(cepstra, syncnet.COLUMNS, 0)
  return Windows(frames_THWC, views[:: syncnet.STRIDE][:count])


def score(lips_TD: np.ndarray, sound_TD: np.ndarray) -> Score:
  """Find the offset with the smallest mean distance.

  Args:
    lips_TD: embeddings of the face windows, at least one.
    sound_TD: embeddings of the audio windows.
  """
  distances = distance_curve(lips_TD, sound_TD)
  best = int(distances.argmin())
  return Score(
    offset=MAX_OFFSET - best,
    confidence=float(np.median(distances) - distances[best]),
    distance=float(distances[best]),
  )


def distance_curve(lips_TD: np.ndarray, sound_TD: np.ndarray) -> np.ndarray:
  """Mean distance at each of 31 offsets, the earliest audio first."""
  count = len(lips_TD)
  lips_TD = np.asarray(lips_TD, np.float64)
  padded_TD = np.pad(
    np.asarray(sound_TD, np.float64), ((MAX_OFFSET,) * 2, (0, 0))
  )
  return np.array(
    [
      np.linalg.norm(lips_TD - padded_TD[s : s + count] + _EPSILON, axis=1)
      for s in range(2 * MAX_OFFSET + 1)
    ]
  ).mean(axis=1)
