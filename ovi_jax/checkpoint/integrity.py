"""Checksums of a directory's files, kept in the directory itself.

`write` is the last thing done to a checkpoint before it gets its name, so one
that has a name and no checksums, or others, was damaged afterwards. CRC-32
finds accidents (flipped bits, cut files), not forgery; it is several times
faster than a cryptographic hash and never waits for less than the disk.

A list of unknown origin may name regular files of its own directory only.
"""

import concurrent.futures
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from ovi_jax import files
from ovi_jax import untrusted

CHECKSUMS = "checksums.json"
_PIECE = 8 * 2**20  # bytes read at once
_THREADS = 4  # files read at once; zlib lets other threads run
_LISTED = 4  # problems in a message


def write(directory: pathlib.Path, leave_out: Iterable[str] = ()) -> None:
  """Write the checksums of all files below a directory, and flush them.

  Args:
    directory: whose files are complete.
    leave_out: names of files that will change yet.

  Raises:
    OSError: a file cannot be read, or the disk is full.
  """
  excluded = {CHECKSUMS, *leave_out}
  paths = [
    path
    for path in sorted(directory.rglob("*"))
    if path.is_file() and path.name not in excluded
  ]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda path: _checksum(path, flush=True), paths)
    entries = {
      path.relative_to(directory).as_posix(): {
        "bytes": path.stat().st_size,
        "crc32": crc32,
      }
      for path, crc32 in zip(paths, sums)
    }
  listing = {"crc32": _crc32_of(entries), "files": entries}
  with files.atomic_path(directory / CHECKSUMS) as temporary:
    temporary.write_text(json.dumps(listing, indent=1) + "\n")
  for folder in {directory, *(path.parent for path in paths)}:
    _flush_folder(folder)


def listing(directory: pathlib.Path) -> dict[str, Mapping[str, int]]:
  """The files a directory should hold, by name: `bytes` and `crc32`.

  Raises:
    ValueError: there is no such list, or it is damaged.
  """
  path = directory / CHECKSUMS
  try:
    data = untrusted.read_json(files.inside(directory, CHECKSUMS))
    if not isinstance(data, dict) or not _are_entries(data.get("files")):
      raise ValueError("expected files with their bytes and crc32")
    entries = data["files"]
    if _crc32_of(entries) != data.get("crc32"):
      raise ValueError("its own checksum differs")
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  except (OSError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  return entries


def _are_entries(value: Any) -> bool:
  """Whether JSON gives two sizes for each name."""
  return isinstance(value, dict) and all(
    isinstance(entry, dict)
    and type(entry.get("bytes")) is int
    and type(entry.get("crc32")) is int
    for entry in value.values()
  )


def problems(
  directory: pathlib.Path,
  entries: Mapping[str, Mapping[str, int]],
  names: Iterable[str] | None = None,
) -> list[str]:
  """What differs between files and their checksums, in words.

  A name that is not one of a regular file in the directory is a problem too,
  and nothing is read under it.

  Args:
    directory: of the files.
    entries: see `listing`.
    names: of the files to read; None for all.
  """
  chosen = list(entries if names is None else names)
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda n: _problem(directory, n, entries[n]), chosen)
    return [
      f"{untrusted.printable(name)} {what}"
      for name, what in zip(chosen, found)
      if what
    ]


def irregular(directory: pathlib.Path) -> list[str]:
  """What lies below a directory and is neither a folder nor a regular file.

  A link within the directory counts as what it leads to; one that leads
  outside, a device, a pipe or a socket is named, in words.
  """
  root, found = directory.resolve(), []
  for folder, folders, names in os.walk(directory):
    for name in (*folders, *names):
      path = pathlib.Path(folder, name)
      shown = untrusted.printable(path.relative_to(directory).as_posix())
      try:
        resolved = path.resolve(strict=True)
        mode = resolved.stat().st_mode
      except (OSError, RuntimeError):
        found.append(f"{shown} is a link to nothing")
        continue
      if not resolved.is_relative_to(root):
        found.append(f"{shown} is a link that leads outside")
      elif not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        found.append(f"{shown} is not a regular file")
  return found


def is_missing(directory: pathlib.Path) -> bool:
  """Whether files are gone: what a deletion leaves that was cut short."""
  try:
    entries = listing(directory)
  except ValueError:
    return True
  return any(not (directory / name).is_file() for name in entries)


def shorten(what: list[str]) -> str:
  """A list of problems for a message, not too long."""
  rest = len(what) - _LISTED
  return "; ".join(what[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _problem(
  directory: pathlib.Path, name: str, expected: Mapping[str, int]
) -> str:
  """What is wrong with one file; empty if nothing is."""
  try:
    path = files.inside(directory, name)
    size = path.stat().st_size
    if size != expected["bytes"]:
      return f"has {size} bytes, expected {expected['bytes']}"
    if _checksum(path) != expected["crc32"]:
      return "has another checksum than when it was written"
  except FileNotFoundError:
    return "is missing"
  except OSError as error:
    return f"cannot be read ({error.strerror})"
  except ValueError as error:
    return f"is no file of the checkpoint ({error})"
  return ""


def _checksum(path: pathlib.Path, flush: bool = False) -> int:
  """CRC-32 of a file; with `flush` its contents are on the disk then."""
  value = 0
  buffer = memoryview(bytearray(_PIECE))
  with path.open("rb", buffering=0) as file:
    while count := file.readinto(buffer):
      value = zlib.crc32(buffer[:count], value)
    if flush:
      os.fsync(file.fileno())
  return value


def _crc32_of(entries: Any) -> int:
  return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def _flush_folder(path: pathlib.Path) -> None:
  """Make the names in a folder last."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
