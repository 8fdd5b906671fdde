"""Checksums of the files of a directory, stored in the directory.

`write` runs last, before a checkpoint gets its final name. A checkpoint without
checksums, or with files that do not match them, was damaged afterwards. CRC-32
detects accidents (flipped bits, truncated files), not forgery; it is several
times faster than a cryptographic hash and not slower than the disk.

A list of unknown origin may name only regular files of its own directory.
"""

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Iterable
from collections.abc import Mapping

from ovi_jax import files
from ovi_jax import untrusted

CHECKSUMS = "checksums.json"
_PIECE = 8 * 2**20  # bytes read at once
_THREADS = 4  # files read at once; zlib releases the GIL
_LISTED = 4  # problems in a message
Entries = Mapping[str, Mapping[str, int]]


class DamagedError(ValueError):
  """Files differ from what was written."""


def write(directory: pathlib.Path, leave_out: Iterable[str] = ()) -> None:
  """Write the checksums of all files below a directory, and flush the files.

  If a subfolder has a list of its own, written by another process, the
  checksums of its files are copied from this list, and the files are not read.

  Args:
    directory: directory whose files are complete.
    leave_out: names of files that will still change.

  Raises:
    OSError: a file cannot be read, or the disk is full.
    DamagedError: the list of a subfolder is damaged.
  """
  entries: dict[str, Mapping[str, int]] = {}
  for path in sorted(directory.glob(f"*/**/{CHECKSUMS}")):
    head = path.parent.relative_to(directory).as_posix()
    entries |= {f"{head}/{n}": e for n, e in listing(path.parent).items()}
  excluded = {CHECKSUMS, *leave_out, *entries}
  paths = [directory / n for n in names(directory) if n not in excluded]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda path: _checksum(path, flush=True), paths)
    entries |= {
      path.relative_to(directory).as_posix(): {
        "bytes": path.stat().st_size,
        "crc32": crc32,
      }
      for path, crc32 in zip(paths, sums)
    }
  content = {"crc32": _crc32_of(entries), "files": entries}
  with files.atomic_path(directory / CHECKSUMS) as temporary:
    temporary.write_text(json.dumps(content, indent=1) + "\n")
  for folder in {directory, *(path.parent for path in paths)}:
    _flush_folder(folder)


def listing(directory: pathlib.Path) -> dict[str, Mapping[str, int]]:
  """Read the list of files and their checksums.

  Args:
    directory: directory with the list.

  Returns:
    `bytes` and `crc32` of each file, by name.

  Raises:
    DamagedError: there is no list, or it is damaged.
  """
  path = directory / CHECKSUMS
  try:
    data = untrusted.read_json(files.inside(directory, CHECKSUMS))
    entries = data.get("files") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or not all(
      isinstance(entry, dict)
      and all(type(entry.get(key)) is int for key in ("bytes", "crc32"))
      for entry in entries.values()
    ):
      raise ValueError("expected files with their bytes and crc32")
    if _crc32_of(entries) != data.get("crc32"):
      raise ValueError("its own checksum differs")
  except FileNotFoundError:
    raise DamagedError(f"{path} is missing") from None
  except (OSError, ValueError) as error:
    raise DamagedError(f"{path} is damaged: {error}") from error
  return entries


def names(directory: pathlib.Path) -> list[str]:
  """Names of all entries below a directory except folders; includes links."""
  return [
    path.relative_to(directory).as_posix()
    for path in sorted(directory.rglob("*"))
    if path.is_symlink() or not path.is_dir()
  ]


def problems(directory: pathlib.Path, entries: Entries) -> list[str]:
  """Compare files with their checksums.

  A name that is not that of a regular file in the directory is a problem, and
  nothing is read under this name.

  Args:
    directory: directory of the files.
    entries: see `listing`; for an empty entry, only the name is checked.

  Returns:
    The differences, as text, one item for each file that differs.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda n: _problem(directory, n, entries[n]), entries)
    return [
      f"{untrusted.printable(name)} {what}"
      for name, what in zip(entries, found)
      if what
    ]


def shorten(what: list[str]) -> str:
  """Problems as one message, truncated."""
  rest = len(what) - _LISTED
  return "; ".join(what[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _problem(
  directory: pathlib.Path, name: str, expected: Mapping[str, int]
) -> str:
  """The problem with one file; empty if there is none."""
  try:
    path = files.inside(directory, name)
    size = path.stat().st_size
    if expected and size != expected["bytes"]:
      return f"has {size} bytes, expected {expected['bytes']}"
    if expected and _checksum(path) != expected["crc32"]:
      return "has another checksum than when it was written"
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  except ValueError as error:
    return f"is no file of the checkpoint ({error})"
  return ""


def _checksum(path: pathlib.Path, flush: bool = False) -> int:
  """CRC-32 of a file; `flush` also writes its contents to the disk."""
  value = 0
  buffer = memoryview(bytearray(_PIECE))
  with path.open("rb", buffering=0) as file:
    while count := file.readinto(buffer):
      value = zlib.crc32(buffer[:count], value)
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
