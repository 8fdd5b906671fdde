"""Files on this machine or in a bucket, whole under their name or absent.

A place is a path, or a URL that fsspec knows (gs://, s3://, …; its driver,
such as gcsfs, is the user's to install). Buckets show an object only when all
of it has arrived, local files are renamed when written.
"""

import contextlib
import glob
import os
import pathlib
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

import fsspec

from ovi_jax import files

_CHUNK_BYTES = 1 << 20


class _Discarded(Exception):
  """A file was written and not wanted."""


def is_remote(place: str) -> bool:
  """Whether a place is a URL."""
  return "://" in place


def join(place: str, *names: str) -> str:
  """A place within a folder."""
  return "/".join((place.rstrip("/") or "", *names))


@contextlib.contextmanager
def atomic_write_file(
  place: str,
) -> Iterator[tuple[pathlib.Path, Callable[[], None]]]:
  """A local file to write, and what gives it its place when it is whole.

  It is removed if that was not called. Both may raise OSError: the disk is
  full, or the folder is not writable.
  """
  with contextlib.suppress(_Discarded), contextlib.ExitStack() as stack:
    yield stack.enter_context(_replacing(place)), stack.close
    raise _Discarded  # undoes what was not closed


def write(place: str, value: bytes) -> None:
  """Write a file at once."""
  with atomic_write_file(place) as (temporary, publish):
    temporary.write_bytes(value)
    publish()


@contextlib.contextmanager
def _replacing(place: str) -> Iterator[pathlib.Path]:
  """A local file that gets its place if nothing is raised."""
  if not is_remote(place):
    with files.replacing(pathlib.Path(place)) as temporary:
      yield temporary
    return
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as folder:
    temporary = pathlib.Path(folder) / "part"
    yield temporary
    system, path = _filesystem(place)
    system.put_file(str(temporary), path)


def read(place: str) -> bytes:
  """All of a file; FileNotFoundError if there is none."""
  with open_file(place) as file:
    return file.read()


def open_file(place: str) -> BinaryIO:
  """A file to read anywhere in; FileNotFoundError if there is none."""
  if not is_remote(place):
    return open(place, "rb")
  system, path = _filesystem(place)
  return system.open(path, "rb")


def file_size(place: str) -> int | None:
  """Bytes of a file; None if there is none."""
  if not is_remote(place):
    path = pathlib.Path(place)
    return path.stat().st_size if path.is_file() else None
  system, path = _filesystem(place)
  try:
    return system.info(path)["size"]
  except FileNotFoundError:
    return None


def remove(place: str) -> None:
  """Remove a file if it is there."""
  if not is_remote(place):
    pathlib.Path(place).unlink(missing_ok=True)
  elif file_size(place) is not None:
    system, path = _filesystem(place)
    system.rm_file(path)


def list_files(pattern: str) -> list[str]:
  """The files that a place names, sorted.

  Args:
    pattern: of a file, of a folder (all files in it, hidden ones aside), or
      with `*`, `?`, `[…]` and `**`.
  """
  if is_remote(pattern):
    system, path = _filesystem(pattern)
    named = path if glob.has_magic(path) else f"{path.rstrip('/')}/**"
    found = [path] if system.isfile(path) else system.glob(named)
    return sorted(system.unstrip_protocol(f) for f in found if system.isfile(f))
  if os.path.isfile(pattern):
    return [pattern]
  if os.path.isdir(pattern):
    pattern = os.path.join(glob.escape(pattern), "**")
  found = glob.glob(pattern, recursive=True)
  return sorted(path for path in found if os.path.isfile(path))


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[str]:
  """A file's path on this machine: itself, or a copy for as long as this."""
  if not is_remote(place):
    yield place
    return
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as folder:
    # A stage may go by the ending; the rest of the name could be anything.
    path = os.path.join(folder, f"copy{pathlib.PurePosixPath(place).suffix}")
    with open_file(place) as source, open(path, "wb") as copy:
      while part := source.read(_CHUNK_BYTES):
        copy.write(part)
    yield path


def upload(folder: pathlib.Path, place: str) -> None:
  """Copy the files of a local folder, and of folders in it.

  What stood there before is removed: it may be more files than there are now.
  """
  system, path = _filesystem(place)
  if system.exists(path):
    system.rm(path, recursive=True)
  for file in sorted(folder.rglob("*")):
    if file.is_file():
      name = file.relative_to(folder).as_posix()
      system.put_file(str(file), f"{path.rstrip('/')}/{name}")


def _filesystem(place: str) -> tuple[Any, str]:
  """The file system of a URL, and the path in it; Any for fsspec's."""
  try:
    return fsspec.core.url_to_fs(place)
  except ImportError as error:
    raise ValueError(
      f"{place}: {error}; install the driver of that storage (gcsfs for gs://,"
      " s3fs for s3://)"
    ) from error
