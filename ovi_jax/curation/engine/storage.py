"""Files of a run, named by a local path or a URL (see `ovi_jax.storage`).

Objects of a store appear when the upload is complete; local files are renamed
after writing.
"""

import contextlib
import glob
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import BinaryIO

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted

is_remote = storage.is_remote
local_copy = storage.local_copy


class _Discarded(Exception):
  """The written file was not published."""


def join(url: str, *names: str) -> str:
  """Join a folder and names."""
  return "/".join((url.rstrip("/") or "", *names))


@contextlib.contextmanager
def atomic_write_file(
  url: str,
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
  """A temporary local file, and a function that publishes it.

  It is removed if not published. Both may raise OSError: the disk is full, or
  the folder is not writable.
  """
  with contextlib.suppress(_Discarded), contextlib.ExitStack() as stack:
    yield stack.enter_context(_replacing(url)), stack.close
    raise _Discarded  # discards an unpublished file


def write(url: str, value: bytes) -> None:
  """Write a file atomically."""
  with atomic_write_file(url) as (temporary, publish):
    temporary.write_bytes(value)
    publish()


@contextlib.contextmanager
def _replacing(url: str) -> Iterator[pathlib.Path]:
  """A temporary local file that is published unless an error is raised."""
  if not is_remote(url):
    with files.atomic_path(pathlib.Path(url)) as temporary:
      yield temporary
    return
  with storage.spool() as folder:
    yield folder / "part"
    storage.upload(folder / "part", url)


def read(url: str) -> bytes:
  """Read a file; FileNotFoundError if it does not exist."""
  with open_file(url) as file:
    return file.read()


def open_file(url: str) -> BinaryIO:
  """Open a file for random access; FileNotFoundError if it does not exist."""
  if not is_remote(url):
    if kind := untrusted.irregular(url):
      raise OSError(f"{url}: expected a regular file, found {kind}")
    return open(url, "rb")
  system, path = storage.file_system(url)
  return system.open(path, "rb")


def file_size(url: str) -> int | None:
  """Size in bytes; None if the file does not exist."""
  if not is_remote(url):
    path = pathlib.Path(url)
    return path.stat().st_size if path.is_file() else None
  system, path = storage.file_system(url)
  try:
    return system.info(path)["size"]
  except FileNotFoundError:
    return None


def remove(url: str) -> None:
  """Remove a file if it exists."""
  if not is_remote(url):
    pathlib.Path(url).unlink(missing_ok=True)
  elif file_size(url) is not None:
    system, path = storage.file_system(url)
    system.rm_file(path)


def list_files(pattern: str) -> list[str]:
  """The files that match a pattern, sorted.

  Args:
    pattern: a file, a folder (all files in it except hidden ones), or a glob
      with `*`, `?`, `[…]` and `**`.
  """
  if is_remote(pattern):
    system, path = storage.file_system(pattern)
    named = path if glob.has_magic(path) else f"{path.rstrip('/')}/**"
    found = [path] if system.isfile(path) else system.glob(named)
    return sorted(system.unstrip_protocol(f) for f in found if system.isfile(f))
  if os.path.isfile(pattern):
    return [pattern]
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), "**")
  found = glob.glob(pattern, recursive=True)
  return sorted(path for path in found if os.path.isfile(path))


def upload(folder: pathlib.Path, url: str) -> None:
  """Upload a local folder recursively, replacing the remote one.

  The remote folder is removed first: it may contain other files.
  """
  system, path = storage.file_system(url)
  if system.exists(path):
    system.rm(path, recursive=True)
  storage.upload_folder(folder, url)
