"""The files of a dataset that is being written, shard by shard.

Shards may be written in any order by any processes that share the folder; a
shard is written atomically, and shards that exist are skipped. `finish` renames
them as tfds does and writes the metadata.
"""

import base64
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import array_record.python.array_record_module as array_record_module
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.data import clips
from ovi_jax.data import features
from ovi_jax.data import schema

NAME = "ovi_records"
METADATA = "metadata.json"
_SUFFIX = "array_record"
# Records are read one by one; latents, H.264 and noise do not compress.
_LAYOUT = "group_size:1,uncompressed"


def locate(name: str | os.PathLike[str]) -> storage.AnyPath:
  """The path of a dataset.

  Raises:
    ValueError: it is in a store that records cannot be read from, or see
      `storage.path`.
  """
  if os.fspath(name).startswith("s3://"):
    raise ValueError(
      f"{untrusted.printable(os.fspath(name))}: expected a dataset on a disk or"
      " in gs://; array_record, which reads the records, has no s3://, so copy"
      " it to one of them"
    )
  return storage.locate(name)


def shard_path(folder: pathlib.Path, split: str, number: int) -> pathlib.Path:
  """The path of a shard before the dataset is finished."""
  return folder / f"{split}-{number:05d}.{_SUFFIX}"


def index_path(folder: storage.AnyPath, split: str) -> storage.AnyPath:
  """The path of a finished split's index of latent sizes."""
  return folder / f"index-{split}.npy"


def published_name(split: str, number: int, count: int) -> str:
  """The file name of a shard of a finished dataset, in the form of tfds."""
  return f"{NAME}-{split}.{_SUFFIX}-{number:05d}-of-{count:05d}"


def write(
  folder: pathlib.Path,
  split: str,
  number: int,
  records: Iterable[schema.Record],
  sizes: schema.Geometry,
  dtype: str,
) -> None:
  """Write a shard atomically, and the latent sizes of its records.

  Args:
    folder: of the dataset.
    split: name of the split.
    number: index of the shard.
    records: its records.
    sizes: geometry of the dataset.
    dtype: storage dtype of arrays, "float16" or "bfloat16".

  Raises:
    ValueError: a record is invalid, or differs from its mp4.
    OSError: the disk is full, or the folder is not writable.
  """
  path = shard_path(folder, split, number)
  rows, size = [], 0
  with _disk_errors(path), files.atomic_path(path) as temporary:
    writer = array_record_module.ArrayRecordWriter(str(temporary), _LAYOUT)
    try:
      for record in records:
        encoded = features.encode(record, sizes, dtype)
        clips.check(record)
        stored = features.serialize(encoded)
        writer.write(stored)
        rows.append((*record.sizes.video, record.sizes.audio))
        size += len(stored)
    finally:
      writer.close()
    with (
      files.atomic_path(_notes_path(path)) as notes,
      open(notes, "wb") as file,
    ):
      np.savez(file, rows=np.asarray(rows, np.int32), size=size)


def is_written(
  folder: pathlib.Path, split: str, number: int, count: int
) -> bool:
  """Whether a shard is whole, before or after the dataset is finished."""
  path = shard_path(folder, split, number)
  notes = _notes_path(path)
  if not path.exists():
    named = _template(folder, split).sharded_filepath(
      shard_index=number, num_shards=count
    )
    path = pathlib.Path(named)
  return path.exists() and notes.exists() and _is_whole(path, notes)


def _is_whole(path: pathlib.Path, notes: pathlib.Path) -> bool:
  """Whether a shard has the records of its notes; reads its footer."""
  try:
    # numpy leaves a file open that it cannot read.
    with open(notes, "rb") as opened, np.load(opened) as file:
      count, size = len(file["rows"]), int(file["size"])
    if path.stat().st_size < size:
      return False
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
      return reader.num_records() == count
    finally:
      reader.close()
  # numpy's and riegeli's words for damage.
  except (EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile):
    return False


def finish(
  folder: pathlib.Path,
  counts: Mapping[str, int],
  sizes: schema.Geometry,
  null_text: np.ndarray | None,
) -> None:
  """Publish the shards as a dataset; may be called again after a crash.

  Args:
    folder: of the shards.
    counts: number of shards of each split.
    sizes: geometry of the dataset.
    null_text: text_SE of the empty prompt.
  """
  infos = []
  for split, count in counts.items():
    template, notes = _template(folder, split), []
    for number in range(count):
      path = shard_path(folder, split, number)
      with np.load(_notes_path(path)) as file:
        notes.append((file["rows"], int(file["size"])))
      named = template.sharded_filepath(shard_index=number, num_shards=count)
      if path.exists():
        os.rename(path, named)
    rows = np.concatenate([rows for rows, _ in notes])
    np.save(index_path(folder, split), rows)
    info = tfds.core.SplitInfo(
      name=split,
      shard_lengths=[len(rows) for rows, _ in notes],
      num_bytes=sum(size for _, size in notes),
      filename_template=template,
    )
    infos.append(info)
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features.features(),
    split_infos=infos,
    version=schema.VERSION,
    check_data=False,
    disable_shuffling=True,
  )
  _describe(folder, sizes, null_text)


def is_published(path: storage.AnyPath) -> bool:
  """Whether a name is taken; in an object store, by a complete dataset.

  An interrupted upload leaves files without metadata, which are replaced.
  """
  is_local = isinstance(path, pathlib.Path)
  return storage.exists(path if is_local else path / METADATA)


def publish(folder: pathlib.Path, path: storage.AnyPath) -> None:
  """Give a finished dataset its name, without hidden files, its notes.

  A dataset in an object store is uploaded, the metadata last: what has none is
  no dataset. The folder keeps its notes, so that an interrupted upload can be
  repeated.
  """
  if not isinstance(path, pathlib.Path):
    storage.upload_folder(folder, path, last=METADATA)
    return
  for file in folder.iterdir():
    with open(file, "rb") as opened:
      os.fsync(opened.fileno())
  os.rename(folder, path)
  # Last: without them, shards would have to be written again.
  for notes in path.glob(".*"):
    notes.unlink()


def _template(folder: pathlib.Path, split: str) -> Any:
  """tfds's names for the shards of a split."""
  return tfds.core.ShardedFileTemplate(
    data_dir=epath.Path(folder),
    dataset_name=NAME,
    split=split,
    filetype_suffix=_SUFFIX,
  )


def digest(path: storage.AnyPath) -> str:
  """sha256 of a file."""
  return storage.sha256(path)


def _notes_path(path: pathlib.Path) -> pathlib.Path:
  """The path of a shard's metadata, before the dataset is finished."""
  return path.with_name(f".{path.name}.npz")


def _describe(
  folder: pathlib.Path, sizes: schema.Geometry, null_text: np.ndarray | None
) -> None:
  """Write what is checked before a record is touched; the last file."""
  kept = [
    f
    for f in sorted(folder.iterdir())  # in one order on all file systems
    if not f.name.startswith(".") and f.name != METADATA
  ]
  lengths = {f.name: f.stat().st_size for f in kept}
  # Shards have checksums of their own.
  digests = {f.name: digest(f) for f in kept if _SUFFIX not in f.name}
  text = None
  if null_text is not None:
    stored = np.ascontiguousarray(null_text, "<f4").tobytes()
    text = base64.b64encode(stored).decode()
  metadata = {
    "version": schema.VERSION,
    "geometry": dataclasses.asdict(sizes),
    "null_text": text,
    "files": lengths,
    "digests": digests,
  }
  (folder / METADATA).write_text(json.dumps(metadata))


@contextlib.contextmanager
def _disk_errors(path: pathlib.Path) -> Iterator[None]:
  """ArrayRecord reports what the system said as RuntimeError."""
  try:
    yield
  except RuntimeError as error:
    if os.strerror(errno.ENOSPC) not in str(error):
      raise
    raise OSError(
      errno.ENOSPC,
      "no space left to write it; free some, or choose another folder",
      str(path),
    ) from error
