import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ovi_jax import geometry
from ovi_jax.media import images
from ovi_jax.media import mp4
from tests import parity

RATE = geometry.SAMPLE_RATE


def _clip():
  """Two seconds of a square that moves, with a tone and one click."""
  frames_THWC = np.full((48, 64, 96, 3), (200, 60, 30), np.uint8)
  for t, frame in enumerate(frames_THWC):
    frame[20:40, t : t + 24] = (20, 90, 220)
  time = np.arange(2 * RATE) / RATE
  wave = 0.3 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
  wave[RATE:] = 0
  wave[3 * RATE // 2] = 0.9
  return frames_THWC, wave


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  path = tmp_path_factory.mktemp("media") / "new" / "clip.mp4"
  frames_THWC, wave = _clip()
  chunks = iter([frames_THWC[:1], frames_THWC[1:30], frames_THWC[30:]])
  mp4.write(path, chunks, wave)
  return path, mp4.read(path)


def test_pictures_come_back(written):
  path, (frames_THWC, fps, _, _) = written
  expected, _ = _clip()
  assert os.listdir(path.parent) == ["clip.mp4"]
  assert fps == 24 and frames_THWC.shape == expected.shape
  # Away from edges, where H.264 halves the colour's resolution.
  assert np.abs(frames_THWC[:, 2:14].astype(int) - expected[:, 2:14]).max() < 6
  middle = frames_THWC[30, 30, 42].astype(int)
  assert np.abs(middle - expected[30, 30, 42]).max() < 6


def test_sound_comes_back_at_its_time(written):
  _, (_, _, wave, rate) = written
  _, expected = _clip()
  assert rate == RATE
  # The container counts in thousandths of a second.
  assert abs(wave.size - expected.size) <= RATE // 1000
  assert np.argmax(wave) == np.argmax(expected)
  # The encoder needs some packets to settle.
  settled = slice(RATE // 4, RATE)
  noise = wave[settled] - expected[settled]
  assert np.square(noise).mean() < 1e-3 * np.square(expected[settled]).mean()


WRITE_CLIPS = """
import hashlib, sys
import numpy as np
from ovi_jax.media import mp4
SIZES = (13, 64, 64), (13, 64, 96), (13, 64, 96), (60, 144, 176), (60, 160, 224)
for seed, (frames, height, width) in zip((3, 4, 7, 0, 0), SIZES):
  rng = np.random.default_rng(seed)
  ramp_W = np.linspace(0, 255, width)[:, None]
  frames_THWC = rng.normal(ramp_W, 30, (frames, height, width, 3)).clip(0, 255)
  wave_A = rng.normal(0, 0.1, 8000).astype(np.float32)
  mp4.write(sys.argv[1], [frames_THWC.astype(np.uint8)], wave_A)
  print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())
"""


def test_the_same_clip_makes_the_same_bytes(tmp_path):
  """Whatever memory holds that was never set (glibc fills it as told)."""
  made = set()
  for filling in ("", "0", "1", "200"):
    made.add(
      subprocess.run(
        [sys.executable, "-c", WRITE_CLIPS, tmp_path / "clip.mp4"],
        env=os.environ | {"MALLOC_PERTURB_": filling},
        check=True,
        capture_output=True,
      ).stdout
    )
  assert len(made) == 1


def test_a_silent_film(tmp_path):
  frames_THWC, _ = _clip()
  mp4.write(tmp_path / "a.mp4", [frames_THWC[:5]], None, fps=30)
  frames, fps, wave, rate = mp4.read(tmp_path / "a.mp4")
  assert frames.shape == (5, 64, 96, 3) and fps == 30
  assert wave is None and rate is None


def test_a_failure_leaves_the_older_file_and_no_other(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_text("older")

  def failing():
    yield _clip()[0]
    raise KeyError("decoder")

  with pytest.raises(KeyError, match="decoder"):
    mp4.write(path, failing(), None)
  assert os.listdir(tmp_path) == ["a.mp4"] and path.read_text() == "older"


def test_a_full_disk_is_said_and_cleaned_up(tmp_path, monkeypatch):
  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="no space left to write") as error:
    mp4.write(tmp_path / "a.mp4", [_clip()[0][:2]], None)
  assert error.value.errno == errno.ENOSPC
  assert error.value.filename == str(tmp_path / "a.mp4")
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  "frames, wave, message",
  [
    ([], None, "no frames"),
    ([np.zeros((0, 4, 4, 3), np.uint8)], None, "no frames"),
    ([np.zeros((1, 5, 4, 3), np.uint8)], None, "even height and width"),
    ([np.zeros((1, 4, 4, 3), np.float32)], None, "must be uint8"),
    ([np.zeros((4, 4, 3), np.uint8)], None, "must be uint8"),
    (
      [np.zeros((1, 64, s, 3), np.uint8) for s in (64, 66)],
      None,
      "follow frames",
    ),
    ([np.zeros((1, 4, 4, 3), np.uint8)], np.zeros((2, 9)), "mono"),
    ([np.zeros((1, 4, 4, 3), np.uint8)], np.full(9, np.nan), "NaN"),
  ],
)
def test_unfit_clips_are_refused(tmp_path, frames, wave, message):
  with pytest.raises(ValueError, match=message):
    mp4.write(tmp_path / "a.mp4", frames, wave)
  assert not list(tmp_path.iterdir())


def test_what_is_no_video_is_named(tmp_path):
  (tmp_path / "a.mp4").write_text("not a film")
  for name in ("a.mp4", "missing.mp4"):
    with pytest.raises(ValueError, match=f"{name}: expected a video"):
      mp4.read(tmp_path / name)


def test_the_first_frame_is_the_originals(golden):
  reference = golden("image")
  ours_HWC = images.first_frame(reference["image_u8"], 64 * 96)
  assert ours_HWC.dtype == np.float32
  expected_HWC = np.moveaxis(reference["image_f32"], 0, -1)
  parity.assert_close(ours_HWC, expected_HWC, "forward")


def test_resizing_keeps_constants_and_equal_sizes():
  image_HWC = np.random.default_rng(0).random((7, 5, 3), np.float32)
  np.testing.assert_array_equal(
    images.resize_bicubic(image_HWC, 7, 5), image_HWC
  )
  ones_HWC = images.resize_bicubic(np.ones((3, 4, 1), np.float32), 11, 2)
  np.testing.assert_allclose(ones_HWC, 1, atol=1e-6)
  assert ones_HWC.shape == (11, 2, 1)


def test_pixels_are_rounded():
  half = 1 / 255  # half a step of 8 bits, in [-1, 1]
  given = [-1.5, -1, -1 + 0.9 * half, -1 + 1.1 * half, 0.999, 1, 2]
  expected = [0, 0, 0, 1, 255, 255, 255]
  assert images.to_uint8(np.array(given)).tolist() == expected
  levels = np.arange(256)
  assert (images.to_uint8(levels / 127.5 - 1) == levels).all()
  with pytest.raises(ValueError, match="NaN or infinity"):
    images.to_uint8(np.array([0, np.nan]))


RED, BLUE = (250, 10, 20), (0, 0, 255)


def _save(path, image, **options):
  image.save(path, **options)
  return images.read_image(path)


def test_images_are_turned_upright(tmp_path):
  image = Image.new("RGB", (6, 4), RED)
  image.putpixel((0, 0), BLUE)
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was held turned by a quarter
  image_HWC = _save(tmp_path / "a.png", image, exif=exif)
  assert image_HWC.shape == (6, 4, 3)
  assert tuple(image_HWC[0, -1]) == BLUE and tuple(image_HWC[0, 0]) == RED


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
  clear = Image.new("RGBA", (4, 4), (*RED, 0))
  assert tuple(_save(tmp_path / "a.png", clear)[0, 0]) == RED
  palette = Image.new("P", (4, 4), 1)
  palette.putpalette([*BLUE, *RED, *BLUE])
  half_clear = {"transparency": bytes([0, 128, 9])}
  assert tuple(_save(tmp_path / "p.png", palette, **half_clear)[0, 0]) == RED
  deep = Image.fromarray(np.array([[0, 257 * 99, 65_535]], np.uint16))
  assert _save(tmp_path / "i.png", deep)[0, :, 1].tolist() == [0, 99, 255]
  grey = Image.new("L", (3, 3), 77)
  assert (_save(tmp_path / "g.jpg", grey) == 77).all()
  for mode in ("CMYK", "1", "LA"):
    image_HWC = _save(tmp_path / f"{mode}.tif", Image.new(mode, (3, 3)))
    assert image_HWC.shape == (3, 3, 3) and image_HWC.dtype == np.uint8


def test_unfit_images_are_named(tmp_path, monkeypatch):
  noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
  Image.fromarray(noise).save(tmp_path / "cut.jpg")
  whole = (tmp_path / "cut.jpg").read_bytes()
  (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
  (tmp_path / "text.png").write_text("no picture")
  Image.new("F", (3, 3)).save(tmp_path / "float.tif")
  Image.fromarray(np.full((2, 2), 70_000, np.int32)).save(tmp_path / "i.tif")
  names = ["cut.jpg", "text.png", "float.tif", "i.tif", "missing.png", "."]
  for name in names:
    with pytest.raises(ValueError, match="expected a PNG, JPEG") as error:
      images.read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
  Image.new("L", (20, 20)).save(tmp_path / "huge.png")
  for limit in (300, 100):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=f"too large .* most {limit} pixels"):
      images.read_image(tmp_path / "huge.png")


def test_a_contact_sheet_shows_every_frame():
  frames_THWC = np.zeros((5, 8, 10, 3), np.uint8)
  frames_THWC[:] = np.arange(10, 60, 10)[:, None, None, None]
  sheet = images.contact_sheet(frames_THWC, 3)
  assert sheet.size == (3 * 10 + 4 * 4, 2 * 8 + 3 * 4)
  places = [(9, 8), (23, 8), (37, 8), (9, 20), (23, 20), (37, 20)]
  levels = [sheet.getpixel(place)[0] for place in places]
  assert levels == [10, 20, 30, 40, 50, 0]
  with pytest.raises(ValueError, match="at least 1 column"):
    images.contact_sheet(frames_THWC, 0)


def test_a_waveform_shows_where_the_sound_is():
  wave = np.zeros(2 * RATE, np.float32)
  wave[RATE:] = np.tile([0.5, -0.5], RATE // 2)
  image = np.asarray(images.waveform_png(wave, RATE, 200, 101))
  navy_HW = (image == (0, 0, 128)).all(-1)
  assert navy_HW[:, 50].nonzero()[0].tolist() == [50]
  assert navy_HW[:, 150].nonzero()[0].tolist() == list(range(25, 76))
