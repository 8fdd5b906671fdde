"""Training from media: frames and samples instead of latents."""

import dataclasses
import fractions

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from tests.lib import media_files
from tests.lib import random_records
from tests.lib import record_loader

FRAMES, HEIGHT, WIDTH = 5, 64, 96


@pytest.fixture(scope="module")
def record(tmp_path_factory):
  """Five frames, each more yellow than the last, and a rising sound."""
  path = tmp_path_factory.mktemp("mp4") / "clip.mp4"
  frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 20, np.uint8)
  frames[..., :2] += np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * 40
  mp4.write(path, [frames], None)
  wave = np.linspace(-1, 1, 512 * 6 + 100, dtype=np.float32)
  return dataclasses.replace(
    random_records.record(0),
    latents=AV(),
    video=path.read_bytes(),
    audio=clips.pcm(wave),
    frames=FRAMES,
    height=HEIGHT,
    width=WIDTH,
  )


def test_pcm_round_trips():
  wave = np.array([-1, 0, 0.5, 1, 2], np.float32)
  record = dataclasses.replace(random_records.record(0), audio=clips.pcm(wave))
  near = [-1, 0, 0.5, 32767 / 32768, 32767 / 32768]
  np.testing.assert_array_equal(clips.wave(record), np.float32(near))


def test_a_batch_has_frames_and_samples(record, tmp_path):
  path = tmp_path / "clips"
  builder.write(
    path,
    {"train": [record]},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  bucket = settings_lib.Bucket(video=(3, 4, 6), audio=7)
  chosen = record_loader.settings(
    path, buckets=(bucket,), encode_on_the_fly=True
  )
  batch = next(loader.load(chosen, batch=1, seed=0))
  frames, wave = batch.latents
  assert frames.shape == (1, 9, 64, 96, 3) and frames.dtype == np.uint8
  assert wave.shape == (1, 7 * 512)
  assert [int(n[0]) for n in batch.lengths] == [2, 6]
  np.testing.assert_array_equal(frames[0, :5], clips.frames(record))
  red, _, blue = frames[0, :5].mean((1, 2)).T
  np.testing.assert_allclose(red, [20, 60, 100, 140, 180], atol=4)
  np.testing.assert_allclose(blue, [20] * 5, atol=4)
  assert not frames[0, 5:].any() and not wave[0, 6 * 512 :].any()
  np.testing.assert_array_equal(
    wave[0, : 6 * 512], clips.wave(record)[: 6 * 512]
  )
  with pytest.raises(
    ValueError, match="video as media only.*set data.encode_on_the_fly"
  ):
    chosen = dataclasses.replace(chosen, encode_on_the_fly=False)
    next(loader.load(chosen, batch=1, seed=0))


def test_an_mp4_that_contradicts_its_record_is_refused(record):
  for changes, message in (
    ({"frames": 9}, "expected 9 frames of 64x96, found 5 of 64x96"),
    ({"height": 96}, "expected 5 frames of 96x96, found 5 of 64x96"),
    ({"video": record.video[:200]}, "cannot be decoded"),
    ({"video": b"ffconcat version 1.0\nfile x.mp4\n"}, "cannot be decoded"),
    ({"video": b""}, "cannot be decoded"),
    ({"fps": 30.0}, "expected 24 frames a second, the record says 30"),
  ):
    for read in (clips.check, clips.frames):
      with pytest.raises(ValueError, match=f"'clip-0': .*{message}"):
        read(dataclasses.replace(record, **changes))


def test_sizes_may_come_from_the_latents(record):
  latents = AV(video=np.zeros((2, 4, 6, 4), np.float16))
  clips.check(dataclasses.replace(record, frames=0, height=0, latents=latents))


def _timed(record, tmp_path, times, form="mp4") -> schema.Record:
  """The record of a file whose frames are shown at these times."""
  frames = media_files.numbered(len(times), HEIGHT, WIDTH)
  path = media_files.write(tmp_path / f"t.{form}", frames, times)
  return dataclasses.replace(
    record,
    video=path.read_bytes(),
    audio=clips.pcm(np.zeros(len(times) * 16_000 // 24)),
    frames=len(times),
  )


@pytest.mark.parametrize("fps", [12, 16, 23, 25, 29.97, 30, 60])
@pytest.mark.parametrize("count", [5, 121])
def test_an_mp4_of_another_frame_rate_is_refused(record, tmp_path, fps, count):
  other = _timed(record, tmp_path, media_files.even(count, fps))
  message = f"'clip-0': .*expected 24 frames .* found {fps:.2f}.*resample it"
  with pytest.raises(ValueError, match=message):
    builder.write(
      tmp_path / "clips", {"train": [other]}, geometry=random_records.GEOMETRY
    )
  with pytest.raises(ValueError, match=message):
    clips.frames(other)
  assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("form", ["mp4", "mkv"])
@pytest.mark.parametrize("fps", [24, 24_000 / 1001])
def test_an_mp4_of_24_fps_is_accepted(record, tmp_path, form, fps):
  for count in (1, 5, 121):
    other = _timed(record, tmp_path, media_files.even(count, fps), form)
    assert clips.frames(other).shape == (count, HEIGHT, WIDTH, 3)


def test_a_variable_frame_rate_is_detected_by_timestamps(record, tmp_path):
  swing = np.sin(np.pi * np.arange(121) / 120) / 24
  other = _timed(record, tmp_path, media_files.even(121) + 1.5 * swing)
  with pytest.raises(ValueError, match="'clip-0': .*variable rate.* 0.06. s"):
    clips.check(other)
  # Less than half a frame is not seen.
  clips.check(_timed(record, tmp_path, media_files.even(121) + 0.4 * swing))


def test_rotated_or_anamorphic_frames_are_refused(record, tmp_path):
  frames, times = media_files.numbered(5, HEIGHT, WIDTH), media_files.even(5)
  turned = media_files.write(tmp_path / "t.mp4", frames, times)
  media_files.turn(turned, -1, 0, 0, -1)
  wide = media_files.write(
    tmp_path / "w.mp4", frames, times, aspect=fractions.Fraction(4, 3)
  )
  for path, message in ((turned, "turned"), (wide, r"not square \(1.333\)")):
    other = dataclasses.replace(record, video=path.read_bytes())
    with pytest.raises(ValueError, match=message):
      clips.check(other)


def test_a_truncated_file_is_refused(record):
  for missing in (1, 20, len(record.video) // 4):
    cut = dataclasses.replace(record, video=record.video[:-missing])
    with pytest.raises(ValueError, match="'clip-0': its mp4 cannot be decoded"):
      clips.frames(cut)


def test_other_rates_are_refused_when_read_for_training(
  record, tmp_path, monkeypatch
):
  other = _timed(record, tmp_path, media_files.even(5, 30))
  with monkeypatch.context() as patch:
    patch.setattr(clips, "check", lambda record: None)
    path = tmp_path / "clips"
    builder.write(
      path,
      {"train": [other]},
      geometry=random_records.GEOMETRY,
      null_text=random_records.null_text(),
    )
  bucket = settings_lib.Bucket(video=(3, 4, 6), audio=7)
  chosen = record_loader.settings(
    path, buckets=(bucket,), encode_on_the_fly=True
  )
  with pytest.raises(ValueError, match="'clip-0': .*24 frames a second"):
    next(loader.load(chosen, batch=1, seed=0))
