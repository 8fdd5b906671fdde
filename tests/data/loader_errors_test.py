"""Errors of the loader."""

import dataclasses
import shutil
import types

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import loader
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from tests.lib import random_records
from tests.lib import record_loader


def write(path, records, **changes):
  given = {
    "geometry": random_records.GEOMETRY,
    "null_text": random_records.null_text(),
  }
  builder.write(path, {"train": records}, **{**given, **changes})
  return path


def test_records_that_fit_no_bucket_are_refused(sounds):
  small = (settings_lib.Bucket(audio=12),)
  chosen = record_loader.settings(sounds, buckets=small, crop="refuse")
  with pytest.raises(ValueError, match="6 of 12.*record 3 has.*20 audio"):
    loader.load(chosen, batch=2, seed=0)
  left = dataclasses.replace(chosen, skip_unfit=True)
  batches = loader.load(left, batch=2, seed=0)
  assert batches.records == (6,)
  assert all(
    (b.lengths.audio <= 12).all() for b in record_loader.take(batches, 6)
  )
  videos = (settings_lib.Bucket(video=(3, 4, 6)),)
  with pytest.raises(ValueError, match="12 of 12 records fit no bucket"):
    loader.load(
      record_loader.settings(sounds, buckets=videos, skip_unfit=True),
      batch=2,
      seed=0,
    )


def test_a_batch_that_processes_cannot_divide_is_refused(sounds):
  with pytest.raises(ValueError, match=r"\[3, 3\], must divide by the 2"):
    loader.load(
      record_loader.settings(sounds), batch=3, seed=0, process_count=2
    )
  with pytest.raises(ValueError, match="3 must divide by the 2"):
    next(
      loader.open_eval(record_loader.settings(sounds)).batches(
        3, process_count=2
      )
    )
  with pytest.raises(ValueError, match="process index 2 is out of range"):
    loader.load(
      record_loader.settings(sounds),
      batch=2,
      seed=0,
      process_index=2,
      process_count=2,
    )


def test_other_geometries_and_missing_sources_are_refused(sounds):
  other = dataclasses.replace(random_records.GEOMETRY, text_dim=4096)
  with pytest.raises(ValueError, match="text_dim: expected 4096, got 5"):
    loader.load(record_loader.settings(sounds, geometry=other), batch=2, seed=0)
  with pytest.raises(
    ValueError, match=r"data.sources is empty: .*sources=.\('DIR',\)"
  ):
    record_loader.settings()


def test_missing_null_text_text_or_latents_are_refused(tmp_path):
  sound = random_records.record(0, video=None)
  path = write(tmp_path / "a", [sound], null_text=None)
  with pytest.raises(ValueError, match="no embedding of the empty prompt"):
    loader.load(record_loader.settings(path), batch=1, seed=0)
  path = write(tmp_path / "b", [dataclasses.replace(sound, text=())])
  with pytest.raises(ValueError, match="record 0 has no text embedding"):
    next(loader.load(record_loader.settings(path), batch=1, seed=0))
  path = write(tmp_path / "c", [sound])
  with pytest.raises(
    ValueError, match="rows of text, .* at most 1; raise max_text_len"
  ):
    next(
      loader.load(record_loader.settings(path, max_text_len=1), batch=1, seed=0)
    )
  media = dataclasses.replace(
    sound, audio=bytes(1024 * 10), latents=type(sound.latents)()
  )
  path = write(tmp_path / "d", [media])
  with pytest.raises(ValueError, match="'clip-0': has its audio as media"):
    next(loader.load(record_loader.settings(path), batch=1, seed=0))


def test_embeddings_of_two_encoders_are_not_mixed(tmp_path):
  sources = [
    settings_lib.Source(
      path=str(
        write(
          tmp_path / name,
          [random_records.record(number, video=None)],
          null_text=random_records.null_text() + number,
        )
      )
    )
    for number, name in enumerate("ab")
  ]
  mixed = record_loader.settings(tmp_path / "a", sources=tuple(sources))
  with pytest.raises(ValueError, match="with different text encoders"):
    loader.load(mixed, batch=1, seed=0)


def test_the_state_of_another_dataset_is_refused(tmp_path):
  first, other = (
    write(tmp_path / name, [random_records.record(number, video=None)])
    for number, name in enumerate("ab")
  )
  state = loader.load(
    record_loader.settings(first), batch=1, seed=0
  ).get_state()
  moved = first.rename(tmp_path / "c")
  loader.load(record_loader.settings(moved), batch=1, seed=0).set_state(state)
  with pytest.raises(ValueError, match="datasets: .* in the run"):
    loader.load(record_loader.settings(other), batch=1, seed=0).set_state(state)


@pytest.mark.parametrize(
  "change", ["seed", "batch", "buckets", "caption_sampling"]
)
def test_the_state_of_another_order_is_refused(sounds, change):
  state = loader.load(
    record_loader.settings(sounds), batch=2, seed=0
  ).get_state()
  given, changed = {"batch": 2, "seed": 0}, {}
  if change in given:
    given[change] += 2
  else:
    small = (settings_lib.Bucket(audio=12),)
    changed[change] = {"buckets": small, "caption_sampling": "first"}[change]
  name = {"batch": "rows"}.get(change, change)
  with pytest.raises(ValueError, match=f"{name}: .* in the run, .* now"):
    loader.load(record_loader.settings(sounds, **changed), **given).set_state(
      state
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_record_is_named(sounds, tmp_path, workers):
  path = shutil.copytree(sounds, tmp_path / "copy")
  shard = sorted(path.glob("*train.array_record*"))[1]
  damaged = bytearray(shard.read_bytes())
  damaged[200] ^= 255
  shard.write_bytes(bytes(damaged))
  batches = loader.load(
    record_loader.settings(path, num_workers=workers), batch=2, seed=0
  )
  with pytest.raises(ValueError, match=f"{shard}: record . .number [5-9] of"):
    record_loader.take(batches, 12)
  batches.close()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"caption_sampling": "last"}, "caption_sampling: expected one of"),
    ({"max_text_len": 0}, "max_text_len must be at least 1"),
    ({"num_workers": -1}, "must not be negative"),
    ({"buckets": ()}, "video_buckets and data.audio_buckets are empty: set"),
    (
      {
        "buckets": (
          settings_lib.Bucket(audio=3),
          settings_lib.Bucket(video=(1, 2, 2)),
        )
      },
      "same modalities",
    ),
  ],
)
def test_invalid_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    record_loader.settings("anywhere", **changes)


def test_invalid_buckets_and_weights_are_refused():
  with pytest.raises(ValueError, match="even H"):
    settings_lib.Bucket(video=(1, 3, 2))
  with pytest.raises(ValueError, match="sizes must be at least 1"):
    settings_lib.Bucket(audio=0)
  scaled = record_loader.settings(
    "a", token_balanced_batches=True, batch_multiple=4
  )
  with pytest.raises(ValueError, match="multiple: expected one that divides"):
    settings_lib.rows(scaled, 6)
  with pytest.raises(ValueError, match="a video, a sound, or both"):
    settings_lib.Bucket()
  sources = (
    settings_lib.Source(path="a", weight=1),
    settings_lib.Source(path="b"),
  )
  with pytest.raises(ValueError, match="positive weight for every source"):
    settings_lib.LoaderConfig(
      sources=sources, buckets=(settings_lib.Bucket(audio=1),)
    )
  assert np.isclose(sources[0].weight, 1)


@pytest.mark.parametrize(
  "change",
  [
    {"step": 2**60},
    {"step": -1},
    {"step": "3"},
    {"cursor": {"draws": 0, "batches": 0}},
    {"cursor": {"draws": 0, "batches": 0, "pending": 3}},
    {"cursor": {"draws": "0", "batches": 0, "pending": [[]]}},
    {"cursor": {"draws": 0, "batches": 0, "pending": [[5]]}},
    {"cursor": {"draws": 2**62, "batches": 0, "pending": [[]]}},
    {"cursor": {"draws": 9, "batches": 0, "pending": [[1, 2, 3, 4, 5]]}},
    {"cursor": {"draws": 9, "batches": 0, "pending": [[]] * 9}},
    {"order": [1]},
  ],
  ids=str,
)
def test_an_invalid_state_is_refused(sounds, change):
  batches = loader.load(record_loader.settings(sounds), batch=2, seed=0)
  state = batches.get_state() | change
  with pytest.raises(ValueError, match="the state of the data is"):
    batches.set_state(state)
  assert next(batches).ids.shape == (2,)
  batches.close()


@pytest.mark.parametrize(
  "workers", [0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_damaged_records_within_a_budget_are_replaced(
  sounds, tmp_path, workers, log_lines
):
  path = shutil.copytree(sounds, tmp_path / "copy")
  shard = sorted(path.glob("*train.array_record*"))[1]
  damaged = bytearray(shard.read_bytes())
  damaged[200] ^= 255
  shard.write_bytes(bytes(damaged))
  chosen = record_loader.settings(
    path, num_workers=workers, max_damaged_records=1
  )
  whole = record_loader.settings(sounds)
  batches = loader.load(chosen, batch=2, seed=0)
  found = record_loader.take(batches, 12)
  batches.close()
  missing = set()
  for ours, theirs in zip(
    found, record_loader.take(loader.load(whole, batch=2, seed=0), 12)
  ):
    assert ours.damaged is None
    kept = theirs.ids == ours.ids
    missing |= set(theirs.ids[~kept].tolist())
    np.testing.assert_array_equal(
      ours.latents.audio[kept], theirs.latents.audio[kept]
    )
  (bad,) = missing
  said = [line for line in log_lines if "is replaced by" in line]
  assert len(said) == 1
  assert said[0].startswith(f"record 0:{bad} is replaced by 0:")
  assert "(1 of at most 1): " in said[0] and "is damaged" in said[0]


def test_held_out_ids_count_all_sources(sounds, tmp_path):
  """Also those before it that lack the split, see `record_ids`."""
  path = tmp_path / "train_only"
  builder.write(
    path,
    {"train": random_records.sounds([4])},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  copy = shutil.copytree(sounds, tmp_path / "copy")
  shard = max(copy.glob("*test.array_record*"))
  data = bytearray(shard.read_bytes())
  data[900] ^= 255
  shard.write_bytes(bytes(data))
  told = []
  budget = types.SimpleNamespace(
    leave_out=lambda split, bad, problem: told.append(record_ids.name(bad))
  )
  records = loader.open_eval(record_loader.settings(path, copy))
  ids = np.concatenate([b.ids for b in records.batches(2, damaged=budget)])
  named = [record_ids.name(i) for i in ids if i >= 0] + told
  assert len(told) == 1
  assert sorted(named) == [f"1:{number}" for number in range(5)]


def test_damaged_held_out_records_count_against_the_same_budget(
  sounds, tmp_path, log_lines
):
  path = shutil.copytree(sounds, tmp_path / "copy")
  shard = max(path.glob("*test.array_record*"))
  damaged = bytearray(shard.read_bytes())
  damaged[900] ^= 255  # of the second record
  shard.write_bytes(bytes(damaged))
  records = loader.open_eval(record_loader.settings(path))
  with pytest.raises(ValueError, match="is damaged"):
    list(records.batches(2))

  budget = loader.DamagedRecords(1)
  for _ in range(2):  # a record counts once
    found = list(records.batches(2, damaged=budget))
    whole = list(loader.open_eval(record_loader.settings(sounds)).batches(2))
    ids, expected = (np.concatenate([b.ids for b in x]) for x in (found, whole))
    (row,) = np.flatnonzero(ids != expected)
    lengths = np.concatenate([b.lengths.audio for b in found])
    assert (ids[row], lengths[row]) == (-1, 0)
  (line,) = log_lines
  start = f"record 0:{expected[row]} of test is left out (1 of at most 1): "
  assert line.startswith(start)
  batch = record_loader.batch(
    np.array([5]), (schema.DamagedRecord(3, 5, "file: record 3"),)
  )
  with pytest.raises(ValueError, match=r"before it: 0:\d of test, 0:3; raise"):
    budget.check(batch)


def test_more_damaged_records_than_the_budget_end_the_run(log_lines):
  check = loader.DamagedRecords(1)

  def batch(*damaged):
    found = (schema.DamagedRecord(n, 5, f"file: record {n}") for n in damaged)
    return record_loader.batch(np.array([5, 6]), tuple(found))

  assert check.check(batch()).damaged is None
  check.check(batch(3, 3))
  (line,) = log_lines
  assert line.endswith(
    "0:3 is replaced by 0:5 (1 of at most 1): file: record 3"
  )
  with pytest.raises(ValueError, match="file: record 4. data.max_damaged.*=1"):
    check.check(batch(3, 4))
