"""Random access to the serialized records of many shards."""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import array_record.python.array_record_module as array_record_module

from ovi_jax import storage

# Each open shard of a disk takes a file descriptor; many systems allow a
# process 1,024 of them.
_MAX_OPEN = 256
# Records are read one by one, so what follows one is not wanted.
_OPTIONS, _BUFFER = "readahead_buffer_size:0", 32 << 10


class ShardReader:
  """Records by their number over all shards of a split.

  A shard is opened when a record of it is read. At most `_MAX_OPEN` stay open;
  array_record's own data source closes none, and takes seconds to construct
  for tens of thousands of shards. May be used by several threads, and pickled
  for another process.
  """

  def __init__(self, names: Sequence[str], lengths: Sequence[int]):
    """Describe the shards; nothing is opened.

    Args:
      names: path or URL of each shard.
      lengths: number of records in each.
    """
    self.names = tuple(names)
    self._ends = list(itertools.accumulate(lengths))
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def place(self, number: int) -> tuple[str, int]:
    """The shard of a record, and its position there.

    Raises:
      IndexError: there is no such record.
    """
    shard, position = self._place(number)
    return self.names[shard], position

  def __getitem__(self, number: int) -> bytes:
    """Read one record.

    Raises:
      IndexError: there is no such record.
      RuntimeError: the record is damaged, or its shard is not what it was.
      OSError: the object store cannot be used.
    """
    shard, position = self._place(number)
    try:
      return self._read(shard, position)
    except RuntimeError:
      # array_record names the errors of a store and of a file alike.
      if not storage.is_remote(self.names[shard]):
        raise
      storage.read_ranges(self.names[shard], [(0, 1)])
      with self._lock:
        self._open.pop(shard, None)
      return self._read(shard, position)

  def __getstate__(self) -> tuple[tuple[str, ...], list[int]]:
    return self.names, self._ends

  def __setstate__(self, state: tuple[tuple[str, ...], list[int]]) -> None:
    self.names, self._ends = state
    self._open, self._lock = collections.OrderedDict(), threading.Lock()

  def _place(self, number: int) -> tuple[int, int]:
    """Index of a record's shard, and the record's position in it."""
    if not 0 <= number < len(self):
      raise IndexError(f"expected a record below {len(self)}, got {number}")
    shard = bisect.bisect_right(self._ends, number)
    return shard, number - (self._ends[shard - 1] if shard else 0)

  def _read(self, shard: int, position: int) -> bytes:
    """Read a record of an opened shard."""
    with self._lock:
      reader = self._open.pop(shard, None)
      if reader is None:
        reader = array_record_module.ArrayRecordReader(
          self.names[shard], _OPTIONS, file_reader_buffer_size=_BUFFER
        )
      self._open[shard] = reader
      if len(self._open) > _MAX_OPEN:
        # Closed when the last thread that reads from it is done.
        self._open.popitem(last=False)
    return reader.read([position])[0]
