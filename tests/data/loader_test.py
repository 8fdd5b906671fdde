"""The loader: deterministic order, exact resuming."""

import dataclasses
import json

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import collate
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.modality import AV
from tests.lib import random_records
from tests.lib import record_loader


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Four clips with a video, two sounds without."""
  path = tmp_path_factory.mktemp("data") / "clips"
  records = [random_records.record(i) for i in range(4)]
  records += [random_records.record(i, video=None) for i in (4, 5)]
  builder.write(
    path,
    {"train": records},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  return path


def assert_same(ours, theirs):
  for one, other in zip(ours, theirs, strict=True):
    for a, b in zip(one, other, strict=True):
      parts = zip(a, b) if isinstance(a, AV) else [(a, b)]
      for x, y in parts:
        if x is None or y is None:
          assert x is y
        else:
          np.testing.assert_array_equal(x, y)


def test_a_row_is_its_record_in_the_smallest_bucket_that_holds_it(sounds):
  seen = set()
  for batch in record_loader.take(
    loader.load(record_loader.settings(sounds), batch=2, seed=0), 12
  ):
    for row, number in enumerate(batch.ids):
      record = random_records.sounds(record_loader.LENGTHS)[number]
      length, sound = record_loader.LENGTHS[number], batch.latents.audio[row]
      assert len(sound) == (10 if length <= 10 else 40)
      assert batch.lengths.audio[row] == length
      np.testing.assert_array_equal(sound[:length], record.latents.audio)
      assert not sound[length:].any()
      text_SE = batch.text.audio[row]
      kept = [len(t) for t in record.text if (text_SE[: len(t)] == t).all()]
      assert kept and not text_SE[kept[0] :].any()
      seen.add((int(number), kept[0]))
    assert batch.latents.video is batch.text.video is batch.lengths.video
    dtypes = batch.latents.audio, batch.lengths.audio, batch.ids
    assert [a.dtype.name for a in dtypes] == ["float32", "int32", "int64"]
  assert {kept for _, kept in seen} == {2, 3}, "both captions come up"


def test_a_batch_may_mix_clips_and_sounds(clips):
  bucket = settings_lib.Bucket(video=(4, 4, 6), audio=11)
  batch = next(
    loader.load(
      record_loader.settings(clips, buckets=(bucket,)), batch=6, seed=0
    )
  )
  assert batch.latents.video.shape == (6, 4, 4, 6, 4)
  assert batch.text.video is batch.text.audio
  for row, number in enumerate(batch.ids):
    length = 3 if number < 4 else 0
    assert batch.lengths.video[row] == length
    assert batch.lengths.audio[row] == 11
    assert not batch.latents.video[row, length:].any()
    if number < 4:  # one latent too long beside its video: cut at the end
      record = random_records.record(int(number))
      kept = record.latents.audio[:11]
      np.testing.assert_array_equal(batch.latents.audio[row], kept)


@pytest.mark.parametrize("done", range(6))
def test_restored_batches_are_the_same_bit_for_bit(sounds, done):
  chosen = record_loader.settings(sounds)
  batches = loader.load(chosen, batch=4, seed=5)
  record_loader.take(batches, done)
  state = json.loads(json.dumps(batches.get_state()))
  wanted = record_loader.take(batches, 5)
  again = loader.load(chosen, batch=4, seed=5)
  again.set_state(state)
  assert_same(record_loader.take(again, 5), wanted)
  batches.set_state(state)
  assert_same(record_loader.take(batches, 5), wanted)


def test_the_state_stays_small(sounds):
  chosen = record_loader.settings(sounds)
  batches = loader.load(chosen, batch=4, seed=5)
  batches._step = 5000
  state = batches.get_state()
  assert state["cursor"]["batches"] > 4000
  assert len(json.dumps(state)) < 1000
  again = loader.load(chosen, batch=4, seed=5)
  again.set_state(state)
  assert_same(record_loader.take(again, 2), record_loader.take(batches, 2))


@pytest.mark.slow
def test_workers_change_nothing_and_restore(sounds):
  plain = loader.load(record_loader.settings(sounds), batch=4, seed=5)
  wanted = record_loader.take(plain, 7)
  batches = loader.load(
    record_loader.settings(sounds, num_workers=2), batch=4, seed=5
  )
  assert_same(record_loader.take(batches, 3), wanted[:3])
  state = batches.get_state()
  assert_same(record_loader.take(batches, 2), wanted[3:5])
  batches.set_state(state)
  assert_same(record_loader.take(batches, 4), wanted[3:])
  assert type(next(batches).latents.audio) is np.ndarray
  batches.close()
  plain.set_state(state)
  assert_same(record_loader.take(plain, 4), wanted[3:])


def test_processes_share_each_batch_and_may_change(sounds):
  def process(index, count):
    return loader.load(
      record_loader.settings(sounds),
      batch=4,
      seed=1,
      process_index=index,
      process_count=count,
    )

  wanted = np.concatenate([b.ids for b in record_loader.take(process(0, 1), 6)])
  alone = process(0, 1)
  seen = [b.ids for b in record_loader.take(alone, 2)]
  two = [process(i, 2) for i in range(2)]
  for each in two:
    each.set_state(alone.get_state())
  seen += [next(each).ids for _ in range(3) for each in two]
  assert two[0].get_state() == two[1].get_state()
  alone.set_state(two[0].get_state())
  seen.append(next(alone).ids)
  np.testing.assert_array_equal(np.concatenate(seen), wanted)


def test_random_choices_depend_on_seed_epoch_and_record(sounds):
  short = (settings_lib.Bucket(audio=4),)

  def chosen(batch, seed, count):
    kept = {}
    batches = loader.load(
      record_loader.settings(sounds, buckets=short), batch=batch, seed=seed
    )
    for number, one in enumerate(record_loader.take(batches, count)):
      for row, record in enumerate(one.ids):
        epoch = (number * batch + row) // len(record_loader.LENGTHS)
        kept[int(record), epoch] = one.latents.audio[row].tobytes()
    return kept

  ours = chosen(3, 0, 8)
  assert ours == chosen(4, 0, 6) and len(ours) == 24
  other = chosen(4, 1, 6)
  assert any(ours[key] != other[key] for key in ours)
  assert any(ours[i, 0] != ours[i, 1] for i in range(12))


def test_mixture_follows_the_weights(sounds, clips):
  sources = (
    settings_lib.Source(path=str(sounds), weight=1),
    settings_lib.Source(path=str(clips), weight=3),
  )
  chosen = dataclasses.replace(record_loader.settings(sounds), sources=sources)
  batches = loader.load(
    dataclasses.replace(chosen, buckets=record_loader.BUCKETS[1:]),
    batch=8,
    seed=0,
  )
  ids = np.concatenate([b.ids for b in record_loader.take(batches, 10)])
  assert np.mean(ids >> schema.INDEX_BITS == 1) == 0.75
  assert batches.records == (12, 6)
  np.testing.assert_array_equal(batches.null_text, random_records.null_text())


def test_token_balanced_batches_have_more_rows_in_shorter_buckets(sounds):
  buckets = (settings_lib.Bucket(audio=15), record_loader.BUCKETS[1])
  chosen = record_loader.settings(
    sounds, buckets=buckets, token_balanced_batches=True, batch_multiple=3
  )
  batches = loader.load(chosen, batch=3, seed=0)
  assert batches.rows == (6, 3)
  shapes = {b.latents.audio.shape for b in record_loader.take(batches, 9)}
  assert shapes == {(6, 15, 3), (3, 40, 3)}
  buckets = settings_lib.sound_buckets((2, 5.04, 12))
  assert [bucket.audio for bucket in buckets] == [62, 157, 375]


def test_eval_records_are_one_pass_in_a_fixed_order(sounds):
  def ids(**share):
    batches = list(
      loader.open_eval(record_loader.settings(sounds)).batches(2, **share)
    )
    return batches, np.stack([b.ids for b in batches])

  batches, seen = ids()
  assert seen.tolist() == [[0, 2], [3, collate.PADDING], [1, 4]]
  assert batches[1].lengths.audio.tolist() == [6, 0]
  assert batches[2].lengths.audio.tolist() == [30, 40]
  start = random_records.sounds([4, 30, 9, 6, 50])[4].latents.audio[:40]
  np.testing.assert_array_equal(batches[2].latents.audio[1], start)
  assert_same(ids()[0], batches)
  halves = [ids(process_index=i, process_count=2)[1] for i in range(2)]
  np.testing.assert_array_equal(np.concatenate(halves, 1), seen)


def test_excluding_a_record_leaves_all_others_as_they_are(sounds):
  chosen = record_loader.settings(sounds)
  batches = loader.load(chosen, batch=2, seed=0)
  state = batches.get_state()
  whole = record_loader.take(batches, 18)
  fewer = dataclasses.replace(chosen, exclude_records="0:3,0:8")
  without = loader.load(fewer, batch=2, seed=0)
  without.set_state(state)  # the same data
  replaced = 0
  for ours, theirs in zip(record_loader.take(without, 18), whole):
    for row, (mine, other) in enumerate(zip(ours.ids, theirs.ids)):
      assert mine not in (3, 8)
      if other in (3, 8):
        replaced += 1
        continue
      assert mine == other
      np.testing.assert_array_equal(
        ours.latents.audio[row], theirs.latents.audio[row]
      )
      np.testing.assert_array_equal(
        ours.text.audio[row], theirs.text.audio[row]
      )
  assert replaced == 6


def test_other_weights_apply_from_the_next_batch_on(sounds, clips):
  def opened(*weights):
    sources = [
      settings_lib.Source(path=str(path), weight=weight)
      for path, weight in zip((sounds, clips), weights)
    ]
    return loader.load(
      record_loader.settings(
        sources=tuple(sources), buckets=record_loader.BUCKETS[1:]
      ),
      batch=8,
      seed=0,
    )

  before = opened(3, 1)
  ids = [b.ids for b in record_loader.take(before, 3)]
  state = json.loads(json.dumps(before.get_state()))
  after = opened(1, 3)
  after.set_state(state)
  more = record_loader.take(after, 9)
  ids += [b.ids for b in more]
  sources = np.concatenate(ids) >> schema.INDEX_BITS
  assert np.mean(sources[:24] == 0) == np.mean(sources[24:] == 1) == 0.75
  # Each source goes on: every record comes once an epoch.
  mine = np.concatenate(ids)[sources == 0]
  for epoch in range(len(mine) // 12):
    assert sorted(mine[epoch * 12 :][:12]) == list(range(12))
  # The change is part of the state.
  again = opened(1, 3)
  again.set_state(state)
  record_loader.take(again, 4)
  last = opened(1, 3)
  last.set_state(json.loads(json.dumps(again.get_state())))
  assert_same(record_loader.take(last, 5), more[4:])


def test_a_state_with_damaged_weights_is_refused(sounds):
  batches = loader.load(record_loader.settings(sounds), batch=2, seed=0)
  state = batches.get_state()
  for mixture in (None, [], [[0]], [[0, [0]]], [[1, [5]]], [[0, [1, 1]]]):
    with pytest.raises(ValueError, match="expected weights by position"):
      batches.set_state(state | {"mixture": mixture})
