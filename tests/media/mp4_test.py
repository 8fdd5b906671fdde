import errno
import io
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax.media import mp4
from tests.lib import media_files
from tests.lib import traced_memory

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


def test_frames_are_read_back(written):
  path, (frames_THWC, fps, _, _) = written
  expected, _ = _clip()
  assert os.listdir(path.parent) == ["clip.mp4"]
  assert fps == 24 and frames_THWC.shape == expected.shape
  # Away from edges, where H.264 halves the colour's resolution.
  assert np.abs(frames_THWC[:, 2:14].astype(int) - expected[:, 2:14]).max() < 6
  middle = frames_THWC[30, 30, 42].astype(int)
  assert np.abs(middle - expected[30, 30, 42]).max() < 6


def test_audio_is_read_back_in_sync(written):
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


@pytest.mark.slow
def test_the_same_clip_gives_the_same_bytes(tmp_path):
  """Uninitialized memory, filled by glibc as requested."""
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


def test_a_clip_without_audio_is_written(tmp_path):
  frames_THWC, _ = _clip()
  mp4.write(tmp_path / "a.mp4", [frames_THWC[:5]], None, fps=30)
  frames, fps, wave, rate = mp4.read(tmp_path / "a.mp4")
  assert frames.shape == (5, 64, 96, 3) and fps == 30
  assert wave is None and rate is None


def test_a_failed_write_leaves_only_the_older_file(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_text("older")

  def failing():
    yield _clip()[0]
    raise KeyError("decoder")

  with pytest.raises(KeyError, match="decoder"):
    mp4.write(path, failing(), None)
  assert os.listdir(tmp_path) == ["a.mp4"] and path.read_text() == "older"


def test_a_full_disk_is_reported_and_cleaned_up(tmp_path, monkeypatch):
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
def test_invalid_clips_are_refused(tmp_path, frames, wave, message):
  with pytest.raises(ValueError, match=message):
    mp4.write(tmp_path / "a.mp4", frames, wave)
  assert not list(tmp_path.iterdir())


def test_files_without_video_are_named(tmp_path):
  (tmp_path / "a.mp4").write_text("not a film")
  for name in ("a.mp4", "missing.mp4"):
    with pytest.raises(ValueError, match=f"{name}: expected a video"):
      mp4.read(tmp_path / name)


@pytest.mark.parametrize(
  "text",
  [
    "ffconcat version 1.0\nfile other.mkv\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mkv\n",
  ],
)
def test_a_playlist_opens_no_other_file(tmp_path, text):
  media_files.write(
    tmp_path / "other.mkv", media_files.numbered(5), media_files.even(5)
  )
  (tmp_path / "a.mp4").write_text(text)
  with pytest.raises(ValueError, match="a.mp4: expected a video.* formats"):
    mp4.read(tmp_path / "a.mp4")


def test_a_file_name_is_not_opened_as_a_url(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  media_files.write(
    tmp_path / "good.mp4", media_files.numbered(5), media_files.even(5)
  )
  for name in ("concat:secret|z.mp4", "file:good.mp4", "subfile,,:good.mp4"):
    with pytest.raises(ValueError, match="No such file"):
      mp4.read(name)
    (tmp_path / name).write_bytes((tmp_path / "good.mp4").read_bytes())
    assert len(mp4.read(name)[0]) == 5


def test_a_small_file_of_many_large_frames_is_refused(tmp_path):
  frames = itertools.repeat(np.zeros((1, 1024, 1024, 3), np.uint8), 30)
  mp4.write(tmp_path / "a.mp4", frames, None, preset="ultrafast")
  assert (tmp_path / "a.mp4").stat().st_size < 100_000
  with (
    traced_memory.peak() as peak,
    pytest.raises(
      ValueError, match="30 frames of 1024x1024 have 94 MB .* limit is 21 MB"
    ),
  ):
    mp4.read(tmp_path / "a.mp4", max_bytes=20 << 20)
  assert peak.bytes < 5 << 20
  with pytest.raises(ValueError, match="most 1000000 pixels, found 1024x1024"):
    mp4.read(tmp_path / "a.mp4", max_bytes=3_000_000)


def test_long_videos_and_sounds_are_refused(tmp_path):
  frames, second = media_files.numbered(10), media_files.even(10, 1)
  media_files.write(tmp_path / "slow.mp4", frames, second)
  with pytest.raises(ValueError, match="frames last 9 s; the limit is 5 s"):
    mp4.read(tmp_path / "slow.mp4", max_seconds=5)
  media_files.write(
    tmp_path / "a.mp4", frames, media_files.even(10), media_files.tone(9.0)
  )
  with pytest.raises(ValueError, match="sound is longer than the limit of 5 s"):
    mp4.read(tmp_path / "a.mp4", max_seconds=5)
  many = media_files.write(
    tmp_path / "m.mp4", frames, media_files.even(10, 1000)
  )
  with pytest.raises(ValueError, match="at most 9 frames"):
    mp4.header(many, max_frames=9)


def test_the_header_describes_the_video(tmp_path):
  path = media_files.write(
    tmp_path / "a.mkv", media_files.numbered(9), media_files.even(9, 25)
  )
  found = mp4.header(path)
  assert (found.height, found.width, found.aspect) == (32, 64, 1)
  np.testing.assert_allclose(found.times, np.arange(9) / 25, atol=1e-3)
  again = mp4.header(io.BytesIO(path.read_bytes()))
  np.testing.assert_array_equal(again.times, found.times)
