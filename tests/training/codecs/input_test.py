"""Codec inputs: crops, order, resuming and bad input."""

import contextlib
import importlib

import numpy as np
import pytest

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import builder
from ovi_jax.data import clips as media_clips
from ovi_jax.data import schema
from ovi_jax.data import tokenizer
from ovi_jax.synthetic import records
from ovi_jax.synthetic import world
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from ovi_jax.training.codecs import input as inputs

WORLD = world.World(seed=3)
SOURCE = "world:3"
INDEX = (1 << schema.INDEX_BITS) - 1


def begun(batch=3, seed=0, index=0, count=1, **settings):
  chosen = inputs.CodecInputConfig(**{"sources": (SOURCE,)} | settings)
  return inputs.load(
    chosen, batch=batch, seed=seed, process_index=index, process_count=count
  )


def same(ours, theirs):
  for name, part in ours._asdict().items():
    other = getattr(theirs, name)
    pairs = zip(part, other) if isinstance(part, tuple) else [(part, other)]
    for a, b in pairs:
      assert (a is None) == (b is None), name
      np.testing.assert_array_equal(a, b)


def place_of(part, whole):
  """Where `part` begins in `whole`, which holds it."""
  length = len(part)
  found = [
    start
    for start in range(len(whole) - length + 1)
    if np.array_equal(whole[start], part[0])
    and np.array_equal(whole[start : start + length], part)
  ]
  assert found
  return found[0]


def test_crops_are_parts_of_clips_at_any_place():
  source = begun(batch=6, num_frames=9)
  batch = next(source)
  assert batch.latents.video.shape == (6, 9, 64, 64, 3)
  assert batch.latents.video.dtype == np.uint8 and batch.latents.audio is None
  np.testing.assert_array_equal(batch.lengths.video, [9] * 6)
  starts = [
    place_of(crop, WORLD.clip(int(number) & INDEX).frames_THWC)
    for crop, number in zip(batch.latents.video, batch.ids)
  ]
  assert len(set(batch.ids.tolist())) == 6 and len(set(starts)) > 3
  assert max(starts) > 60

  batch = next(begun(batch=4, num_audio_samples=4096))
  assert batch.latents.audio.shape == (4, 4096)
  assert batch.latents.audio.dtype == np.float32 and batch.text.audio is None
  crop, number = batch.latents.audio[2], int(batch.ids[2]) & INDEX
  place_of(crop, WORLD.clip(number).wave_A)


def test_crop_positions_cover_the_whole_clip():
  assert inputs._part(0.0, 121, 17) == slice(0, 17)
  assert inputs._part(0.999, 121, 17) == slice(104, 121)
  assert inputs._part(0.999, 17, 17) == slice(0, 17)


def test_clips_without_the_modality_are_skipped():
  silent, blind = (
    next(n for n in range(200) if getattr(WORLD.clip(n), part) is None)
    for part in ("wave_A", "frames_THWC")
  )
  source, middle = inputs.World(WORLD), inputs.CropPosition(0.5, 0.5, 0.5)
  sound, film = inputs.ClipSpec(samples=512), inputs.ClipSpec(frames=5)
  assert source.crop(silent, sound, middle) is None
  assert source.crop(silent, film, middle) is not None
  assert source.crop(blind, film, middle) is None
  assert source.crop(blind, sound, middle) is not None


def test_a_crop_longer_than_every_clip_is_refused(monkeypatch):
  monkeypatch.setattr(inputs, "_TRIES", 3)
  with pytest.raises(ValueError, match="none of 3 clips of .*'world:3:clips'"):
    next(begun(num_audio_samples=16_000 * 60))


class PartlyDamaged(inputs.World):
  """Crops of the second half of every clip are damaged."""

  def crop(self, number, wanted, place):
    if place.video > 0.5:
      raise ValueError(f"clip {number} is damaged at {place.video:.1f}")
    return super().crop(number, wanted, place)


def test_the_reason_of_a_damaged_crop_is_logged(monkeypatch, log_lines):
  monkeypatch.setattr(
    inputs, "open_source", lambda name, split: PartlyDamaged(WORLD)
  )
  assert next(begun(num_frames=5, max_damaged_records=99)).damaged is None
  assert log_lines
  assert all("is damaged at 0." in line for line in log_lines)
  with pytest.raises(ValueError, match="is damaged at 0"):
    next(begun(num_frames=5))


def test_clips_that_are_all_damaged_are_refused_with_the_last_error(
  monkeypatch,
):
  def crop(*_):
    raise ValueError("no frames")

  monkeypatch.setattr(inputs, "_TRIES", 3)
  monkeypatch.setattr(inputs.World, "crop", crop)
  with pytest.raises(ValueError, match="3 are damaged: no frames") as error:
    next(begun(num_frames=5, max_damaged_records=1))
  assert str(error.value.__cause__) == "no frames"


def test_captions_are_read_as_ids(tmp_path):
  file = tmp_path / "tokenizer.json"
  captions = [c for n in range(30) for c in WORLD.clip(n).captions]
  tokenizer.make(captions).save(str(file))
  batch = next(begun(batch=2, tokenizer=str(file), max_text_len=12))
  assert batch.text.video is batch.text.audio
  assert batch.text.audio.shape == (2, 12) and batch.latents == (None, None)
  made = inputs._tokenizer(str(file))
  number = int(batch.ids[0]) & INDEX
  possible, _ = made.encode(WORLD.clip(number).captions, 12)
  assert any(np.array_equal(batch.text.audio[0], ids) for ids in possible)


def test_an_input_resumes_from_its_state():
  whole = begun(num_frames=5)
  batches = [next(whole) for _ in range(4)]
  state = whole.get_state()
  following = next(whole)
  seen = {int(number) for batch in batches for number in batch.ids}
  assert len(seen) == 12 and not seen & set(following.ids.tolist())
  again = begun(num_frames=5)
  same(next(again), batches[0])
  again.set_state(state)
  same(next(again), following)
  # Two processes share a batch.
  halves = [
    next(begun(batch=4, num_frames=5, index=i, count=2)) for i in (0, 1)
  ]
  one = next(begun(batch=4, num_frames=5))
  np.testing.assert_array_equal(
    np.concatenate([h.latents.video for h in halves]), one.latents.video
  )
  for changes, message in (
    ({"seed": 1}, "seed: 0 in the run, 1 now"),
    ({"num_frames": 9}, r"crop: \[5, 0\] in the run, \[9, 0\] now"),
    ({"sources": ("world:4",)}, "world:4"),
  ):
    with pytest.raises(ValueError, match=message):
      begun(**{"num_frames": 5} | changes).set_state(state)


@pytest.mark.slow
def test_workers_change_nothing():
  alone = begun(batch=2, num_frames=5)
  with contextlib.closing(
    begun(batch=2, num_frames=5, num_workers=2)
  ) as shared:
    for _ in range(3):
      same(next(shared), next(alone))


def test_a_dataset_is_a_source(tmp_path):
  complete = world.World(seed=1, frames=9, size=32, complete=True)
  made = [records.record(complete, n) for n in range(3)]
  path = tmp_path / "media"
  builder.write(path, {"train": made}, geometry=schema.Geometry())
  batch = next(
    begun(sources=(str(path),), num_frames=5, num_audio_samples=2048)
  )
  assert batch.latents.video.shape == (3, 5, 32, 32, 3)
  for row, number in enumerate(batch.ids):
    record = made[int(number)]
    place_of(batch.latents.video[row], media_clips.frames(record))
    place_of(batch.latents.audio[row], media_clips.wave(record))
  mixed = begun(sources=(str(path), SOURCE), num_frames=5, batch=8)
  with pytest.raises(ValueError, match="clips of one size are needed"):
    next(mixed)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, "set num_frames, num_audio_samples or tokenizer"),
    ({"num_frames": 8}, "num_frames must be 0 or 1 . a multiple of 4"),
    (
      {"num_frames": 5, "sources": ()},
      "data.sources is empty: name the folder",
    ),
    ({"num_frames": 5, "sources": ("",)}, "got an empty name"),
    (
      {"num_frames": 5, "sources": ("world:x",)},
      "expected world:SEED, .*'world:x'",
    ),
    ({"num_frames": 5, "sources": ("world:1:songs",)}, "world:1:songs"),
    ({"num_frames": 5, "sources": ("nowhere",)}, "nowhere"),
    (
      {"num_frames": 5, "num_workers": -1},
      "data: num_workers must be 0 or more",
    ),
    ({"tokenizer": "nowhere"}, "nowhere"),
  ],
)
def test_unreadable_sources_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    begun(**changes)


def test_a_table_smaller_than_the_tokenizer_is_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  tokenizer.write(path, ["one two three four"])
  values = importlib.import_module("configs.codec_text").get_config("mini")
  values.data.tokenizer = str(path)
  size = tokenizer_lib.Tokenizer.load(path).model.get_vocab_size()
  values.model.vocab_size = size
  tasks.make(settings.from_config(values)).check()
  values.model.vocab_size = size - 1
  with pytest.raises(ValueError, match=f"set --config.model.vocab_size={size}"):
    tasks.make(settings.from_config(values)).check()
