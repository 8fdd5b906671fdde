"""Talking faces of the demo world, as SyncNet reads faces and their sound.

To train SyncNet on and to test it with, where there is no video of people: the
faces of `ovi_jax.data.world` fill the picture, so the whole of it is the face.
"""

import dataclasses

import numpy as np

from ovi_jax import geometry
from ovi_jax.curation.faces import crops
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.sync import mfcc
from ovi_jax.data.world import faces
from ovi_jax.data.world import scene
from ovi_jax.data.world import sounds

FRAMES = 121  # at 24 a second
_SIZES = (64, 96, 128)  # of the pictures, before they are enlarged
_STEP = mfcc.RATE // crops.FPS  # samples of a frame
_PICTURES = FRAMES * crops.FPS // geometry.FPS  # at 25 a second
_MAX_LEVEL = 32767


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A talking face.

  Attributes:
    scene: what it says, and when.
    size: rows and columns of the picture.
    samples_A: int16, its sound at 16 kHz.
  """

  scene: scene.Scene
  size: int
  samples_A: np.ndarray

  def frames(self, numbers: np.ndarray | None = None) -> np.ndarray:
    """Frames by number at 24 a second; all if none are given."""
    numbers = np.arange(FRAMES) if numbers is None else numbers
    return faces.render(self.scene, numbers / geometry.FPS, self.size)

  def track(self) -> crops.TrackCrops:
    """The face as the stages `people` and `cut` would find and cut it."""
    frames_THWC = self.frames()
    whole = tracks.full_frame(*frames_THWC.shape[:3])
    shown_THWC = frames_THWC[crops.nearest_frame(np.arange(_PICTURES))]
    (track,) = crops.crop_tracks(list(shown_THWC), [whole])
    return track

  def shift_audio(self, frames: int) -> np.ndarray:
    """The sound that many frames (of 25 a second) later, silence before it."""
    moved_A, by = np.zeros_like(self.samples_A), frames * _STEP
    if by >= 0:
      moved_A[by:] = self.samples_A[: len(moved_A) - by]
    else:
      moved_A[:by] = self.samples_A[-by:]
    return moved_A


def clip(seed: int, number: int) -> Clip:
  """The clip of a number; the same for the same seed."""
  random = np.random.default_rng((seed, number))
  seconds = FRAMES / geometry.FPS
  shown = faces.sample(random, seconds, still=False)
  wave_A = sounds.track(shown.events, int(seconds * mfcc.RATE), mfcc.RATE)
  return Clip(
    scene=shown,
    size=int(random.choice(_SIZES)),
    samples_A=np.rint(wave_A * _MAX_LEVEL).astype(np.int16),
  )


def sample_windows(
  made: Clip, random: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Windows to learn from, rather of where the sound changes.

  Args:
    made: the clip.
    random: draws the windows.
    count: windows of this clip.

  Returns:
    frames_BTHWC: uint8 BGR [count, 5, 224, 224, 3].
    windows_BTKM: float32 [count, 1, 13, 20].
  """
  cepstra = mfcc.coefficients(made.samples_A).astype(np.float32)
  views = np.lib.stride_tricks.sliding_window_view(cepstra, syncnet.COLUMNS, 0)
  windows_TKM = views[:: syncnet.STRIDE][: _PICTURES - syncnet.WINDOW]
  lively_T = windows_TKM[:, 0].std(axis=1) + 0.3
  starts = random.choice(
    len(windows_TKM), count, replace=False, p=lively_T / lively_T.sum()
  )
  numbers = starts[:, None] + np.arange(syncnet.WINDOW)
  # The frame of 24 a second that is shown at each moment.
  wanted, place = np.unique(crops.nearest_frame(numbers), return_inverse=True)
  frames_THWC = made.frames(wanted)
  box = tracks.full_frame(*frames_THWC.shape[:3])["boxes"][0]
  cut = np.stack([crops.crop(frame, box) for frame in frames_THWC])
  frames_BTHWC = cut[place.reshape(numbers.shape)][..., ::-1]
  return frames_BTHWC, windows_TKM[starts][:, None]
