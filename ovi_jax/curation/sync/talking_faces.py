"""Synthetic talking faces as SyncNet training data.

Used to train and test SyncNet without videos of people. The faces of
`ovi_jax.synthetic.world` fill the frame, so the whole frame is the face.
"""

import dataclasses

import numpy as np

from ovi_jax import geometry
from ovi_jax.curation.faces import crops
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.sync import mfcc
from ovi_jax.synthetic.world import faces
from ovi_jax.synthetic.world import scene
from ovi_jax.synthetic.world import sounds

FRAMES = 121  # at 24 a second
_SIZES = (64, 96, 128)  # of frames, before upscaling
_STEP = mfcc.RATE // crops.FPS  # samples per frame
_PICTURES = FRAMES * crops.FPS // geometry.FPS  # at 25 a second
_MAX_LEVEL = 32767


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A talking face.

  Attributes:
    scene: the spoken events and their times.
    size: height and width of the frame.
    samples_A: int16, audio at 16 kHz.
  """

  scene: scene.Scene
  size: int
  samples_A: np.ndarray

  def frames(self, numbers: np.ndarray | None = None) -> np.ndarray:
    """Frames by index at 24 fps; all by default."""
    numbers = np.arange(FRAMES) if numbers is None else numbers
    return faces.render(self.scene, numbers / geometry.FPS, self.size)

  def track(self) -> crops.TrackCrops:
    """The face crops, as made by `face_tracks` and `encode`."""
    frames_THWC = self.frames()
    whole = tracks.full_frame(*frames_THWC.shape[:3])
    shown_THWC = frames_THWC[crops.nearest_frame(np.arange(_PICTURES))]
    (track,) = crops.crop_tracks(list(shown_THWC), [whole])
    return track

  def shift_audio(self, frames: int) -> np.ndarray:
    """The audio delayed by frames at 25 fps, padded with silence."""
    moved_A, by = np.zeros_like(self.samples_A), frames * _STEP
    if by >= 0:
      moved_A[by:] = self.samples_A[: len(moved_A) - by]
    else:
      moved_A[:by] = self.samples_A[-by:]
    return moved_A


def clip(seed: int, number: int) -> Clip:
  """The clip of an index; deterministic per seed."""
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
  """Sample training windows, preferring those in which the audio changes.

  Args:
    made: the clip.
    random: random generator.
    count: number of windows.

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
  # The frames at 24 fps nearest to those at 25 fps.
  wanted, place = np.unique(crops.nearest_frame(numbers), return_inverse=True)
  frames_THWC = made.frames(wanted)
  box = tracks.full_frame(*frames_THWC.shape[:3])["boxes"][0]
  cut = np.stack([crops.crop(frame, box) for frame in frames_THWC])
  frames_BTHWC = cut[place.reshape(numbers.shape)][..., ::-1]
  return frames_BTHWC, windows_TKM[starts][:, None]
