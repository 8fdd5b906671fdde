"""Batches for training, in one global order that any machine can take up.

`plan` says which records make up global batch number n; each process reads its
part of the rows of each. grain runs that, in worker processes if asked to.

What holds on restore (`get_state`, `set_state`): the batches that follow are
the same bit for bit, whatever the number of workers before and after, partly
filled buckets included. The state is the same in all processes, and good for
another number of processes: the records of each global batch stay the same and
each is read once, as long as that number divides the batch. What was prefetched
but not handed out is read again. Every record comes once an epoch of its
source; the last of an epoch share a batch with the first of the next.

Evaluation reads a held-out split once, in a fixed order (`open_eval`).
"""

import dataclasses
import logging
import signal
import threading
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from ovi_jax import cli
from ovi_jax.data import builder
from ovi_jax.data import collate
from ovi_jax.data import features
from ovi_jax.data import index_sampler
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.data import shared_memory
from ovi_jax.modality import AV

ENDLESS = 2**62
_TEXT_STEP = 32  # text is sent from workers in multiples of so many rows
_DAMAGED = "the state of the data is damaged"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Share:
  """What one process does of a plan.

  Attributes:
    settings: of the loader.
    splits: the sources.
    order: the plan.
    index: number of this process.
    count: of processes.
  """

  settings: settings_lib.LoaderConfig
  splits: tuple[builder.Split, ...]
  order: index_sampler.MixturePlan
  index: int
  count: int

  def read(self, bucket: int, positions: np.ndarray) -> schema.Batch:
    """This process's rows of a global batch, its text for one tower only."""
    each = len(positions) // self.count
    mine = positions[self.index * each : (self.index + 1) * each]
    batch = collate.collate(
      self.settings,
      self.splits,
      self.settings.buckets[bucket],
      index_sampler.records_at(self.order, mine),
      self.order.seed,
      substitutes=self._substitutes
      if self.settings.max_damaged_records
      else None,
    )
    # A worker would send the text of two towers twice, and most of it is
    # padding. For the same reason, `_received` converts the 16-bit arrays to
    # float32.
    text = collate.text(batch)
    if self.settings.num_workers and text.ndim == 3:
      text = _cut(text)
    return batch._replace(text=AV(audio=text))

  def _substitutes(self, source: int, record: int) -> Iterator[int]:
    """The records that are tried in place of a damaged one."""
    found = index_sampler.substitutes(self.order, source, record)
    yield from found[: self.settings.max_damaged_records]


class DamagedRecords:
  """Logs the damaged records that a process reads, and counts them.

  Records of training and held-out ones have one limit.
  """

  def __init__(self, limit: int):
    """`limit`: number of damaged records that are accepted."""
    self._limit = limit
    self._seen: list[str] = []

  def check(self, batch: schema.Batch) -> schema.Batch:
    """Log the damaged records of a batch; returns it without them.

    Raises:
      ValueError: there were more than the limit.
    """
    for bad, used, problem in batch.damaged or ():
      self._count(
        record_ids.name(bad),
        f"replaced by {record_ids.name(used)}",
        problem,
        "leave the records out with data.exclude_records",
      )
    return batch._replace(damaged=None)

  def leave_out(self, split: str, bad: int, problem: str) -> None:
    """Log a held-out record that is left out.

    Args:
      split: name of its split.
      bad: its id, as those of a batch.
      problem: what is wrong.

    Raises:
      ValueError: there were more than the limit.
    """
    name = f"{record_ids.name(bad)} of {split}"
    self._count(name, "left out", problem, "write the split again without it")

  def _count(self, name: str, what: str, problem: str, instead: str) -> None:
    """Log a record the first time it is met; ValueError beyond the limit."""
    if name in self._seen:
      return
    self._seen.append(name)
    if len(self._seen) > self._limit:
      raise ValueError(
        f"{problem}. data.max_damaged_records={self._limit} records were"
        f" damaged before it: {record_ids.listed(self._seen)}; raise it, or"
        f" {instead}"
      )
    _log.warning(
      f"record {name} is {what} ({len(self._seen)} of at most"
      f" {self._limit}): {problem}"
    )


def _cut(text_BSE: np.ndarray) -> np.ndarray:
  """Embeddings without the rows that are padding in all of the batch."""
  bits_BSE = text_BSE.view(f"u{text_BSE.itemsize}")
  end = text_BSE.shape[1]
  while end and not bits_BSE[:, max(0, end - _TEXT_STEP) : end].any():
    end = max(0, end - _TEXT_STEP)
  return np.ascontiguousarray(text_BSE[:, :end])


def _received(batch: schema.Batch, max_text_len: int) -> schema.Batch:
  """The batch as plain numpy, its text padded again and for each tower.

  Arrays of 16 bits become float32. Nothing is left in shared memory.
  """
  text = collate.text(batch)
  count, end, *width = text.shape
  if end < max_text_len:
    cut_BSE = text
    text = np.zeros((count, max_text_len, *width), _widened(cut_BSE.dtype))
    text[:, :end] = cut_BSE
  text = _wide(text)
  latents = AV(*(None if a is None else _wide(a) for a in batch.latents))
  lengths = AV(*(None if a is None else _wide(a) for a in batch.lengths))
  return schema.Batch(
    latents=latents,
    lengths=lengths,
    text=AV(*(None if a is None else text for a in latents)),
    ids=_wide(batch.ids),
  )


def _wide(array: np.ndarray) -> np.ndarray:
  """An array of this process, float32 if it was float16 or bfloat16."""
  return shared_memory.copied(array, _widened(array.dtype))


def _widened(dtype: np.dtype) -> np.dtype:
  stored = tuple(features.DTYPES.values())
  return np.dtype(np.float32) if dtype in stored else dtype


class _Numbered:
  """Global batches by number: the random access that grain wants.

  Remembers where it is in the plan, since numbers are asked for almost in
  order; what it returns depends on the number alone.
  """

  def __init__(
    self, share: _Share, first: int, cursor: index_sampler.IteratorState
  ):
    self._share, self._first, self._start = share, first, cursor
    self._blocks = [(cursor, [], cursor)]  # cursor, its batches, cursor after
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return ENDLESS

  def __getitem__(self, index: int) -> schema.Batch:
    number = index + self._first
    before, batches = self.block(number)
    return self._share.read(*batches[number - before.batches])

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_lock": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _lock=threading.Lock())

  def block(self, number: int) -> tuple[index_sampler.IteratorState, list]:
    """The block that holds a batch: the cursor before it, and its batches."""
    with self._lock:
      if number < self._blocks[0][0].batches:
        self._blocks = [(self._start, [], self._start)]
      while number >= self._blocks[-1][2].batches:
        cursor = self._blocks[-1][2]
        batches, after = index_sampler.next_batches(self._share.order, cursor)
        self._blocks = [*self._blocks[-1:], (cursor, batches, after)]
      for before, batches, after in self._blocks:
        if before.batches <= number < after.batches:
          return before, batches
    raise AssertionError(f"batch {number} lies before the blocks kept")


def _start_worker(worker: int, workers: int) -> None:
  """Run in a worker before it reads.

  Ctrl-C reaches every process of a terminal; what it means the run decides.
  """
  del worker, workers
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  cli.exit_with_parent()


def in_order(numbered: Any, workers: int, prefetch: int) -> Any:
  """grain's iterator over batches that are asked for by number.

  Args:
    numbered: has `__getitem__` and `__len__`, and can be pickled.
    workers: processes that make batches; 0 makes them in threads of this one.
    prefetch: batches that each worker (or this process) keeps ready.
  """
  # A worker overlaps with the others; alone, threads must do it.
  ready = 1 if workers else prefetch
  reading = grain.MapDataset.source(numbered).to_iter_dataset(
    grain.ReadOptions(num_threads=ready, prefetch_buffer_size=ready)
  )
  if workers:
    # grain asks absl for a flag; where no absl app runs, none was parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    reading = reading.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=workers, per_worker_buffer_size=prefetch
      ),
      worker_init_fn=_start_worker,
    )
  return iter(reading)


class Loader(Iterator[schema.Batch]):
  """An endless iterator of this process's rows of each global batch.

  Attributes:
    null_text: text_SE float32 of the empty prompt, for prompt dropout; not
      that of captions read as token ids.
    records: how many take part, by source.
    rows: of a global batch, by bucket.
    damaged: the damaged records that were met.
  """

  def __init__(self, share: _Share):
    self._share = share
    self._step, self._running = 0, None
    self._weights = share.order.weights
    self._plan = _Numbered(share, 0, index_sampler.initial_state(share.order))
    self.damaged = DamagedRecords(share.settings.max_damaged_records)
    self.null_text = share.splits[0].null_text
    self.records = tuple(len(r) for r in share.order.records)
    self.rows = share.order.sizes

  def __next__(self) -> schema.Batch:
    """The next batch.

    Raises:
      ValueError: a record is damaged (names file and record) or lacks what
        the settings ask for.
    """
    if self._running is None:
      self._running = self._start()
    batch = self.damaged.check(next(self._running))
    self._step += 1
    return _received(batch, self._share.settings.max_text_len)

  def _start(self) -> Any:
    """grain's iterator from the batch that is next."""
    settings = self._share.settings
    cursor, _ = self._plan.block(self._step)
    numbered = _Numbered(self._share, self._step, cursor)
    return in_order(numbered, settings.num_workers, settings.prefetch_batches)

  def get_state(self) -> dict[str, Any]:
    """Where the iterator stands; JSON can hold it, every process has the same.

    It has the number of the next global batch, a cursor of the plan at or a
    little before it, the weights by position, and what else the order depends
    on, which `set_state` checks.
    """
    cursor, _ = self._plan.block(self._step)
    place = dataclasses.asdict(cursor)
    place["pending"] = [list(waiting) for waiting in cursor.pending]
    order = self._share.order
    mixture = [[0, list(order.weights)]]
    mixture += [[c.position, list(c.weights)] for c in order.changes]
    return {
      "step": self._step,
      "cursor": place,
      "mixture": mixture,
      "order": self._order(),
    }

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Go to where `get_state` was called.

    If the weights of the sources are others now, they apply from the next batch
    on.

    Raises:
      ValueError: the state is of other settings, seed, batch or datasets, so
        that the order would be another one (names what differs), or is none.
    """
    step, theirs, cursor = _state_of(state, self._share.order)
    check_order(self._order(), theirs)
    first, *changes = _mixture_of(state, self._weights, cursor.draws)
    order = dataclasses.replace(
      self._share.order, weights=first.weights, changes=tuple(changes)
    )
    # The cursor of a state is that of the block that holds its batch.
    _, after = index_sampler.next_batches(order, cursor)
    if not cursor.batches <= step < after.batches:
      raise ValueError(
        f"{_DAMAGED}: batch {step} is not in the block after {cursor.batches}"
      )
    if (changes or [first])[-1].weights != self._weights:
      cursor = index_sampler.state_at(order, cursor, step)
      change = index_sampler.WeightChange(
        position=cursor.draws, weights=self._weights
      )
      order = dataclasses.replace(order, changes=(*order.changes, change))
    self.close()
    self._share = dataclasses.replace(self._share, order=order)
    self._plan = _Numbered(self._share, 0, cursor)
    self._step = step

  def _order(self) -> dict[str, Any]:
    """All that the order and the choices depend on, as JSON has it."""
    settings, order = self._share.settings, self._share.order
    return {
      "seed": order.seed,
      "records": list(self.records),
      "datasets": [split.identity for split in self._share.splits],
      "rows": list(order.sizes),
      "buckets": [
        [list(bucket.video or ()), bucket.audio] for bucket in settings.buckets
      ],
      "caption_sampling": settings.caption_sampling,
      "crop": settings.crop,
      "media": settings.encode_on_the_fly,
      "captions": bool(settings.tokenizer),
    }

  def close(self) -> None:
    """End the workers; the next `next` starts them again where it stands."""
    if self._running is not None:
      self._running.close()
      self._running = None


def _state_of(
  state: Any, order: index_sampler.MixturePlan
) -> tuple[int, Mapping[str, Any], index_sampler.IteratorState]:
  """Step, order and cursor of what `get_state` returned.

  Raises:
    ValueError: a part is missing, of another type or out of range.
  """
  try:
    step, theirs, place = state["step"], state["order"], state["cursor"]
    cursor = index_sampler.IteratorState(
      draws=place["draws"],
      batches=place["batches"],
      pending=tuple(tuple(waiting) for waiting in place["pending"]),
    )
  except (KeyError, TypeError) as error:
    raise ValueError(f"{_DAMAGED}: {error!r:.100}") from error
  counts = (step, cursor.draws, cursor.batches)
  waiting = [number for row in cursor.pending for number in row]
  if not (
    isinstance(theirs, dict)
    and all(type(n) is int and 0 <= n < ENDLESS for n in (*counts, *waiting))
    and all(number < cursor.draws for number in waiting)
  ):
    raise ValueError(f"{_DAMAGED}: expected counts and an order")
  # Of another number of buckets: `check_order` says it better.
  if theirs.get("rows") == list(order.sizes) and not (
    len(cursor.pending) == len(order.sizes)
    and all(len(row) < n for row, n in zip(cursor.pending, order.sizes))
  ):
    raise ValueError(f"{_DAMAGED}: expected fewer positions than rows")
  return step, theirs, cursor


def _mixture_of(
  state: Mapping[str, Any], ours: tuple[int, ...], draws: int
) -> list[index_sampler.WeightChange]:
  """The weights by position of what `get_state` returned, the first at 0.

  Args:
    state: the state.
    ours: weights of as many sources.
    draws: no weights begin after this position.

  Raises:
    ValueError: they are missing, of another type or out of range.
  """
  found = state.get("mixture")
  if not isinstance(found, list) or not found:
    raise ValueError(f"{_DAMAGED}: expected weights by position")
  changes, least = [], 0
  for entry in found:
    if not (
      isinstance(entry, list)
      and len(entry) == 2
      and type(entry[0]) is int
      and least <= entry[0] <= (draws if changes else 0)
      and isinstance(entry[1], list)
      and len(entry[1]) == len(ours)
      and all(
        type(n) is int and 0 < n <= 2 * index_sampler.WEIGHT_UNITS
        for n in entry[1]
      )
    ):
      raise ValueError(f"{_DAMAGED}: expected weights by position")
    least = entry[0]
    changes.append(
      index_sampler.WeightChange(position=least, weights=tuple(entry[1]))
    )
  return changes


def check_order(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
  """Hold what the order of an input depends on to what a state was saved with.

  Raises:
    ValueError: names everything that differs.
  """
  different = [
    f"{name}: {theirs.get(name)} in the run, {ours[name]} now"
    for name in ours
    if ours[name] != theirs.get(name)
  ]
  if different:
    raise ValueError(
      "the data are not those that the run was saved with:"
      f" {'; '.join(different)}"
    )


def load(
  settings: settings_lib.LoaderConfig,
  *,
  batch: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Loader:
  """Open the sources and iterate over them without end, shuffled.

  Args:
    settings: what to read.
    batch: rows of a global batch (of the largest bucket, if they are scaled).
    seed: of shuffling, captions and crops.
    process_index: number of this process.
    process_count: processes that share each batch.

  Returns:
    The iterator; close it to end its workers.

  Raises:
    ValueError: a source cannot be opened, is empty or of another geometry or
      schema version, has no empty prompt, records fit no bucket, the rows of
      a batch do not divide by the processes, or /dev/shm is too small.
  """
  splits = open_sources(settings)
  sizes = settings_lib.rows(settings, batch)
  if min(sizes) < 1 or any(size % process_count for size in sizes):
    raise ValueError(
      f"rows of a batch by bucket, {list(sizes)}, must divide by the"
      f" {process_count} processes; choose another batch_size or"
      " data.batch_multiple"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process index {process_index} is out of range for {process_count}"
      " processes"
    )
  found = [settings_lib.assign(settings, split) for split in splits]
  kept = tuple(np.flatnonzero(buckets >= 0) for buckets in found)
  buckets = tuple(buckets[k] for buckets, k in zip(found, kept))
  weights = [s.weight or len(k) for s, k in zip(settings.sources, kept)]
  excluded = record_ids.parse(settings.exclude_records)
  if excluded:
    _log.info(f"{len(excluded)} records are excluded (data.exclude_records)")
  apart = record_ids.by_source(excluded, [len(split) for split in splits])
  order = index_sampler.MixturePlan(
    seed=seed,
    weights=index_sampler.integer_weights(weights),
    records=tuple(map(index_sampler.substitute, kept, buckets, apart)),
    buckets=buckets,
    sizes=sizes,
  )
  bucket_bytes = [
    shared_memory.batch_bytes(settings, bucket, size // process_count)
    for bucket, size in zip(settings.buckets, sizes)
  ]
  shared_memory.check(
    max(bucket_bytes), settings.num_workers, settings.prefetch_batches
  )
  share = _Share(
    settings=settings,
    splits=splits,
    order=order,
    index=process_index,
    count=process_count,
  )
  return Loader(share)


def open_sources(
  settings: settings_lib.LoaderConfig,
) -> tuple[builder.Split, ...]:
  """The sources, checked; ValueError without the empty prompt."""
  splits = tuple(
    builder.read(source.path, source.split) for source in settings.sources
  )
  for split in splits:
    wanted = settings.wanted(split.geometry)
    wanted.check_equal(split.geometry, split.path)
    if not settings.tokenizer:
      _check_text(split, splits[0])
  return splits


def _check_text(split: builder.Split, first: builder.Split) -> None:
  """ValueError unless a source has embeddings, of the encoder of the first."""
  if not len(split.null_text):
    raise ValueError(
      f"{split.path} has no embedding of the empty prompt, which prompt"
      " dropout needs; write it with null_text"
    )
  if not len(split) or not split[0].text:
    raise ValueError(
      f"{split.path}, split {split.name!r}: record 0 has no text embedding;"
      " encode the dataset first"
    )
  if not np.array_equal(split.null_text, first.null_text):
    raise ValueError(
      f"{split.path} and {first.path} were encoded with different text"
      " encoders: their embeddings of the empty prompt differ; encode both with"
      " the same weights"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRecords:
  """The held-out split of the sources that have it.

  Attributes:
    settings: of the loader: first caption, no random crop, no workers.
    splits: of the sources.
    positions: of each of them in `data.sources`, which ids count.
    buckets: bucket index of each record of each split, -1 for none.
  """

  settings: settings_lib.LoaderConfig
  splits: tuple[builder.Split, ...]
  positions: tuple[int, ...]
  buckets: tuple[np.ndarray, ...]

  def records(self) -> Iterator[schema.Record]:
    """Iterate over all records, source by source."""
    for split in self.splits:
      for number in range(len(split)):
        yield split[number]

  def batches(
    self,
    batch: int,
    process_index: int = 0,
    process_count: int = 1,
    damaged: DamagedRecords | None = None,
  ) -> Iterator[schema.Batch]:
    """Iterate over this process's rows of each batch, bucket by bucket.

    Args:
      batch: rows of a batch over all processes.
      process_index: of this process.
      process_count: number of processes.
      damaged: counts damaged records, whose rows are blank; `None` ends at the
        first.

    Yields:
      Batches; the last one of a bucket is padded with blank rows, of lengths 0
      and ids of -1.

    Raises:
      ValueError: the processes do not divide the batch, or a record is damaged
        and there may be no more.
    """
    if batch < 1 or batch % process_count:
      raise ValueError(
        f"a batch of {batch} must divide by the {process_count} processes"
      )
    found = self.buckets
    source = np.repeat(np.arange(len(found)), [len(f) for f in found])
    record = np.concatenate([np.arange(len(f)) for f in found])
    bucket_of, each = np.concatenate(found), batch // process_count
    for number, bucket in enumerate(self.settings.buckets):
      mine = np.flatnonzero(bucket_of == number)
      for start in range(0, len(mine), batch):
        share = mine[start : start + batch][process_index * each :][:each]
        indices = index_sampler.RecordIndices(
          source[share], record[share], np.zeros_like(share)
        )
        made = collate.collate(
          self.settings,
          self.splits,
          bucket,
          indices,
          0,
          each,
          leave_out=None if damaged is None else self._leave_out(damaged),
        )
        made = made._replace(ids=self._ids(made.ids))
        yield _received(made, self.settings.max_text_len)

  def _ids(self, ids: np.ndarray) -> np.ndarray:
    """Ids that count all sources, from ids that count those of the split."""
    split, number = np.divmod(ids, 1 << schema.INDEX_BITS)
    source = np.asarray(self.positions)[split]
    return np.where(ids < 0, ids, source << schema.INDEX_BITS | number)

  def _leave_out(
    self, damaged: DamagedRecords
  ) -> Callable[[int, ValueError], None]:
    """What is done about a damaged record."""
    split = self.splits[0].name
    return lambda bad, problem: damaged.leave_out(
      split, int(self._ids(np.asarray(bad))), str(problem)
    )


def open_eval(
  settings: settings_lib.LoaderConfig, split: str = "test"
) -> EvalRecords:
  """Open a split of the sources that have it.

  Raises:
    ValueError: no source has it, records fit no bucket, or as `loader.load`.
  """
  positions = tuple(
    number
    for number, source in enumerate(settings.sources)
    if split in builder.splits(source.path)
  )
  sources = tuple(
    dataclasses.replace(settings.sources[number], split=split)
    for number in positions
  )
  if not sources:
    raise ValueError(
      f"no source has the held-out split {split!r}:"
      f" {[source.path for source in settings.sources]}; create the split, set"
      " config.eval.split, or set eval_every and sample_every to 0"
    )
  crop = "start" if settings.crop == "random" else settings.crop
  settings = dataclasses.replace(
    settings, sources=sources, caption_sampling="first", crop=crop
  )
  splits = open_sources(settings)
  buckets = tuple(settings_lib.assign(settings, split) for split in splits)
  return EvalRecords(
    settings=settings, splits=splits, positions=positions, buckets=buckets
  )
