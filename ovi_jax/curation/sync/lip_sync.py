"""From a face and its sound to what SyncNet reads, and from there to a score.

As `SyncNetInstance.py` of joonson/syncnet_python prepares and compares: video
at 25 frames a second, BGR, 0 to 255; MFCC of sound in the range of int16, four
columns a frame; windows of five frames; every window of the face is compared
with the sounds up to 15 frames earlier and later, beyond the ends of which
there are zeros. Distances are float64.
"""

from typing import NamedTuple

import numpy as np

from ovi_jax.curation.faces import crops
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.sync import mfcc

MAX_OFFSET = 15  # frames either way
_SAMPLES = mfcc.RATE // crops.FPS  # a frame
_EPSILON = 1e-6  # that torch adds to differences before it takes their norm


class Windows(NamedTuple):
  """What the network reads of one track.

  Attributes:
    frames_THWC: uint8 BGR; window t is frames t to t + 4.
    sound_TKM: float32 [windows, 13, 20].
  """

  frames_THWC: np.ndarray
  sound_TKM: np.ndarray


class Score(NamedTuple):
  """How face and sound fit.

  Attributes:
    offset: frames at 25 a second by which the sound comes too early; negative
      if it comes too late.
    confidence: median less minimum of the distances over offsets.
    distance: the minimum.
  """

  offset: int
  confidence: float
  distance: float


def make_windows(track: crops.TrackCrops, samples_A: np.ndarray) -> Windows:
  """Prepare a track.

  Args:
    track: pictures of the face.
    samples_A: int16, the sound of the clip at 16 kHz.

  Returns:
    As many windows as picture and sound have room for, less one; none if they
    are too short.
  """
  start = track.first * _SAMPLES
  end = start + len(track.frames_THWC) * _SAMPLES
  heard_A = samples_A[start:end]
  frames = min(len(track.frames_THWC), len(heard_A) // _SAMPLES)
  # The last window that there is room for is left out, as in the original.
  count = max(0, frames - syncnet.WINDOW)
  frames_THWC = track.frames_THWC[: count + syncnet.WINDOW - 1, :, :, ::-1]
  if not count:
    empty = np.zeros((0, mfcc.COEFFICIENTS, syncnet.COLUMNS), np.float32)
    return Windows(frames_THWC[:0], empty)
  cepstra = mfcc.coefficients(heard_A).astype(np.float32)
  views = np.lib.stride_tricks.sliding_window_view(cepstra, syncnet.COLUMNS, 0)
  return Windows(frames_THWC, views[:: syncnet.STRIDE][:count])


def score(lips_TD: np.ndarray, sound_TD: np.ndarray) -> Score:
  """Find the offset at which the embeddings of a track are nearest.

  Args:
    lips_TD: of its windows, at least one.
    sound_TD: likewise.
  """
  distances = distance_curve(lips_TD, sound_TD)
  best = int(distances.argmin())
  return Score(
    offset=MAX_OFFSET - best,
    confidence=float(np.median(distances) - distances[best]),
    distance=float(distances[best]),
  )


def distance_curve(lips_TD: np.ndarray, sound_TD: np.ndarray) -> np.ndarray:
  """Mean distance at each of 31 places of the sound, the earliest first."""
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
