"""Files on the local disk or in a bucket, written atomically.

`url` is a local path or a URL of an fsspec file system (gs://, s3://, …), whose
driver (such as gcsfs) must be installed. Bucket objects appear when the upload
is complete; local files are renamed after writing.
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
from ovi_jax import untrusted

_CHUNK_BYTES = 1 << 20


class _Discarded(Exception):
  """The written file was not published."""


def is_remote(url: str) -> bool:
  """Whether a file is remote."""
  return "://" in url


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
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as folder:
    temporary = pathlib.Path(folder) / "part"
    yield temporary
    system, path = _filesystem(url)
    system.put_file(str(temporary), path)


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
  system, path = _filesystem(url)
  return system.open(path, "rb")


def file_size(url: str) -> int | None:
  """Size in bytes; None if the file does not exist."""
  if not is_remote(url):
    path = pathlib.Path(url)
    return path.stat().st_size if path.is_file() else None
  system, path = _filesystem(url)
  try:
    return system.info(path)["size"]
  except FileNotFoundError:
    return None


def remove(url: str) -> None:
  """Remove a file if it exists."""
  if not is_remote(url):
    pathlib.Path(url).unlink(missing_ok=True)
  elif file_size(url) is not None:
    system, path = _filesystem(url)
    system.rm_file(path)


def list_files(pattern: str) -> list[str]:
  """The files that match a pattern, sorted.

  Args:
    pattern: a file, a folder (all files in it except hidden ones), or a glob
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
def local_copy(url: str) -> Iterator[str]:
  """A local path of a file: itself, or a temporary copy."""
  if not is_remote(url):
    yield url
    return
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as folder:
    # Keep the suffix: stages may depend on it.
    path = os.path.join(folder, f"copy{pathlib.PurePosixPath(url).suffix}")
    with open_file(url) as source, open(path, "wb") as copy:
      while part := source.read(_CHUNK_BYTES):
        copy.write(part)
    yield path


def upload(folder: pathlib.Path, url: str) -> None:
  """Upload a local folder recursively, replacing the remote one.

  The remote folder is removed first: it may contain other files.
  """
  system, path = _filesystem(url)
  if system.exists(path):
    system.rm(path, recursive=True)
  for file in sorted(folder.rglob("*")):
    if file.is_file():
      name = file.relative_to(folder).as_posix()
      system.put_file(str(file), f"{path.rstrip('/')}/{name}")


def _filesystem(url: str) -> tuple[Any, str]:
  """The fsspec file system of a URL, and the path in it."""
  try:
    return fsspec.core.url_to_fs(url)
  except ImportError as error:
    raise ValueError(
      f"{url}: {error}; install the driver of that storage (gcsfs for gs://,"
      " s3fs for s3://)"
    ) from error
