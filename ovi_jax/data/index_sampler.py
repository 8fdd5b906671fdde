"""Which records make up which batch: arithmetic on indices, no records read.

All sources share one endless, global order. Position `p` of it is a source (the
sources are interleaved in proportion to their weights), a record of the source
(each epoch of a source is its own permutation) and the epoch, all functions of
`p` and the seed alone. Positions fill buckets in order; a full bucket is the
next batch. So batches do not depend on the numbers of processes, workers and
devices, and a batch is identified by its number.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WEIGHT_UNITS = 1_000_000  # weights are rounded to this part of their sum
_ROUNDS = 6  # of the Feistel network that permutes
_BLOCK = 4096  # positions that `next_batches` looks at, at least


class RecordIndices(NamedTuple):
  """The records at some positions: arrays of one length."""

  source: np.ndarray
  record: np.ndarray
  epoch: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightChange:
  """Other weights of the sources from a position on.

  Each source continues with its own next record.

  Attributes:
    position: first position with these weights.
    weights: mixture weight of each source, positive integers.
  """

  position: int
  weights: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MixturePlan:
  """What the order of records depends on.

  Attributes:
    seed: of the shuffling.
    weights: mixture weight of each source, positive integers.
    changes: later weights, by position.
    records: the numbers of the records of each source that take part; an
      excluded record's place has that of its substitute, see `substitute`.
    buckets: for each of those, the number of its bucket.
    sizes: rows of a global batch of each bucket.
  """

  seed: int
  weights: tuple[int, ...]
  records: tuple[np.ndarray, ...]
  buckets: tuple[np.ndarray, ...]
  sizes: tuple[int, ...]
  changes: tuple[WeightChange, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class IteratorState:
  """The state of the iteration between two positions.

  Attributes:
    draws: positions already put into a bucket.
    batches: batches that they filled.
    pending: positions in each bucket that is not yet full.
  """

  draws: int
  batches: int
  pending: tuple[tuple[int, ...], ...]


def initial_state(plan: MixturePlan) -> IteratorState:
  """The state before the first position."""
  return IteratorState(draws=0, batches=0, pending=((),) * len(plan.sizes))


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
  """Weights as integers of the same proportion, to a millionth of the sum."""
  total = sum(weights)
  return tuple(max(1, round(w / total * WEIGHT_UNITS)) for w in weights)


def substitute(
  records: np.ndarray, buckets: np.ndarray, excluded: np.ndarray
) -> np.ndarray:
  """Put other records into the places of excluded ones.

  All other records keep their places, so their order does not change.

  Args:
    records: int64 [n], numbers of the records of a source.
    buckets: int64 [n], the bucket of each.
    excluded: numbers of the excluded records.

  Returns:
    int64 [n]; an excluded record is replaced by the next one of its bucket that
    is not excluded.

  Raises:
    ValueError: all records of a bucket are excluded.
  """
  found, bad = records.copy(), np.isin(records, excluded)
  for bucket in np.unique(buckets[bad]):
    good = np.flatnonzero((buckets == bucket) & ~bad)
    if not good.size:
      raise ValueError(
        f"all {int((buckets == bucket).sum())} records of bucket {bucket} are"
        " excluded; leave out the bucket or the source instead"
      )
    places = np.flatnonzero((buckets == bucket) & bad)
    after = np.searchsorted(good, places) % len(good)
    found[places] = records[good[after]]
  return found


def substitutes(plan: MixturePlan, source: int, record: int) -> list[int]:
  """The records that may replace a damaged one, in order.

  They are the other records of its source and bucket, beginning with the next.
  """
  records, buckets = plan.records[source], plan.buckets[source]
  place = int(np.flatnonzero(records == record)[0])
  same = np.flatnonzero(buckets == buckets[place])
  later = np.roll(same, -int(np.searchsorted(same, place)))
  found = dict.fromkeys(records[later].tolist())
  return [number for number in found if number != record]


def next_batches(
  plan: MixturePlan, state: IteratorState, block: int = 0
) -> tuple[list[tuple[int, np.ndarray]], IteratorState]:
  """Fill buckets with the next block of positions.

  Args:
    plan: the plan.
    state: the state before the block.
    block: number of positions; 0 for a default that fills a batch at least.

  Returns:
    (number of the bucket, its positions int64 [rows]) of each batch that got
    full, in order, and the state after the block. However the order is cut
    into blocks, the batches are the same.
  """
  block = block or max(_BLOCK, 2 * sum(plan.sizes))
  positions = np.arange(state.draws, state.draws + block)
  source, place, _ = _places(plan, positions)
  bucket = np.empty(block, np.int64)
  for number, buckets in enumerate(plan.buckets):
    mine = source == number
    bucket[mine] = buckets[place[mine]]
  full, pending = [], []
  for number, size in enumerate(plan.sizes):
    before = np.asarray(state.pending[number], np.int64)
    queue = np.concatenate([before, positions[bucket == number]])
    whole = len(queue) // size * size
    full += [(number, rows) for rows in queue[:whole].reshape(-1, size)]
    pending.append(tuple(queue[whole:].tolist()))
  full.sort(key=lambda batch: batch[1][-1])
  after = IteratorState(
    draws=state.draws + block,
    batches=state.batches + len(full),
    pending=tuple(pending),
  )
  return full, after


def state_at(
  plan: MixturePlan, state: IteratorState, batches: int
) -> IteratorState:
  """The state right after the position that completes a batch.

  Args:
    plan: the plan.
    state: a state before, whose next block has that batch.
    batches: number of batches that are complete in the returned state.
  """
  if batches == state.batches:
    return state
  found, _ = next_batches(plan, state)
  last = int(found[batches - state.batches - 1][1][-1])
  return next_batches(plan, state, last + 1 - state.draws)[1]


def records_at(plan: MixturePlan, positions: np.ndarray) -> RecordIndices:
  """The records at positions int64 [n]."""
  source, place, epoch = _places(plan, positions)
  record = np.empty_like(place)
  for number, records in enumerate(plan.records):
    mine = source == number
    record[mine] = records[place[mine]]
  return RecordIndices(source, record, epoch)


def _places(
  plan: MixturePlan, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Source, place among its records after shuffling, and epoch."""
  source, count = _interleave(plan, positions)
  place, epoch = np.empty_like(count), np.empty_like(count)
  for number, records in enumerate(plan.records):
    mine = source == number
    epoch[mine], within = np.divmod(count[mine], len(records))
    place[mine] = permute(
      within, epoch[mine], len(records), (plan.seed, number)
    )
  return source, place, epoch


def _interleave(
  plan: MixturePlan, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """`interleave`, with the weights that each position has."""
  begin, weights = 0, plan.weights
  source, count = interleave(weights, positions)
  taken = np.zeros(len(weights), np.int64)
  for change in plan.changes:
    taken += _counts(weights, change.position - begin)
    begin, weights = change.position, change.weights
    later = positions >= begin
    source[later], more = interleave(weights, positions[later] - begin)
    count[later] = more + taken[source[later]]
  return source, count


def _counts(weights: Sequence[int], positions: int) -> np.ndarray:
  """How often each source occurs among the first positions of `interleave`."""
  left, before, found = sum(weights), np.asarray(positions), []
  for weight in weights:
    rest = _scaled(before, left - weight, left)
    found.append(before - rest)
    before, left = rest, left - weight
  return np.asarray(found, np.int64)


def interleave(
  weights: Sequence[int], positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """The source at each position, and how often it came before.

  Any stretch of n positions holds n · weight / sum of each source, to within
  the number of sources. (As `grain.MapDataset.mix` does, for whole arrays.)
  """
  left = sum(weights)
  before, after = positions.astype(np.int64), positions.astype(np.int64) + 1
  source = np.full(before.shape, -1, np.int64)
  count = np.zeros_like(before)
  for number, weight in enumerate(weights):
    # Of the positions left, those not of this source, up to each one.
    rest_before, rest_after = (
      _scaled(before, left - weight, left),
      _scaled(after, left - weight, left),
    )
    taken = after - rest_after
    mine = (source < 0) & (before - rest_before != taken)
    source[mine], count[mine] = number, taken[mine] - 1
    before, after, left = rest_before, rest_after, left - weight
  return source, count


def _scaled(values: np.ndarray, part: int, whole: int) -> np.ndarray:
  """values · part // whole without overflow."""
  quotient, rest = np.divmod(values, whole)
  return quotient * part + rest * part // whole


def permute(
  index: np.ndarray, epoch: np.ndarray, size: int, key: tuple[int, ...]
) -> np.ndarray:
  """Where each index in [0, size) goes in that epoch's permutation.

  A Feistel network on the smallest even number of bits that holds `size`,
  applied again to what falls outside: a bijection that needs no memory.
  """
  half = max(1, (max(1, size - 1).bit_length() + 1) // 2)
  words = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)
  mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
  values = index.astype(np.uint64)
  salt = _mixed(epoch.astype(np.uint64))
  outside = np.ones(values.shape, bool)
  while outside.any():
    now, spice = values[outside], salt[outside]
    left, right = now >> shift, now & mask
    for word in words:
      left, right = right, left ^ (_mixed(right + word ^ spice) & mask)
    values[outside] = left << shift | right
    outside = values >= size
  return values.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
  """Well spread 64-bit hashes (the finalizer of splitmix64)."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return values ^ values >> np.uint64(31)
