"""Datasets on disk: records as ArrayRecord, written and read through tfds.

A dataset is a folder: shards of records for each split, tfds's descriptions,
`index-<split>.npy` with the latent sizes of every record (so that batches are
planned without reading records), and `metadata.json` with the schema version,
the latent geometry, the empty prompt's embedding and the size of every file.
It is written under a temporary name and renamed when complete. TensorFlow is
not used.

A dataset of unknown origin is read as data: names of files must lie in the
folder, tfds's descriptions are compared with ours and nothing that they name is
imported, and sizes are checked before memory is allocated.
"""

import base64
import contextlib
import dataclasses
import errno
import functools
import hashlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.data import features
from ovi_jax.data import schema
from ovi_jax.data import shard_reader
from ovi_jax.data import shards

METADATA = shards.METADATA
RECORDS_PER_SHARD = 256
_INFO, _FEATURES = "dataset_info.json", "features.json"
_FIELDS = frozenset(["version", "geometry", "null_text", "files", "digests"])
_INDEX_COLUMNS = 4
_HEADER_BYTES = 256
# What numpy.save writes of int32 [records, 4].
_INDEX_HEADER = re.compile(
  rb"\x93NUMPY\x01\x00..\{'descr': '<i4', 'fortran_order': False, 'shape':"
  rb" \((?P<rows>\d{1,18}), 4\), \} *\n",
  re.DOTALL,
)
_LISTED = 10  # problems in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """The records of a split, read on access.

  Attributes:
    path: folder of the dataset.
    name: name of the split.
    geometry: geometry of the dataset.
    index: int32 [records, 4]; latent T, H, W and audio latents, 0 for none.
    null_text: text_SE float32 of the empty prompt, or `None`.
    identity: sha256 of the metadata, equal for copies of a dataset.
    data: serialized records by index.
  """

  path: str
  name: str
  geometry: schema.Geometry
  index: np.ndarray
  null_text: np.ndarray
  identity: str
  data: shard_reader.ShardReader

  def __len__(self) -> int:
    return len(self.index)

  @functools.cached_property
  def dtype(self) -> np.dtype:
    """Dtype of all records' arrays, by the first; float32 if it has none."""
    try:
      first = self[0] if len(self) else None
    except ValueError:
      return np.dtype(np.float32)  # reading it names what is damaged
    arrays = (*first.latents, *first.text) if first else ()
    found = {array.dtype for array in arrays if array is not None}
    return found.pop() if found else np.dtype(np.float32)

  def __getitem__(self, number: int) -> schema.Record:
    """Read one record; ValueError names file and record if it is damaged."""
    # riegeli reports what its checksums find as RuntimeError.
    try:
      record = features.decode(features.parse(self.data[number]))
      self._check(record, self.index[number])
      return record
    except (IndexError, RuntimeError, ValueError) as error:
      shard, position = self.data.place(number)
      raise ValueError(
        f"{shard}: record {position} (number {number} of split {self.name!r})"
        f" is damaged: {error}. Copy the file again from where it is whole, or"
        " write the dataset again"
      ) from error

  def _check(self, record: schema.Record, sizes: np.ndarray) -> None:
    """ValueError unless a record is what index and geometry say."""
    found = [*record.sizes.video, record.sizes.audio]
    if found != sizes.tolist():
      raise ValueError(
        f"it has latent sizes {found}, the index says {sizes.tolist()}"
      )
    wanted = self.geometry
    for name, array, width in (
      ("video latents", record.latents.video, wanted.video_channels),
      ("audio latents", record.latents.audio, wanted.audio_channels),
      *(("text", text_SE, wanted.text_dim) for text_SE in record.text),
    ):
      if array is not None and array.shape[-1] != width:
        raise ValueError(
          f"{name}: expected {width} channels, found {array.shape[-1]}"
        )
    texts = len(record.text)
    if not record.captions or texts not in (0, len(record.captions)):
      raise ValueError(
        f"expected captions and one text each or none, found"
        f" {len(record.captions)} captions and {texts} texts"
      )


def write(
  path: str | os.PathLike[str],
  splits: Mapping[str, Iterable[schema.Record]],
  *,
  geometry: schema.Geometry,
  null_text: np.ndarray | None = None,
  dtype: str = "float16",
  records_per_shard: int = RECORDS_PER_SHARD,
  may_be_empty: Collection[str] = (),
) -> None:
  """Write a dataset; nothing stands under `path` until all of it is written.

  Records are read once, one after another, and keep their order.

  Args:
    path: folder to make; must not exist.
    splits: records by name of the split, such as "train" and "test".
    geometry: that every record must have.
    null_text: text_SE of the empty prompt; needed before training reads it.
    dtype: that arrays are stored in; "float16" or "bfloat16".
    records_per_shard: in a file.
    may_be_empty: splits that are left out if they turn out to be empty.

  Raises:
    ValueError: the folder exists, there is no split, a split is empty, an id
      comes twice in one, or a record or the empty prompt breaks the contract,
      or a record's mp4 is not 24 frames a second or not what the record says.
    OSError: the disk is full, or the folder is not writable.
  """
  path = shards.locate(path)
  if storage.is_remote(path):
    storage.check_access(storage.path(path))
  if shards.is_published(path):
    raise ValueError(f"{path} exists; choose another folder or remove it")
  if not splits:
    raise ValueError(f"no splits for {path}; expected one such as 'train'")
  if null_text is not None and null_text.shape[1:] != (geometry.text_dim,):
    raise ValueError(
      f"null_text: expected [S, {geometry.text_dim}], got"
      f" {list(null_text.shape)}; encode the empty prompt with the same encoder"
    )
  with _folder(path) as folder:
    counts = {}
    for split, records in splits.items():
      count = _write_split(
        folder, split, records, geometry, dtype, records_per_shard
      )
      if count:
        counts[split] = count
      elif split not in may_be_empty:
        raise ValueError(f"split {split!r}: the source is empty; leave it out")
    shards.finish(folder, counts, geometry, null_text)
    shards.publish(folder, path)


@contextlib.contextmanager
def _folder(path: storage.AnyPath) -> Iterator[pathlib.Path]:
  """A folder beside `path`; it is removed unless it was renamed.

  What a killed process left of an earlier try is cleared away. For a dataset in
  an object store it is a temporary one.
  """
  if not isinstance(path, pathlib.Path):
    with storage.spool() as folder:
      yield folder
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  for left in files.stale_temporaries(path):
    shutil.rmtree(left, ignore_errors=True)
  folder = files.temporary_name(path)
  folder.mkdir()
  try:
    yield folder
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _write_split(
  folder: pathlib.Path,
  split: str,
  records: Iterable[schema.Record],
  geometry: schema.Geometry,
  dtype: str,
  records_per_shard: int,
) -> int:
  """Write the records of a split; returns the number of its shards."""
  shard, count = iter(_distinct(records, split)), 0
  # One record is read ahead, to know whether there is another shard.
  for first in shard:
    rest = itertools.islice(shard, records_per_shard - 1)
    part = itertools.chain([first], rest)
    shards.write(folder, split, count, part, geometry, dtype)
    count += 1
  return count


def _distinct(
  records: Iterable[schema.Record], split: str
) -> Iterator[schema.Record]:
  """The records; ValueError if an id comes twice."""
  names = set()
  for record in records:
    if record.id in names:
      raise ValueError(f"split {split!r}: id {record.id!r} comes twice")
    names.add(record.id)
    yield record


def read(
  path: str | os.PathLike[str],
  split: str = "train",
  *,
  geometry: schema.Geometry | None = None,
) -> Split:
  """Open a split for random access; everything but the records is checked.

  Args:
    path: folder that `write` made.
    split: name of the split.
    geometry: required geometry; `None` accepts any.

  Returns:
    The split.

  Raises:
    ValueError: there is no dataset, it is incomplete, its schema version or
      geometry differs, it lacks the split, or a file is missing, truncated or
      damaged (names the file).
  """
  path = shards.locate(path)
  metadata = _metadata(path)
  schema.check_version(metadata["version"], str(path))
  found = schema.Geometry.from_metadata(metadata["geometry"])
  if geometry is not None:
    geometry.check_equal(found, str(path))
  _check_files(path, metadata["files"], metadata["digests"])
  names = _split_names(metadata)
  if split not in names:
    shown = [untrusted.printable(name, 40) for name in names[:_LISTED]]
    raise ValueError(f"{path} has no split {split!r}; it has {shown}")
  null_SE = _null_text(metadata["null_text"], found.text_dim, path)
  features.check_description(path / _FEATURES)
  data = _shards(path, split, metadata["files"])
  index = _index(shards.index_path(path, split))
  if len(index) != len(data):
    raise ValueError(
      f"{path}: index-{split}.npy counts {len(index)} records, the files hold"
      f" {len(data)}; write the dataset again"
    )
  return Split(
    path=str(path),
    name=split,
    geometry=found,
    index=index,
    null_text=null_SE,
    identity=shards.digest(path / METADATA),
    data=data,
  )


def check(path: str | os.PathLike[str]) -> None:
  """Check a whole dataset as `read` does; records are not read.

  Args:
    path: folder of the dataset.

  Raises:
    ValueError: see `read`; says that it must be removed to be written again.
  """
  try:
    for split in splits(path):
      read(path, split)
  except ValueError as error:
    raise ValueError(
      f"{error}. Or remove {path} and run the same command again"
    ) from error


def splits(path: str | os.PathLike[str]) -> list[str]:
  """The names of a dataset's splits.

  Args:
    path: folder of the dataset.

  Returns:
    Names, sorted.

  Raises:
    ValueError: there is no complete dataset.
  """
  return _split_names(_metadata(shards.locate(path)))


def _split_names(metadata: Mapping[str, Any]) -> list[str]:
  """The names of the splits that the metadata lists."""
  return sorted(f[6:-4] for f in metadata["files"] if f.startswith("index-"))


def _metadata(path: storage.AnyPath) -> dict[str, Any]:
  """The dataset's metadata; ValueError unless it was written to the end."""
  file = path / METADATA
  try:
    metadata = storage.read_json(files.inside(path, METADATA))
    _check_types(metadata)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ValueError(
      f"{path} is not a dataset of records, or was not written to the end: no"
      f" {METADATA} there; write it with ovi_jax.data.builder.write"
    ) from error
  except ValueError as error:
    raise ValueError(f"{file} is damaged: {error}; copy it again") from error
  if missing := _FIELDS - set(metadata):
    raise ValueError(
      f"{file} lacks {sorted(missing)}: the dataset was not written to the end"
      " or is none of ours; write it again"
    )
  return metadata


def _check_types(metadata: Any) -> None:
  """ValueError if a field that is there has another type than ours."""
  if not isinstance(metadata, dict):
    raise ValueError(f"expected an object, found {metadata!r:.40}")
  if not isinstance(metadata.get("version", ""), str):
    raise ValueError("version: expected text")
  if not isinstance(metadata.get("null_text"), str | None):
    raise ValueError("null_text: expected text in base64 or null")
  for name, kind in (("files", int), ("digests", str)):
    entries = metadata.get(name, {})
    if not isinstance(entries, dict) or not all(
      type(value) is kind for value in entries.values()
    ):
      raise ValueError(f"{name}: expected an object of {kind.__name__} values")


def _null_text(stored: str | None, width: int, path: storage.AnyPath) -> Any:
  """The empty prompt's embedding, float32 [S, width]; ValueError if damaged."""
  try:
    raw = base64.b64decode(stored or "", validate=True)
    null_SE = np.frombuffer(raw, "<f4").reshape(-1, width)
  except ValueError as error:
    raise ValueError(
      f"{path / METADATA}: null_text: expected rows of {width} numbers: {error}"
    ) from error
  if not np.isfinite(null_SE).all():
    raise ValueError(f"{path / METADATA}: null_text: expected finite numbers")
  return null_SE


def _shards(
  path: storage.AnyPath, split: str, sizes: Mapping[str, int]
) -> shard_reader.ShardReader:
  """The shards of a split, of the lengths that tfds's description gives.

  Names are ours; those in the description are not used.
  """
  info = storage.read_json(path / _INFO)
  try:
    (listed,) = (
      each["shardLengths"] for each in info["splits"] if each["name"] == split
    )
    if not isinstance(listed, list):
      raise ValueError(f"expected a list, found {listed!r:.60}")
    lengths = [int(length) for length in listed]
    if min(lengths, default=0) < 1 or max(lengths) >= 2**31:
      raise ValueError(f"expected positive lengths, found {lengths!r:.60}")
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path / _INFO}: expected the lengths of the shards of {split!r}:"
      f" {error!r:.100}"
    ) from error
  count = len(lengths)
  names = [shards.published_name(split, i, count) for i in range(count)]
  if missing := next((name for name in names if name not in sizes), None):
    raise ValueError(f"{path / METADATA} does not list {missing}")
  return shard_reader.ShardReader([f"{path}/{name}" for name in names], lengths)


def _index(path: storage.AnyPath) -> np.ndarray:
  """The latent sizes of a split's records, int32 [records, 4].

  Raises:
    ValueError: the header says otherwise, or the file has another size than
      its header.
  """
  wanted = f"{path}: expected int32 [records, {_INDEX_COLUMNS}]"
  with storage.open_file(path) as file:
    # numpy's own reader evaluates the header, and fails in many ways.
    header = _INDEX_HEADER.match(file.read(_HEADER_BYTES))
    size = file.seek(0, os.SEEK_END)
    if header is None or header.end() + 16 * int(header["rows"]) != size:
      raise ValueError(f"{wanted} in npy format 1.0; write the dataset again")
    file.seek(header.end())
    index = np.frombuffer(file.read(size), "<i4").reshape(-1, _INDEX_COLUMNS)
  if index.size and index.min() < 0:
    raise ValueError(f"{wanted}, found negative sizes")
  return index


def _check_files(
  path: storage.AnyPath, sizes: Mapping[str, int], digests: Mapping[str, str]
) -> None:
  """ValueError that names every file that is missing or was changed."""
  problems = []
  # A request for each of thousands of shards would take minutes.
  is_local = isinstance(path, pathlib.Path)
  listed = files.regular_sizes(path) if is_local else storage.sizes(path)
  for name, size in sorted(sizes.items()):
    try:
      if "/" in name:
        raise ValueError(
          f"{untrusted.printable(name)}: expected a name without folders"
        )
      got = listed.get(name)
      if got is None:
        got = _size_of_unlisted(files.inside(path, name))
    except ValueError as error:
      problems.append(f"{METADATA} names {error}")
    except OSError as error:
      missing = isinstance(error, FileNotFoundError)
      what = "is missing" if missing else f"cannot be read ({error.strerror})"
      problems.append(f"{path / untrusted.printable(name)} {what}")
    else:
      if got != size:
        problems.append(f"{path / name}: expected {size} bytes, got {got}")
      elif name in digests and shards.digest(path / name) != digests[name]:
        problems.append(f"{path / name} is damaged: its sha256 is another")
  if lacking := {_INFO, _FEATURES} - set(sizes):
    problems.append(f"{METADATA} does not list {sorted(lacking)}")
  if problems:
    rest = len(problems) - _LISTED
    more = f"; and {rest} more" if rest > 0 else ""
    raise ValueError(
      f"the dataset is not whole: {'; '.join(problems[:_LISTED])}{more}. Copy"
      " what is named again from where it is whole, or write the dataset again"
    )


def _size_of_unlisted(file: storage.AnyPath) -> int:
  """Bytes of what a link leads to; in a store, FileNotFoundError."""
  if isinstance(file, pathlib.Path):
    return file.stat().st_size
  raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file))


def hash_fraction(name: str, seed: int) -> float:
  """A number in [0, 1), the same for a name and seed on any machine.

  A record is held out where it is below the share: one more record, or a larger
  share, moves none of the others back.
  """
  hashed = f"{seed}:{name}".encode(errors="surrogateescape")
  return int.from_bytes(hashlib.sha256(hashed).digest()[:8], "big") / 2**64
