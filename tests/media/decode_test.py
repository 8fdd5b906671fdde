"""Frames and audio by timestamp, and unusual files."""

import fractions
import struct

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.media import container as containers
from ovi_jax.media import decode
from tests.lib import media_files

RATE = media_files.RATE


def shown(path, start, frames):
  """Numbers of the frames that a window shows."""
  video_THWC = decode.video(path, start, frames / 24)
  assert len(video_THWC) == frames
  return [media_files.number(frame_HWC) for frame_HWC in video_THWC]


@pytest.mark.parametrize("form", ["mp4", "mkv", "avi", "ts"])
def test_frames_at_24_fps_are_unchanged(tmp_path, form):
  # Matroska rounds times to milliseconds: 0.042 s, not 0.041667.
  avi = {
    "codec": "mjpeg",
    "pixels": "yuvj420p",
    "base": fractions.Fraction(1, 24),
  }
  path = media_files.write(
    tmp_path / f"a.{form}",
    media_files.numbered(40),
    media_files.even(40),
    **(avi if form == "avi" else {}),
  )
  assert shown(path, 0, 40) == list(range(40))


def test_variable_frame_rates_are_sampled_by_timestamp(tmp_path):
  steps = np.random.default_rng(3).uniform(0.005, 0.2, 30)
  times = np.concatenate([[0], np.cumsum(steps)])
  path = media_files.write(tmp_path / "v.mkv", media_files.numbered(31), times)
  at = np.arange(48) / 24
  expected = np.searchsorted(times, at + 2e-3, side="right") - 1
  assert shown(path, 0, 48) == expected.tolist()


def test_a_window_equals_the_same_part_of_the_file(tmp_path):
  options = {"preset": "ultrafast", "g": "12", "bf": "2"}
  path = media_files.write(
    tmp_path / "m.mp4",
    media_files.numbered(100),
    media_files.even(100, 30),
    options=options,
  )
  at = 1.3 + np.arange(20) / 24
  expected = np.floor((at + 2e-3) * 30).astype(int)
  assert shown(path, 1.3, 20) == expected.tolist()


@pytest.mark.parametrize("fps", [24, 25, 29.97, 50])
def test_frames_at_25_fps_are_nearest_in_time(tmp_path, fps):
  path = media_files.write(
    tmp_path / "a.mkv", media_files.numbered(90), media_files.even(90, fps)
  )
  window = decode.window(path, 0.4, 24 / 24)
  found = [
    media_files.number(picture_HWC) for picture_HWC in window.pictures_25
  ]
  times = 0.4 + (np.arange(25) + 0.5) / 25
  expected = np.floor((times + 2e-3) * fps)
  assert found == expected.tolist()
  if fps == 25:
    assert found == list(range(10, 35))  # none left out, none twice
  assert np.array_equal(window.video_THWC, decode.video(path, 0.4, 24 / 24))
  # What both rates show is there once.
  views = [np.shares_memory(p, window.video_THWC) for p in window.pictures_25]
  assert views == [number in shown(path, 0.4, 24) for number in found]


def test_the_last_frame_is_repeated_past_the_end(tmp_path):
  path = media_files.write(
    tmp_path / "e.mp4", media_files.numbered(10), media_files.even(10)
  )
  assert shown(path, 0.25, 6) == [6, 7, 8, 9, 9, 9]


def test_anamorphic_pixels_become_square(tmp_path):
  for aspect, size in (((2, 1), (32, 128)), ((1, 2), (64, 64))):
    path = media_files.write(
      tmp_path / f"{aspect[0]}.mp4",
      media_files.numbered(2),
      media_files.even(2),
      aspect=fractions.Fraction(*aspect),
    )
    assert decode.video(path, 0, 2 / 24).shape == (2, *size, 3)


def test_8k_is_downscaled_while_decoding(tmp_path):
  frames = [media_files.picture(1, 4320, 7680, cell=480)] * 3
  path = media_files.write(
    tmp_path / "8k.avi",
    frames,
    media_files.even(3),
    codec="mjpeg",
    pixels="yuvj420p",
  )
  video_THWC = decode.video(path, 0, 3 / 24)
  _, rows, columns, _ = video_THWC.shape
  assert rows * columns <= decode.LARGEST_AREA
  assert rows * columns > 0.99 * decode.LARGEST_AREA
  assert columns / rows == pytest.approx(7680 / 4320, rel=0.01)
  middles = video_THWC[0, rows // 18 :: rows // 9, columns // 32 :: 106]
  corner = frames[0][240, 240].astype(int)
  assert np.abs(middles[0, 0].astype(int) - corner).max() < 12


def test_damage_in_the_middle_is_reported_and_not_fatal(tmp_path):
  path = media_files.write(
    tmp_path / "d.mkv",
    media_files.moving(72),
    media_files.even(72),
    options={"preset": "ultrafast", "g": "12"},
  )
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8)
  content[middle : middle + 4000] = noise.tobytes()
  path.write_bytes(bytes(content))
  glimpses = list(decode.sweep(path))
  assert 20 < len(glimpses) < 72
  times = [g.time for g in glimpses]
  assert times == sorted(times)
  gap = max(np.diff(times)) > 0.1
  assert gap or any(g.broken for g in glimpses)
  assert decode.video(path, 0, 1.0).shape == (24, 64, 96, 3)


def test_frames_after_a_change_of_size_are_marked_broken(tmp_path):
  small = media_files.write(
    tmp_path / "a.ts", media_files.numbered(4), media_files.even(4)
  ).read_bytes()
  large = media_files.write(
    tmp_path / "b.ts", media_files.numbered(4, 64, 96), [1, 1.1, 1.2, 1.3]
  ).read_bytes()
  both = tmp_path / "c.ts"
  both.write_bytes(small + large)
  broken = [g.broken for g in decode.sweep(both)]
  assert len(broken) == 8 and any(broken[4:]) and not any(broken[:4])


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
  """Two seconds at 48 kHz in stereo with clicks at 0.5, 1.2 and 1.7 s."""
  wave = np.zeros((2, 96_000), np.float32)
  for time in (0.5, 1.2, 1.7):
    at = round(time * 48_000)
    wave[:, at : at + 48] = 0.9
  path = tmp_path_factory.mktemp("clicks") / "c.wav"
  return media_files.write_sound(path, wave, 48_000)


def test_audio_starts_with_the_window(clicks):
  for start in (0.0, 0.8, 1.1):
    audio_A = decode.audio(clicks, start, 0.75)
    assert audio_A.shape == (12_000,) and audio_A.dtype == np.float32
    loud = np.flatnonzero(audio_A > 0.4) / RATE + start
    for time in (t for t in (0.5, 1.2, 1.7) if start <= t < start + 0.75):
      near = loud[np.abs(loud - time) < 0.01]
      assert near.min() == pytest.approx(time, abs=1.5e-4)
      assert near.max() == pytest.approx(time + 1e-3, abs=1.5e-4)
    assert len(loud) == 16 * sum(
      start <= t < start + 0.75 for t in (0.5, 1.2, 1.7)
    )


def test_downmixing_full_scale_channels_does_not_clip(tmp_path):
  wave = np.concatenate([media_files.tone(1, 0.99)] * 2)
  path = media_files.write_sound(tmp_path / "s.wav", wave)
  audio_A = decode.audio(path, 0, 1)
  np.testing.assert_allclose(audio_A, wave[0], atol=2e-3)


def test_audio_past_the_end_is_silence(clicks):
  audio_A = decode.audio(clicks, 1.5, 1.0)
  assert audio_A.shape == (16_000,)
  assert audio_A[:8000].any() and not audio_A[8100:].any()


def test_a_file_without_sound_has_no_samples(tmp_path):
  path = media_files.write(
    tmp_path / "q.mp4", media_files.numbered(3), media_files.even(3)
  )
  assert decode.audio(path, 0, 1).shape == (0,)
  with pytest.raises(containers.DamagedError, match="sound"):
    list(decode.sweep_sound(path))


@pytest.mark.parametrize("sample", [np.nan, np.inf, 20.0])
def test_samples_on_another_scale_than_sound_are_refused(tmp_path, sample):
  wave = np.zeros(1600, "<f4")
  wave[100], path = sample, tmp_path / "a.wav"
  size = wave.nbytes
  head = struct.pack(
    "<4sI8sIHHIIHH4sI",
    b"RIFF",
    36 + size,
    b"WAVEfmt ",
    16,
    3,
    1,
    RATE,
    4 * RATE,
    4,
    32,
    b"data",
    size,
  )
  path.write_bytes(head + wave.tobytes())
  with pytest.raises(containers.DamagedError, match="expected -1 to 1"):
    decode.audio(path, 0, 0.1)
  wave[100] = 1.5  # as loud codecs give it
  path.write_bytes(head + wave.tobytes())
  assert decode.audio(path, 0, 0.1).max() > 0.9


def test_streamed_audio_is_complete(clicks):
  parts = list(decode.sweep_sound(clicks))
  joined = np.concatenate([part for _, part in parts])
  np.testing.assert_array_equal(joined, decode.audio(clicks, 0, 2.0))
  ends = [time + part.size / RATE for time, part in parts]
  begins = [time for time, _ in parts]
  np.testing.assert_allclose(begins[1:], ends[:-1], atol=1e-9)


def test_a_clips_media_are_decoded_once(tmp_path, monkeypatch):
  pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
  path = media_files.write(
    tmp_path / "o.mp4",
    media_files.numbered(24),
    media_files.even(24),
    media_files.tone(1),
  )
  opened = []
  whole = containers.opened
  monkeypatch.setattr(
    containers, "opened", lambda p: opened.append(p) or whole(p)
  )
  clip = clips.Clip(id="o", path=str(path), start=0.5, seconds=10 / 24)
  kept = {"old": b"1"}
  media = clip_media.Media(clip, path, kept)
  assert not opened
  assert media.video_THWC is media.video_THWC
  assert clip_media.resize_shorter_side(media.video_THWC, 16).shape == (
    10,
    16,
    32,
    3,
  )
  seen = len(opened)
  assert media.audio_A.shape == (6667,)
  assert media.audio_A is media.audio_A
  # A seek may miss and the file be opened again, but no more than that.
  assert seen <= 2 and len(opened) <= 4
  media.save_artifact("new", b"2")
  assert (
    kept == {"old": b"1", "new": b"2"} and media.read_artifact("old") == b"1"
  )
  with pytest.raises(KeyError):
    media.read_artifact("none")
