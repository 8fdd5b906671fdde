"""SyncNet is trained on drawn faces and tested on shifted ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.curation.faces import crops
from ovi_jax.curation.sync import lip_sync
from ovi_jax.curation.sync import mfcc
from ovi_jax.curation.sync import talking_faces
from ovi_jax.curation.sync import training

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
TINY = training.Settings(
  width_divisor=32, num_train_steps=3, clips_per_batch=2, windows_per_clip=2
)


def test_examples_have_the_format_of_the_stage():
  clip = talking_faces.clip(0, 0)
  frames, windows = talking_faces.sample_windows(
    clip, np.random.default_rng(0), 6
  )
  read = lip_sync.make_windows(clip.track(), clip.samples_A)
  for number in range(6):
    (place,) = (
      t
      for t, window in enumerate(read.sound_TKM)
      if np.allclose(window, windows[number, 0], atol=1e-4)
      and np.array_equal(read.frames_THWC[t : t + 5], frames[number])
    )
    assert 0 <= place < len(read.sound_TKM)


def test_the_mouth_opens_during_the_vowel():
  clip = talking_faces.clip(0, 1)
  event = clip.scene.events[0]
  samples = slice(
    int(event.seconds * mfcc.RATE),
    int((event.seconds + event.length) * mfcc.RATE),
  )
  heard = np.abs(clip.samples_A.astype(int))
  assert heard[samples].mean() > 10 * heard[: samples.start].mean()
  frames_THWC = clip.track().frames_THWC.astype(int)
  middle = round((event.seconds + event.length / 2) * crops.FPS)
  moved = np.abs(frames_THWC[middle] - frames_THWC[0]).max()
  assert moved > 100
  assert np.abs(frames_THWC[1] - frames_THWC[0]).max() == 0


@pytest.mark.parametrize("shift", [-10, 0, 7])
def test_a_shift_moves_the_audio(shift):
  clip = talking_faces.clip(0, 2)
  moved_A, by = clip.shift_audio(shift), shift * 640
  assert moved_A.dtype == np.int16 and len(moved_A) == len(clip.samples_A)
  for place in (30_000, 50_000):
    assert moved_A[place + by] == clip.samples_A[place]
  assert not moved_A[: max(by, 0)].any()


def test_the_loss_is_lowest_for_matching_pairs():
  random = np.random.default_rng(0)
  lips_ND = random.normal(0, 4, (6, 32)).astype(np.float32)
  right = float(training.loss(lips_ND, lips_ND))
  wrong = float(training.loss(lips_ND, lips_ND[::-1]))
  same = np.zeros_like(lips_ND)
  assert right < 1e-3 and wrong > 10
  np.testing.assert_allclose(training.loss(same, same), np.log(6), rtol=1e-6)
  slope = jax.grad(lambda x: training.loss(x, same))(same)
  assert np.isfinite(slope).all()


def trained(settings, step) -> list[np.ndarray]:
  state = training.init_state(settings)
  for _, batch in zip(range(2), training.batches(settings)):
    state, value = step(state, *batch)
  return [np.asarray(x) for x in [value, *jax.tree.leaves(state.variables)]]


@pytest.mark.slow
def test_training_is_seeded():
  step = training.make_train_step(TINY)
  one, two = trained(TINY, step), trained(TINY, step)
  assert all(map(np.array_equal, one, two))
  other = trained(dataclasses.replace(TINY, seed=1), step)
  assert not np.array_equal(one[0], other[0])


def test_settings_are_checked():
  with pytest.raises(ValueError, match="at least 1"):
    training.Settings(num_train_steps=0)
  with pytest.raises(ValueError, match="two windows"):
    training.Settings(clips_per_batch=1, windows_per_clip=1)


def _even(x_T):
  return ((x_T - x_T.mean()) / x_T.std())[None, :, None]


def _opening(network, frames_BTHWC, training):
  """How far the mouth of each window is from that of the first frame."""
  frames_THWC = frames_BTHWC[0].astype(jnp.float32)
  moved_T = jnp.abs(frames_THWC - frames_THWC[:1]).mean((1, 2, 3))
  return _even(jnp.convolve(moved_T, jnp.ones(5) / 5, mode="valid"))


def _loudness(network, sound_BTKM, training):
  """The first cepstral coefficient is that of the energy."""
  return _even(sound_BTKM[0, :, 0].mean(-1))


def test_a_trained_network_finds_shifts_of_held_out_faces(monkeypatch):
  """In place of a trained network: an open mouth is loud."""
  monkeypatch.setattr(training, "_lips", _opening)
  monkeypatch.setattr(training, "_sound", _loudness)
  shifts = (-10, -3, 4, 10)
  found = list(
    training.evaluate(TINY.config, {}, seed=0, count=2, shifts=shifts)
  )
  assert [f.shift for f in found] == [*shifts] * 2
  # A mouth opens a little before it is loud.
  assert max(f.error for f in found) <= 1


def test_errors_are_in_frames():
  right = lip_sync.Score(offset=10, confidence=2.0, distance=1.0)
  assert training.ShiftEstimate(-10, right).error == 0
  assert training.ShiftEstimate(-7, right).error == 3
