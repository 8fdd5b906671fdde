"""Artifacts of the encode stage."""

import io
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation.faces import crops
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.media import letterbox
from ovi_jax.curation.stages import encode
from ovi_jax.data import clips as samples
from ovi_jax.media import decode
from tests.lib import media_files
from tests.lib.curation import encode_clip

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
LUMA = np.array([0.2126, 0.7152, 0.0722])


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  path = tmp_path_factory.mktemp("cut") / "film.mp4"
  frames = media_files.moving(121, 2, 120, 240)
  for frame in frames:
    frame[:10] = frame[-10:] = 0
  wave = media_files.tone(121 / 24, 0.5)
  return media_files.write(path, frames, media_files.even(121), wave)


@pytest.fixture(scope="module")
def done(film):
  return encode_clip.run(film)


def test_saved_artifacts_are_recorded(done):
  found, kept, _ = done
  facts = found.facts["encode"]
  assert facts["artifacts"] == sorted(kept)
  pictures = {f"frame_{number}.jpg" for number in range(7)}
  assert set(kept) == {"video.mp4", "audio.pcm", *pictures}
  assert facts["frames"] == 121
  # 96 x 240 at an area of 9216 is 61 x 152; multiples of 32 are next to it.
  assert (facts["height"], facts["width"]) == (64, 160)


def test_the_video_is_cropped_to_its_content(done):
  _, kept, media = done
  with av.open(io.BytesIO(kept["video.mp4"])) as container:
    stream = container.streams.video[0]
    assert stream.average_rate == 24 and not container.streams.audio
    assert stream.codec_context.name == "h264"
    frames = [f.to_ndarray(format="rgb24") for f in container.decode(stream)]
  assert np.shape(frames) == (121, 64, 160, 3)
  part = letterbox.Box(top=12, left=0, height=96, width=240)
  expected = encode.resize(part.crop(media.video_THWC), 64, 160)
  # Colours are encoded at half the size, so the luma alone is compared.
  difference = np.abs(np.asarray(frames) @ LUMA - expected @ LUMA)
  assert difference.mean() < 4
  assert np.asarray(frames)[:, :2].mean() > 60


def test_the_audio_has_every_sample(done):
  _, kept, media = done
  levels = np.frombuffer(kept["audio.pcm"], "<i2")
  assert len(levels) == round(121 / 24 * geometry.SAMPLE_RATE)
  np.testing.assert_array_equal(levels / 32_768, media.audio_A)
  assert (
    samples.pcm(np.array([-1.5, -1, 0, 1, 1.5]))
    == np.array([-32_768, -32_768, 0, 32_767, 32_767], "<i2").tobytes()
  )


def test_seven_evenly_spaced_frames_are_saved(done, monkeypatch):
  assert encode._spaced_indices(121, 7) == [0, 20, 40, 60, 80, 100, 120]
  assert (
    encode._spaced_indices(121, 1) == [0] and encode._spaced_indices(3, 0) == []
  )
  _, kept, media = done
  part = letterbox.Box(top=12, left=0, height=96, width=240)
  expected = encode.resize(part.crop(media.video_THWC), 64, 160)
  for number, place in enumerate(encode._spaced_indices(121, 7)):
    picture = Image.open(io.BytesIO(kept[f"frame_{number}.jpg"]))
    difference = np.abs(np.asarray(picture) @ LUMA - expected[place] @ LUMA)
    assert difference.mean() < 4


def test_another_process_gives_the_same_bytes(film, done):
  _, kept, _ = done
  program = (
    "import hashlib, sys\n"
    "from tests.lib.curation import encode_clip\n"
    "kept = encode_clip.run(sys.argv[1])[1]\n"
    "parts = [k.encode() + kept[k] for k in sorted(kept)]\n"
    "print(hashlib.sha256(b''.join(parts)).hexdigest())\n"
  )
  import hashlib

  parts = [name.encode() + kept[name] for name in sorted(kept)]
  wanted = hashlib.sha256(b"".join(parts)).hexdigest()
  environment = {**os.environ, "OMP_NUM_THREADS": "1"}
  got = subprocess.run(
    [sys.executable, "-c", program, str(film)],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert got.stdout.strip() == wanted


def test_face_crops_are_saved_for_av_sync(film):
  box = [30, 60, 40, 36]
  tracks = [{"start_frame": 12, "boxes": [box] * 60}]
  found, kept, media = encode_clip.run(
    film, face_tracks={"face_count": "single", "tracks": tracks}
  )
  assert "faces.npz" in found.facts["encode"]["artifacts"]
  (ours,) = crops.unpack(kept["faces.npz"])
  (expected,) = crops.crop_tracks(media.frames_25fps, tracks)
  assert ours.first == expected.first
  difference = np.abs(ours.frames_THWC.astype(int) - expected.frames_THWC)
  assert difference.mean() < 3
  _, kept, _ = encode_clip.run(
    film, face_tracks={"face_count": "none", "tracks": []}
  )
  assert crops.unpack(kept["faces.npz"]) == []


@pytest.mark.parametrize(
  "height, width, area",
  [(720, 1280, 720 * 720), (1280, 720, 960 * 960), (704, 1344, 500_000)],
)
@pytest.mark.parametrize("aspect", encode.ASPECTS)
def test_the_aspect_ratio_is_kept(height, width, area, aspect):
  box = letterbox.Box(top=7, left=3, height=height, width=width)
  part, size = encode.crop_and_size(
    box, encode.Config(target_area=area, aspect=aspect)
  )
  assert size[0] % 32 == size[1] % 32 == 0
  assert size[0] * size[1] == pytest.approx(area, rel=0.1)
  assert part.width / part.height == pytest.approx(size[1] / size[0], rel=4e-3)
  assert part.height == height or part.width == width
  assert box.top <= part.top
  assert part.top + part.height <= box.top + box.height
  assert box.left <= part.left
  assert part.left + part.width <= box.left + box.width
  if aspect == "square":
    assert size[0] == size[1]


def test_large_upscaling_is_rejected(film):
  found, kept, _ = encode_clip.run(film, encode.Config(target_area=200 * 200))
  assert found.reason == "too small within its bars" and not kept
  assert found.score > 1.1


def test_content_too_narrow_after_cropping_is_rejected(film):
  found, kept, _ = encode_clip.run(film, box=(0, 0, 12, 240))
  assert found.reason == "too long and narrow within its bars" and not kept
  assert found.score == 20


def test_without_a_crop_box_the_whole_frame_is_used(film):
  # The stage that finds them may be left out.
  clip = clips.Clip(id="c", path=str(film), seconds=121 / 24)
  clip = clip.with_facts("probe", has_video=True)
  kept = {}
  found = encode.load(encode_clip.SMALL)(
    clip, clip_media.Media(clip, film, kept)
  )
  whole, _, _ = encode_clip.run(film, box=(0, 0, 120, 240))
  assert found.facts["encode"] == whole.facts["encode"] and "video.mp4" in kept


def test_audio_clips_have_audio_artifacts_only(tmp_path):
  path = media_files.write_sound(tmp_path / "a.wav", media_files.tone(3))
  clip = clips.Clip(id="a", path=str(path), start=1.0, seconds=2.0)
  kept = {}
  media = clip_media.Media(clip, path, kept)
  found = encode.load(encode_clip.SMALL)(clip, media)
  assert found.facts["encode"] == {
    "height": 0,
    "width": 0,
    "frames": 0,
    "artifacts": ["audio.pcm"],
  }
  assert len(kept["audio.pcm"]) == 2 * 2 * 16_000


@pytest.mark.parametrize(
  "wrong",
  [
    {"aspect": "wide"},
    {"target_area": 0},
    {"target_area": decode.LARGEST_AREA + 1},
    {"max_upscale": 0.5},
  ],
)
def test_settings_are_checked(wrong):
  with pytest.raises(ValueError, match="encode: "):
    encode.Config(**wrong)
