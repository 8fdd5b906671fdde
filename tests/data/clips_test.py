"""Training straight from media: frames and samples in place of latents."""

import dataclasses

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import loader
from ovi_jax.data import settings as settings_lib
from ovi_jax.media import mp4
from ovi_jax.modality import AV
from tests.data import generate
from tests.data.loader_test import settings

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
    generate.record(0),
    latents=AV(),
    video=path.read_bytes(),
    audio=clips.pcm(wave),
    frames=FRAMES,
    height=HEIGHT,
    width=WIDTH,
  )


def test_pcm_there_and_back():
  wave = np.array([-1, 0, 0.5, 1, 2], np.float32)
  record = dataclasses.replace(generate.record(0), audio=clips.pcm(wave))
  near = [-1, 0, 0.5, 32767 / 32768, 32767 / 32768]
  np.testing.assert_array_equal(clips.wave(record), np.float32(near))


def test_frames_and_samples_in_a_batch(record, tmp_path):
  path = tmp_path / "clips"
  builder.write(
    path,
    {"train": [record]},
    geometry=generate.GEOMETRY,
    null_text=generate.null_text(),
  )
  bucket = settings_lib.Bucket(video=(3, 4, 6), audio=7)
  chosen = settings(path, buckets=(bucket,), media=True)
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
  with pytest.raises(ValueError, match="video as media only"):
    chosen = dataclasses.replace(chosen, media=False)
    next(loader.load(chosen, batch=1, seed=0))


def test_an_mp4_that_is_not_what_the_record_says(record):
  other = dataclasses.replace(record, frames=9)
  with pytest.raises(ValueError, match=r"clip-0.*\[5, 64, 96, 3\], exp.*\[9, "):
    clips.frames(other)
  broken = dataclasses.replace(record, video=record.video[:200])
  with pytest.raises(ValueError, match="clip-0.*cannot be decoded"):
    clips.frames(broken)
