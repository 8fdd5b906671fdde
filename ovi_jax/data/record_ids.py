"""Record ids as users write them: SOURCE:INDEX, such as 0:29.

SOURCE is the position of the dataset in `data.sources`, INDEX the record's
number within it, both from 0. Log lines name records in this form.
"""

import re
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.data import schema

NONE = -1  # the id of a row that stands for no record
_FORM = re.compile(r"(\d{1,6}):(\d{1,12})", re.ASCII)
_SHOWN = 8
_MAX_BYTES = 1 << 24  # of a file with ids


def name(identity: int) -> str:
  """An id of `schema.Batch.ids` as SOURCE:INDEX."""
  source, index = divmod(int(identity), 1 << schema.INDEX_BITS)
  return f"{source}:{index}"


def names(identities: Iterable[int]) -> str:
  """The first of some ids for a message, and the number of the others."""
  return listed([name(i) for i in identities])


def listed(found: Sequence[str]) -> str:
  """The first of some names for a message, and the number of the others."""
  more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
  return ", ".join(found[:_SHOWN]) + more


def parse(text: str) -> tuple[int, ...]:
  """The ids of `data.exclude_records`.

  Args:
    text: ids separated by commas, or the path of a file with one a line, which
      may be in an object store (`gs://bucket/bad.txt`) and has no comma in its
      name; `#` begins a comment. Empty entries are skipped.

  Returns:
    Ids as in `schema.Batch.ids`, sorted.

  Raises:
    ValueError: an entry is no id, or the file cannot be read.
  """
  where, entries = "data.exclude_records", text.split(",")
  only = text.strip()
  if only and len(entries) == 1 and not _FORM.fullmatch(only):
    try:
      data = storage.read_regular(only, _MAX_BYTES)
      if len(data) > _MAX_BYTES:
        raise ValueError(f"the file has more than {_MAX_BYTES} bytes")
    except (OSError, ValueError) as error:
      raise ValueError(
        f"{where}: expected ids SOURCE:INDEX separated by commas, such as"
        f" 0:29,1:4, or a file with one a line, got {text!r:.80}"
        f" ({untrusted.printable(str(error))})"
      ) from error
    where = untrusted.printable(only)
    lines = data.decode("utf-8", errors="replace").splitlines()
    entries = [line.partition("#")[0] for line in lines]
  found = set()
  for number, entry in enumerate(entries, 1):
    if not entry.strip():
      continue
    match = _FORM.fullmatch(entry.strip())
    if match is None:
      raise ValueError(
        f"{where}, entry {number}: expected SOURCE:INDEX such as 0:29, got"
        f" {untrusted.printable(entry.strip(), 40)!r}"
      )
    found.add(int(match[1]) << schema.INDEX_BITS | int(match[2]))
  return tuple(sorted(found))


def by_source(
  identities: Sequence[int], lengths: Sequence[int]
) -> list[np.ndarray]:
  """The record numbers of ids, for each source.

  Args:
    identities: from `parse`.
    lengths: number of records of each source.

  Raises:
    ValueError: an id names no record.
  """
  source, index = np.divmod(
    np.asarray(identities, np.int64), np.int64(1 << schema.INDEX_BITS)
  )
  bounds = np.asarray([*lengths, 0], np.int64)
  wrong = index >= bounds[np.minimum(source, len(lengths))]
  if wrong.any():
    there = ", ".join(f"{n}:0 to {n}:{k - 1}" for n, k in enumerate(lengths))
    raise ValueError(
      "data.exclude_records: there is no record"
      f" {names(np.asarray(identities)[wrong])}; the sources have {there:.200}"
    )
  return [index[source == number] for number in range(len(lengths))]
