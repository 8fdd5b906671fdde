"""Checksums of the files of a directory, stored in the directory.

`write` runs last, before a checkpoint gets its final name or its commit marker.
A checkpoint without checksums, or with files that do not match them, was
damaged afterwards. On a disk they are CRC-32 of what was read back: it detects
accidents (flipped bits, truncated files), not forgery, and is not slower than
the disk. An object store computes CRC-32C when an object is written and gives
it in listings, so objects are not read, neither to save nor to verify.

A list of unknown origin may name only regular files of its own directory.
"""

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from etils import epath

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted

CHECKSUMS = "checksums.json"
_PIECE = 8 * 2**20  # bytes read at once
_THREADS = 4  # files read at once; zlib releases the GIL
_LISTED = 4  # problems in a message
_DIFFERS = "has another checksum than when it was written"
# `bytes`, and `crc32` (disk) or `crc32c` (object store, in base 64).
Entry = Mapping[str, Any]
Entries = Mapping[str, Entry]


class DamagedError(ValueError):
  """Files differ from what was written."""


def write(directory: epath.Path, folders: Iterable[str] = ("",)) -> None:
  """Write the checksums of all files below folders, and flush the files.

  If a subfolder has a list of its own, written by another process, the
  checksums of its files are copied from this list, and the files are not read.

  Args:
    directory: directory of the folders, whose files are complete.
    folders: names of the folders; "" for the directory.

  Raises:
    OSError: a file cannot be read, or the disk is full.
    DamagedError: the list of a subfolder is damaged.
  """
  heads = tuple(f"{name}/" if name else "" for name in folders)
  if storage.is_remote(directory):
    found = _store_listing(directory)
    _write_list(directory, {n: found[n] for n in found if n.startswith(heads)})
    return
  entries: dict[str, Entry] = {}
  local = pathlib.Path(directory)
  for path in sorted(local.glob(f"*/**/{CHECKSUMS}")):
    head = path.parent.relative_to(local).as_posix()
    entries |= {f"{head}/{n}": e for n, e in listing(path.parent).items()}
  paths = [
    local / name
    for name in names(directory)
    if name.startswith(heads) and name not in {CHECKSUMS, *entries}
  ]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda path: _checksum(path, flush=True), paths)
    entries |= {
      path.relative_to(local).as_posix(): {
        "bytes": path.stat().st_size,
        "crc32": crc32,
      }
      for path, crc32 in zip(paths, sums)
    }
  _write_list(directory, entries)
  for folder in {local, *(path.parent for path in paths)}:
    _flush_folder(folder)


def _write_list(directory: epath.Path, entries: Entries) -> None:
  content = {"crc32": _crc32_of(entries), "files": entries}
  storage.write_text(
    directory / CHECKSUMS, json.dumps(content, indent=1) + "\n"
  )


def listing(directory: epath.PathLike) -> dict[str, Entry]:
  """Read the list of files and their checksums.

  Args:
    directory: directory with the list.

  Returns:
    `bytes` and `crc32` or `crc32c` of each file, by name.

  Raises:
    DamagedError: there is no list, or it is damaged.
    OSError: the object store cannot be used.
  """
  path = epath.Path(directory) / CHECKSUMS
  try:
    data = read_json(directory, CHECKSUMS)
    entries = data.get("files") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not all(
      map(_is_entry, entries.values())
    ):
      raise ValueError("expected files with their bytes and crc32")
    if _crc32_of(entries) != data.get("crc32"):
      raise ValueError("its own checksum differs")
  except FileNotFoundError:
    raise DamagedError(f"{path} is missing") from None
  except (OSError, ValueError) as error:
    if isinstance(error, OSError) and storage.is_remote(path):
      raise  # it says nothing about the file
    raise DamagedError(f"{path} is damaged: {error}") from error
  return entries


def read_json(directory: epath.PathLike, name: str, finite: bool = True) -> Any:
  """Read JSON from a regular file of a directory.

  Raises:
    ValueError: it is no regular file of the directory, or not JSON.
    OSError: it cannot be read.
  """
  path = epath.Path(directory) / name
  if not storage.is_remote(path):
    path = epath.Path(files.inside(directory, name))
  return storage.read_json(path, finite=finite)


def names(directory: epath.Path) -> list[str]:
  """Names of all entries below a directory except folders; includes links."""
  if storage.is_remote(directory):
    return sorted(_store_listing(directory))
  return [
    path.relative_to(directory).as_posix()
    for path in sorted(pathlib.Path(directory).rglob("*"))
    if path.is_symlink() or not path.is_dir()
  ]


def problems(directory: epath.Path, entries: Entries) -> list[str]:
  """Compare files with their checksums.

  A name that is not that of a regular file in the directory is a problem, and
  nothing is read under this name.

  Args:
    directory: directory of the files.
    entries: see `listing`; for an empty entry, only the name is checked.

  Returns:
    The differences, as text, one item for each file that differs.
  """
  remote = storage.is_remote(directory)
  stored = _store_listing(directory) if remote and entries else {}

  def problem(name: str) -> str:
    if not remote:
      return _problem(directory, name, entries[name])
    return _store_problem(directory / name, stored.get(name), entries[name])

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return [
      f"{untrusted.printable(name)} {what}"
      for name, what in zip(entries, pool.map(problem, entries))
      if what
    ]


def shorten(what: list[str]) -> str:
  """Problems as one message, truncated."""
  rest = len(what) - _LISTED
  return "; ".join(what[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _problem(directory: epath.Path, name: str, expected: Entry) -> str:
  """The problem with one file of a disk; empty if there is none."""
  try:
    path = pathlib.Path(files.inside(directory, name))
    size = path.stat().st_size
    if expected and size != expected["bytes"]:
      return f"has {size} bytes, expected {expected['bytes']}"
    if "crc32" in expected and _checksum(path) != expected["crc32"]:
      return _DIFFERS
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  except ValueError as error:
    return f"is no file of the checkpoint ({error})"
  return ""


def _store_problem(
  path: epath.Path, found: Entry | None, expected: Entry
) -> str:
  """The problem with one object; it is read if the store has no CRC-32C."""
  if found is None:
    return "is missing"
  if expected and found["bytes"] != expected["bytes"]:
    return f"has {found['bytes']} bytes, expected {expected['bytes']}"
  if "crc32c" in expected and "crc32c" in found:
    return "" if found["crc32c"] == expected["crc32c"] else _DIFFERS
  if "crc32" in expected and _checksum(path) != expected["crc32"]:
    return _DIFFERS
  return ""


def _store_listing(directory: epath.Path) -> dict[str, Entry]:
  """Size and checksum of each object below a folder, from one listing."""
  with storage.store_errors(directory):
    system, root = storage.file_system(directory)
    found = system.find(root, detail=True)
  head = f"{root.rstrip('/')}/"
  return {
    name.removeprefix(head): {"bytes": info["size"]}
    | {key: info[key] for key in ("crc32c",) if info.get(key)}
    for name, info in found.items()
    if name.startswith(head) and not name.endswith("/")
  }


def _is_entry(entry: Any) -> bool:
  """Whether JSON is the size and the checksum of a file."""
  if not isinstance(entry, dict) or type(entry.get("bytes")) is not int:
    return False
  kinds = {"bytes": int, "crc32": int, "crc32c": str}
  return all(type(value) is kinds.get(key) for key, value in entry.items())


def _checksum(path: Any, flush: bool = False) -> int:
  """CRC-32 of a file; `flush` also writes its contents to the disk."""
  value = 0
  with path.open("rb") as file:
    while piece := file.read(_PIECE):
      value = zlib.crc32(piece, value)
    if flush:
      os.fsync(file.fileno())
  return value


def _crc32_of(entries: Entries) -> int:
  return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def _flush_folder(path: pathlib.Path) -> None:
  """Write the names in a folder to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
