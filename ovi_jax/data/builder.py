"""Datasets on disk: records as ArrayRecord, written and read through tfds.

A dataset is a folder: shards of records for each split, tfds's descriptions,
`index-<split>.npy` with the latent sizes of every record (so that batches are
planned without reading records), and `metadata.json` with the schema version,
the latent geometry, the empty prompt's embedding and the size of every file.
It is written under another name and renamed when whole. TensorFlow is not used.
"""

import base64
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ovi_jax import files
from ovi_jax.data import features
from ovi_jax.data import schema
from ovi_jax.data import shards

METADATA = shards.METADATA
RECORDS_PER_SHARD = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """The records of a split, read when asked for.

  Attributes:
    path: folder of the dataset.
    name: of the split.
    geometry: of the dataset.
    index: int32 [records, 4]; latent T, H, W and audio latents, 0 for none.
    null_text: text_SE float32 of the empty prompt.
    identity: the same for copies of a dataset, and only for them.
    data: tfds's data source.
  """

  path: str
  name: str
  geometry: schema.Geometry
  index: np.ndarray
  null_text: np.ndarray
  identity: str
  data: Any

  def __len__(self) -> int:
    return len(self.index)

  def __getitem__(self, number: int) -> schema.Record:
    """Read one record; ValueError names file and record if it is damaged."""
    # riegeli reports what its checksums find as RuntimeError.
    try:
      return features.decode(self.data[number])
    except (RuntimeError, ValueError, KeyError) as error:
      shard, position = self._place(number)
      raise ValueError(
        f"{shard}: record {position} (number {number} of split {self.name!r})"
        f" is damaged: {error}. Copy the file again from where it is whole, or"
        " write the dataset again"
      ) from error

  def _place(self, number: int) -> tuple[str, int]:
    """File of a record, and its position there."""
    for part in self.data.dataset_info.splits[self.name].file_instructions:
      if number < part.take:
        return part.filename, number
      number -= part.take
    raise IndexError(f"{self.path} has {len(self)} records of {self.name!r}")


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
  path = pathlib.Path(path)
  if path.exists():
    raise ValueError(f"{path} exists; choose another folder or remove it")
  if not splits:
    raise ValueError(f"no splits for {path}; expected one such as 'train'")
  if null_text is not None and null_text.shape[1:] != (geometry.text_width,):
    raise ValueError(
      f"null_text: expected [S, {geometry.text_width}], got"
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
def _folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside `path`; it is removed unless it was renamed.

  What a killed process left of an earlier try is cleared away.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for left in files.left_over(path):
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
  """Open a split for random access, all of it checked but the records.

  Args:
    path: folder that `write` made.
    split: name of the split.
    geometry: that the caller's model wants; None takes what is there.

  Raises:
    ValueError: no dataset is there, it was not written to the end, its schema
      version or latent geometry differs, it has no such split, or a file is
      missing, truncated or damaged (which one).
  """
  path = pathlib.Path(path)
  metadata = _metadata(path)
  schema.check_version(metadata["version"], str(path))
  found = schema.Geometry.from_metadata(metadata["geometry"])
  if geometry is not None:
    geometry.check_equal(found, str(path))
  _check_files(path, metadata["files"], metadata["digests"])
  names = _split_names(metadata)
  if split not in names:
    raise ValueError(f"{path} has no split {split!r}; it has {names}")
  stored = base64.b64decode(metadata["null_text"] or "")
  null_SE = np.frombuffer(stored, "<f4").reshape(-1, found.text_width)
  opened: Any = tfds.builder_from_directory(str(path))
  data = opened.as_data_source(split=split)
  index = np.load(shards.index_path(path, split))
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


def splits(path: str | os.PathLike[str]) -> list[str]:
  """The names of a dataset's splits; ValueError if none is there."""
  return _split_names(_metadata(pathlib.Path(path)))


def _split_names(metadata: Mapping[str, Any]) -> list[str]:
  """The names of the splits that the metadata lists."""
  return sorted(f[6:-4] for f in metadata["files"] if f.startswith("index-"))


def _metadata(path: pathlib.Path) -> dict[str, Any]:
  """The dataset's metadata; ValueError unless it was written to the end."""
  file = path / METADATA
  try:
    metadata = json.loads(file.read_text())
  except FileNotFoundError as error:
    raise ValueError(
      f"{path} is not a dataset of records, or was not written to the end: no"
      f" {METADATA} there; write it with ovi_jax.data.builder.write"
    ) from error
  except ValueError as error:
    raise ValueError(f"{file} is damaged: {error}; copy it again") from error
  missing = {"version", "geometry", "null_text", "files", "digests"} - set(
    metadata
  )
  if missing:
    raise ValueError(
      f"{file} lacks {sorted(missing)}: the dataset was not written to the end"
      " or is none of ours; write it again"
    )
  return metadata


def _check_files(
  path: pathlib.Path, sizes: Mapping[str, int], digests: Mapping[str, str]
) -> None:
  """ValueError that names every file that is missing or was changed."""
  problems = []
  for name, size in sorted(sizes.items()):
    file = path / name
    got = file.stat().st_size if file.is_file() else None
    if got is None:
      problems.append(f"{file} is missing")
    elif got != size:
      problems.append(f"{file}: expected {size} bytes, got {got}")
    elif name in digests and shards.digest(file) != digests[name]:
      problems.append(f"{file} is damaged: its sha256 is another")
  if problems:
    raise ValueError(
      f"the dataset is not whole: {'; '.join(problems)}. Copy what is named"
      " again from where it is whole, or write the dataset again"
    )
