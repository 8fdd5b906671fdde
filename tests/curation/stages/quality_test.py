"""Sharpness, exposure and the aesthetic score."""

import dataclasses

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import torch_file
from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import quality
from tests.lib import media_files
from tests.lib.curation import clip_weights
from tests.lib.curation import fake_media
from tests.lib.curation import seeded
from tests.lib.curation import torch_vision

cv2 = pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
CLIP = clips.Clip(id="l", path="l.mp4").with_facts(
  "motion", crop_box=[0, 0, 360, 640]
)


def media(frames):
  return fake_media.FakeMedia(
    video_THWC=np.asarray(frames), audio_A=media_files.tone(1)[0]
  )


def mosaic():
  return np.stack(media_files.moving(9, 5, 360, 640, 4))


def run(frames, found=CLIP, **changes):
  return quality.load(quality.Config(**changes))(found, media(frames))


def test_a_sharp_picture_is_measured():
  found = run(mosaic())
  facts = found.facts["quality"]
  luma = mosaic()[[0, 4, 8]] @ np.array([0.2126, 0.7152, 0.0722])
  assert facts["exposure"] == pytest.approx(luma.mean() / 255, abs=0.01)
  assert facts["sharpness"] > 500 and facts["aesthetic"] is None
  assert set(found.scores) == {"sharpness", "exposure"}


def test_sharpness_is_the_variance_of_the_laplacian():
  random = np.random.default_rng(2)
  grey = random.integers(0, 256, (360, 640), dtype=np.uint8)
  frames = np.repeat(grey[None, ..., None], 3, -1).repeat(7, 0)
  inner = grey.astype(float)
  laplacian = (
    inner[:-2, 1:-1] + inner[2:, 1:-1] + inner[1:-1, :-2] + inner[1:-1, 2:]
  ) - 4 * inner[1:-1, 1:-1]
  found = run(frames)
  assert found.scores["sharpness"] == pytest.approx(laplacian.var(), rel=0.02)


def test_a_blurred_picture_is_refused():
  blurred = [cv2.GaussianBlur(frame, (0, 0), 12) for frame in mosaic()]
  found = run(blurred)
  assert found.reason == "blurred" and 0 < found.score < 20


def test_dark_and_bright_clips_are_rejected():
  dark = run((mosaic() // 30).astype(np.uint8))
  assert dark.reason == "too dark" and dark.score < 0.06
  bright = run(255 - mosaic() // 40)
  assert bright.reason == "too bright" and bright.score > 0.94


def test_bars_are_ignored():
  frames = mosaic()
  frames[:, :, :320] = 0
  within = dataclasses.replace(
    CLIP, facts={"motion": {"crop_box": [0, 320, 360, 320]}}
  )
  whole = run(frames).scores["exposure"]
  assert run(frames, within).scores["exposure"] == pytest.approx(
    2 * whole, rel=0.05
  )


def test_without_a_crop_box_the_whole_frame_is_used():
  without = dataclasses.replace(CLIP, facts={})
  assert run(mosaic(), without).scores == run(mosaic()).scores


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  folder = tmp_path_factory.mktemp("look")
  names = clip_weights.names()
  safetensors.save_file(seeded.tensors(names), folder / "clip.safetensors")
  head = clip_weights.head_tensors(torch_vision.HEAD)
  torch_file.save(folder / "head.pth", head)
  return {
    "clip_weights": str(folder / "clip.safetensors"),
    "aesthetic_weights": str(folder / "head.pth"),
  }


def test_the_aesthetic_score_equals_the_original(weights, golden):
  picture = seeded.frames(2, 45, 80)[0]
  clip = dataclasses.replace(
    CLIP, facts={"motion": {"crop_box": [0, 0, 45, 80]}}
  )
  found = run([picture] * 7, clip, num_aesthetic_frames=3, **weights)
  wanted = float(golden("looks")["aesthetic"][0])
  assert found.scores["aesthetic"] == pytest.approx(wanted, abs=2e-4)
  found = run([picture] * 7, clip, min_aesthetic=wanted + 0.1, **weights)
  assert found.reason == "low aesthetic score"
  assert found.score == pytest.approx(wanted, abs=2e-4)


def test_the_fingerprint_depends_on_the_content_of_the_weights(
  weights, tmp_path
):
  copy = tmp_path / "copy.pth"
  with open(weights["aesthetic_weights"], "rb") as file:
    copy.write_bytes(file.read())
  one = quality.fingerprint(quality.Config(**weights))
  assert one == quality.fingerprint(
    quality.Config(**{**weights, "aesthetic_weights": str(copy)})
  )
  assert one != quality.fingerprint(quality.Config())


@pytest.mark.parametrize(
  "wrong",
  [
    {"clip_weights": "a.safetensors"},
    {"min_aesthetic": 5.0},
    {"num_frames": 2, "num_aesthetic_frames": 3},
  ],
)
def test_settings_are_checked(wrong):
  with pytest.raises(ValueError, match="quality"):
    quality.Config(**wrong)
