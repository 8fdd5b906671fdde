"""Inputs of SyncNet, and the offset from its distances."""

import numpy as np
import pytest

from ovi_jax.curation.faces import crops
from ovi_jax.curation.sync import lip_sync
from ovi_jax.curation.sync import mfcc


def track(frames: int, first: int = 0) -> crops.TrackCrops:
  """Pictures that are as red as their number."""
  frames_THWC = np.zeros((frames, 224, 224, 3), np.uint8)
  frames_THWC[..., 0] = np.arange(frames)[:, None, None]
  return crops.TrackCrops(first=first, frames_THWC=frames_THWC)


def noise(frames: int) -> np.ndarray:
  random = np.random.default_rng(0)
  return random.integers(-9000, 9000, frames * 640).astype(np.int16)


def test_windows_equal_the_originals():
  samples_A = noise(40)
  made = lip_sync.make_windows(track(40), samples_A)
  # One less than there is room for.
  assert made.sound_TKM.shape == (35, 13, 20)
  assert made.frames_THWC.shape == (39, 224, 224, 3)
  # BGR order, without scaling.
  np.testing.assert_array_equal(made.frames_THWC[:, 0, 0, 2], np.arange(39))
  assert not made.frames_THWC[..., 0].any()
  cepstra = mfcc.coefficients(samples_A)
  for number in (0, 7, 34):
    wanted = cepstra[4 * number : 4 * number + 20].T
    np.testing.assert_allclose(made.sound_TKM[number], wanted, rtol=1e-6)


def test_the_audio_is_that_of_the_track():
  samples_A = noise(60)
  late = lip_sync.make_windows(track(30, first=20), samples_A)
  alone = lip_sync.make_windows(track(30), samples_A[20 * 640 : 50 * 640])
  np.testing.assert_array_equal(late.sound_TKM, alone.sound_TKM)


@pytest.mark.parametrize(
  "frames, sound, count",
  [(40, 30, 25), (12, 40, 7), (6, 6, 1), (5, 40, 0), (40, 5, 0), (40, 0, 0)],
)
def test_the_shorter_modality_limits_the_windows(frames, sound, count):
  made = lip_sync.make_windows(track(frames), noise(sound))
  assert len(made.sound_TKM) == count
  assert len(made.frames_THWC) == (count + 4 if count else 0)


def test_distances_equal_the_originals():
  random = np.random.default_rng(1)
  lips_TD, sound_TD = random.normal(size=(2, 30, 8))
  distances = lip_sync.distance_curve(lips_TD, sound_TD)
  assert distances.shape == (31,)
  for place in (0, 15, 22):
    each = []
    for t in range(30):
      other = t + place - 15
      there = sound_TD[other] if 0 <= other < 30 else np.zeros(8)
      each.append(np.sqrt(np.sum((lips_TD[t] - there + 1e-6) ** 2)))
    np.testing.assert_allclose(distances[place], np.mean(each), rtol=1e-12)


@pytest.mark.parametrize("later", [-15, -4, 0, 3, 15])
def test_a_positive_offset_means_early_audio(later):
  lips_TD = np.random.default_rng(2).normal(size=(80, 16))
  sound_TD = np.zeros_like(lips_TD)
  for t in range(80):
    if 0 <= t - later < 80:
      sound_TD[t] = lips_TD[t - later]
  found = lip_sync.score(lips_TD, sound_TD)
  assert found.offset == -later
  distances = lip_sync.distance_curve(lips_TD, sound_TD)
  middle = np.sort(distances)[15]
  np.testing.assert_allclose(found.confidence, middle - distances.min())
  np.testing.assert_allclose(found.distance, distances.min())
