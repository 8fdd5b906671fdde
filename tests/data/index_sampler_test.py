"""The order of records is a function of the seed."""

import dataclasses

import numpy as np
import pytest

from ovi_jax.data import index_sampler


def make(seed=0, sizes=(3, 4)):
  """Two sources of 10 and 7 records, weights 1 to 3, two buckets."""
  return index_sampler.MixturePlan(
    seed=seed,
    weights=(1, 3),
    records=(np.arange(10), np.arange(7) * 2),
    buckets=(np.arange(10) % 2, np.zeros(7, int)),
    sizes=sizes,
  )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_permute_is_a_permutation(size):
  index, zeros = np.arange(size), np.zeros(size, int)
  first = index_sampler.permute(index, zeros, size, (0, 0))
  assert sorted(first) == list(range(size))
  if size == 1000:
    for epoch, key in ((1, (0, 0)), (0, (1, 0)), (0, (0, 1))):
      other = index_sampler.permute(index, zeros + epoch, size, key)
      assert np.mean(other == first) < 0.01
      assert abs(np.corrcoef(other, first)[0, 1]) < 0.1


def test_the_order_of_a_seed_never_changes():
  order = index_sampler.permute(np.arange(8), np.zeros(8, int), 8, (0, 0))
  np.testing.assert_array_equal(order, [2, 5, 4, 6, 3, 1, 7, 0])


def test_interleaving_keeps_the_proportions_everywhere():
  source, count = index_sampler.interleave((2, 3, 5), np.arange(1000))
  for number, share in enumerate((0.2, 0.3, 0.5)):
    mine = source == number
    np.testing.assert_array_equal(count[mine], np.arange(mine.sum()))
    so_far = np.cumsum(mine)
    assert np.abs(so_far - share * np.arange(1, 1001)).max() < 3
  far, _ = index_sampler.interleave((2, 3, 5), np.arange(10) + 10**15)
  np.testing.assert_array_equal(far, source[:10])


def test_each_epoch_of_a_source_has_each_record_once():
  drawn = index_sampler.records_at(make(), np.arange(400))
  for source, records in enumerate(make().records):
    mine = drawn.source == source
    for epoch in range(5):
      seen = drawn.record[mine & (drawn.epoch == epoch)]
      assert sorted(seen) == list(records)


def first_batches():
  plan = make()
  return index_sampler.next_batches(plan, index_sampler.initial_state(plan))


def test_batches_do_not_depend_on_how_the_order_is_cut(monkeypatch):
  whole, _ = first_batches()
  monkeypatch.setattr(index_sampler, "_BLOCK", 1)
  parts, cursor = [], index_sampler.initial_state(make())
  while cursor.batches < 100:
    assert cursor.batches == len(parts)
    more, cursor = index_sampler.next_batches(make(), cursor)
    parts += more
  for (bucket, ours), (other, theirs) in zip(whole, parts[:100]):
    assert bucket == other
    np.testing.assert_array_equal(ours, theirs)


def test_every_position_is_in_one_batch_or_pending():
  batches, cursor = first_batches()
  used = np.concatenate([rows for _, rows in batches])
  waiting = [p for pending in cursor.pending for p in pending]
  assert sorted([*used, *waiting]) == list(range(cursor.draws))
  for bucket, rows in batches:
    drawn = index_sampler.records_at(make(), rows)
    wanted = np.where(drawn.source == 0, drawn.record % 2, 0)
    assert (wanted == bucket).all()


def test_after_a_change_of_weights_each_source_goes_on():
  plan = make()
  change = index_sampler.WeightChange(position=37, weights=(3, 1))
  changed = dataclasses.replace(plan, changes=(change,))
  before = index_sampler.records_at(plan, np.arange(37))
  drawn = index_sampler.records_at(changed, np.arange(400))
  for ours, theirs in zip(drawn, before):
    np.testing.assert_array_equal(ours[:37], theirs)
  assert np.mean(drawn.source[37:] == 0) == pytest.approx(0.75, abs=0.01)
  for source, records in enumerate(plan.records):
    mine = drawn.source == source
    for epoch in range(5):
      seen = drawn.record[mine & (drawn.epoch == epoch)]
      assert sorted(seen) == list(records)


def test_the_state_at_a_batch_has_exactly_the_positions_before_it():
  plan = make()
  batches, _ = first_batches()
  at = index_sampler.state_at(plan, index_sampler.initial_state(plan), 5)
  assert at.batches == 5 and at.draws == batches[4][1][-1] + 1
  more, _ = index_sampler.next_batches(plan, at)
  for (bucket, ours), (other, theirs) in zip(more[:20], batches[5:25]):
    assert bucket == other
    np.testing.assert_array_equal(ours, theirs)


def test_excluded_records_are_replaced_within_their_bucket():
  records, buckets = np.arange(10, 20), np.arange(10) % 2
  found = index_sampler.substitute(records, buckets, np.array([12, 14, 19]))
  np.testing.assert_array_equal(found, [10, 11, 16, 13, 16, 15, 16, 17, 18, 11])
  with pytest.raises(ValueError, match="all 5 records of bucket 1"):
    index_sampler.substitute(records, buckets, records[1::2])


def test_a_damaged_record_has_the_others_of_its_bucket_as_substitutes():
  assert index_sampler.substitutes(make(), 0, 7) == [9, 1, 3, 5]
