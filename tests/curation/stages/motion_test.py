"""Loudness, crop box and optical flow."""

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import flow
from ovi_jax.curation.stages import motion
from tests.lib import media_files
from tests.lib.curation import fake_media

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
CLIP = clips.Clip(id="m", path="m.mp4", seconds=1.0)


def moving(step=3):
  frames = media_files.moving(25, 1, 180, 320, step)
  return fake_media.FakeMedia(
    video_THWC=np.stack(frames), audio_A=media_files.tone(1)[0]
  )


def run(media, **changes):
  return motion.load(motion.Config(**changes))(CLIP, media)


def test_a_good_clip_is_measured():
  found = run(moving())
  facts = found.facts["motion"]
  assert facts["crop_box"] == [0, 0, 180, 320]
  assert facts["volume_db"] == pytest.approx(
    20 * np.log10(0.3 / 2**0.5), abs=0.01
  )
  # Mosaics flow wherever they are not uniform.
  assert 1.5 < facts["flow"] < 4.5
  assert found.scores == {
    "flow": facts["flow"],
    "volume_db": facts["volume_db"],
  }
  assert run(moving()) == found


def textured(shift):
  random = np.random.default_rng(4)
  wide = random.integers(0, 256, (200, 400), dtype=np.uint8)
  import cv2

  smooth = cv2.GaussianBlur(wide, (0, 0), 3)
  smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
  part = smooth[10:190, 20 + shift : 340 + shift]
  return np.repeat(part[..., None], 3, -1)


@pytest.mark.parametrize("pixels", [0, 1, 4])
def test_flow_equals_the_displacement(pixels):
  estimate = flow.load("dis")()
  flow_HW2 = estimate(textured(0), textured(pixels))
  assert flow_HW2.shape == (180, 320, 2)
  inner = flow_HW2[20:-20, 20:-20].reshape(-1, 2).mean(0)
  np.testing.assert_allclose(inner, (-pixels, 0), atol=0.15)


def test_flow_is_independent_of_resolution():
  small = np.stack([textured(2 * n) for n in range(4)])
  large = small.repeat(2, 1).repeat(2, 2)
  estimate = flow.load("dis")()
  ours = motion.mean_flow(large, estimate, 3)
  assert ours == pytest.approx(motion.mean_flow(small, estimate, 3), rel=0.02)
  assert ours == pytest.approx(2, rel=0.1)


def test_a_static_clip_is_rejected():
  media = moving()
  media.video_THWC = np.stack([media.video_THWC[0]] * 25)
  found = run(media)
  assert (found.reason, found.score) == ("static", 0.0)


def test_a_quiet_clip_is_rejected_below_the_threshold():
  media = moving()
  media.audio_A = np.full(1000, 10 ** (-60.1 / 20), np.float32)
  found = run(media)
  assert found.reason == "too quiet"
  assert found.score == pytest.approx(-60.1, abs=1e-3)
  media.audio_A = np.full(1000, 10 ** (-59.9 / 20), np.float32)
  assert isinstance(run(media), clips.Clip)


def test_silence_and_missing_audio_are_distinguished():
  media = moving()
  media.audio_A = np.zeros(1000, np.float32)
  assert (run(media).reason, run(media).score) == ("too quiet", -120.0)
  media.audio_A = np.zeros(0, np.float32)
  assert run(media).reason == "no sound"
  assert isinstance(run(media, min_volume_db=None), clips.Clip)


def test_mostly_letterboxed_clips_are_rejected():
  media = moving()
  media.video_THWC[:, :60] = 0
  media.video_THWC[:, 110:] = 0
  found = run(media)
  assert found.reason == "mostly letterbox bars"
  assert found.score == pytest.approx(46 / 180)


def ones():
  """An estimator that sees everything move by (3, 4)."""
  return lambda one, other: np.full((*one.shape[:2], 2), (3.0, 4.0))


def test_a_custom_flow_estimator_is_named_by_module_and_function():
  found = run(moving(), flow_estimator=f"{__name__}:ones")
  assert found.facts["motion"]["flow"] == 5.0


@pytest.mark.parametrize(
  "name", ["raft", "nothing_here:make", f"{__name__}:no"]
)
def test_an_unknown_estimator_is_named_before_any_clip(name):
  with pytest.raises(ValueError, match="flow"):
    motion.load(motion.Config(flow_estimator=name))


def test_settings_are_checked():
  with pytest.raises(ValueError, match="num_flow_pairs"):
    motion.Config(num_flow_pairs=0)
  with pytest.raises(ValueError, match="min_picture_fraction"):
    motion.Config(min_picture_fraction=2.0)
