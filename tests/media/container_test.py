"""Opening untrusted files; display matrices."""

import fractions
import itertools
import os

import numpy as np
import pytest

from ovi_jax.media import container as containers
from ovi_jax.media import decode
from tests.lib import media_files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  path = tmp_path_factory.mktemp("container") / "good.mp4"
  return media_files.write(path, media_files.numbered(6), media_files.even(6))


NAMES = [
  b"-i.mp4",
  b"a b'\"$(x);`y`.mp4",
  b"new\nline.mp4",
  b"http:__host_x.mp4",
  b"concat:a|b.mp4",
  b"pipe:0",
  b"\xff\xfe.mp4",
  "é漢字🎬.mp4".encode(),
  b"x" * 251 + b".mp4",
  b"%d%s.mp4",
]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_are_never_opened_as_urls(good, tmp_path, name):
  path = tmp_path / os.fsdecode(name)
  path.write_bytes(good.read_bytes())
  assert len(list(decode.sweep(path))) == 6


@pytest.mark.parametrize(
  "text",
  [
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n",
    "ffconcat version 1.0\nfile {}\n",
  ],
)
def test_playlists_open_no_other_files(good, tmp_path, text):
  path = tmp_path / "list.mp4"
  path.write_text(text.format(good))
  with pytest.raises(containers.DamagedError, match="formats"):
    list(decode.sweep(path))


def test_an_empty_file_is_reported_as_empty(tmp_path):
  path = tmp_path / "empty.mp4"
  path.touch()
  with pytest.raises(containers.DamagedError, match="the file is empty"):
    list(decode.sweep(path))


def test_the_beginning_of_a_file_is_reported_as_cut_off(good, tmp_path):
  path = tmp_path / "half.mp4"
  data = good.read_bytes()
  path.write_bytes(data[: data.index(b"moov")])
  message = "its end is missing; copy or download it again"
  with pytest.raises(containers.DamagedError, match=message):
    list(decode.sweep(path))


@pytest.mark.parametrize("tail", [b"", bytes(4), b"some text", bytes(99)])
def test_what_follows_the_last_box_does_not_matter(good, tmp_path, tail):
  path = tmp_path / "more.mp4"
  path.write_bytes(good.read_bytes() + tail)
  containers.check_whole(path)
  assert len(list(decode.sweep(path))) == 6
  path.write_bytes(good.read_bytes()[:-1])
  with pytest.raises(containers.DamagedError, match="it is cut off"):
    containers.check_whole(path)


@pytest.mark.parametrize("size", [0, 0x7FFFF024, 0xFFFFFFFF, None])
def test_sizes_of_a_streamed_wav_are_not_believed(tmp_path, size):
  path = tmp_path / "a.wav"
  media_files.write_sound(path, np.zeros((1, 800)), rate=16_000)
  data = bytearray(path.read_bytes())
  # By default one more than there is: a pad byte that was not written.
  declared = len(data) - 7 if size is None else size
  data[4:8] = declared.to_bytes(4, "little")
  path.write_bytes(data)
  containers.check_whole(path)


def test_a_missing_file_is_reported_as_missing(tmp_path):
  with pytest.raises(FileNotFoundError):
    list(decode.sweep(tmp_path / "none.mp4"))


@pytest.mark.parametrize(
  "codec, options",
  [
    (
      "libx264",
      {"x264-params": "bframes=3:b-adapt=0:scenecut=0:keyint=30"},
    ),
    ("mpeg4", {"bf": "2", "g": "30"}),
  ],
)
def test_frames_of_an_avi_are_returned_in_display_order(
  tmp_path, codec, options
):
  path = media_files.write(
    tmp_path / "b.avi",
    media_files.numbered(72),
    media_files.even(72),
    codec=codec,
    options=options,
    base=fractions.Fraction(1, 24),
  )
  found = list(decode.sweep(path))
  assert len(found) == 72 and not any(each.broken for each in found)
  times = [each.time for each in found]
  np.testing.assert_allclose(np.diff(times), 1 / 24, atol=1e-6)
  # From its beginning, and from a key frame within.
  for first in (0, 1.5):
    shown = decode.video(path, times[0] + first, 1.0)
    numbers = [media_files.number(frame_HWC) for frame_HWC in shown]
    assert numbers == list(range(round(first * 24), round(first * 24) + 24))


WAYS = list(itertools.product((False, True), repeat=3))


@pytest.mark.parametrize("transposed, rows, columns", WAYS)
def test_the_display_matrix_is_applied(tmp_path, transposed, rows, columns):
  coded = np.zeros((32, 64, 3), np.uint8)
  coded[:16, :32], coded[:16, 32:], coded[16:, :32] = 250, 170, 90
  path = media_files.write(tmp_path / "t.mp4", [coded] * 3, media_files.even(3))
  across, down = -1 if columns else 1, -1 if rows else 1
  # The place (x, y) is shown at (a·x + c·y, b·x + d·y).
  units = (0, down, across, 0) if transposed else (across, 0, 0, down)
  media_files.turn(path, *units)
  shown = decode.video(path, 0, 1 / 24)[0]
  expected = np.zeros((64, 32, 3) if transposed else (32, 64, 3), np.uint8)
  height, width, _ = expected.shape
  for y, x in np.ndindex(32, 64):
    right, below = (y, x) if transposed else (x, y)
    right = width - 1 - right if columns else right
    below = height - 1 - below if rows else below
    expected[below, right] = coded[y, x]
  assert shown.shape == expected.shape
  assert np.abs(shown.astype(int) - expected).mean() < 4
  turn = containers.Orientation(
    transposed=transposed, rows=rows, columns=columns
  )
  mirror = coded[:, ::-1] if turn.mirrored else coded
  np.testing.assert_array_equal(np.rot90(mirror, -turn.degrees // 90), expected)
