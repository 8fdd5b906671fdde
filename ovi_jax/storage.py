"""Paths of this machine and of object stores (`gs://`, `s3://`), alike.

A path is an `etils.epath.Path`. The drivers are fsspec's: gcsfs for Google
Cloud Storage, s3fs for S3. An object of a store is complete when it appears,
folders exist while something is in them, and there is no atomic rename.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import os
import pathlib
import re
import secrets
import tempfile
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import fsspec
from etils import epath
from fsspec import config as fsspec_config

from ovi_jax import untrusted

# A local path (`pathlib`) or one of a store (`epath`), see `locate`.
AnyPath = pathlib.Path | epath.Path
# Scheme -> package of its driver, and the extra that installs it.
DRIVERS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
# Of an object, by the store's or driver's names.
_VERSION_KEYS = ("generation", "etag", "ETag", "mtime", "LastModified", "size")
# What Google and S3 say of credentials that are signed with another time.
_WRONG_CLOCK = ("iat and exp", "request time and the current time")
# The driver's plain requests, which the tests cover: without this, it asks for
# the layout of the bucket by gRPC first. Buckets of a zone need "true".
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# Other processes write too: a driver must not answer from an earlier listing.
for _protocol in ("gs", "gcs", "s3"):
  fsspec_config.conf.setdefault(_protocol, {})["use_listings_cache"] = False


def path(name: str | os.PathLike[str]) -> epath.Path:
  """A path of this machine or of an object store, from its name.

  Args:
    name: such as `runs/one` or `gs://bucket/runs/one`.

  Raises:
    ValueError: it is no text, the scheme is unknown or its driver is not
      installed, a slash is missing, or no bucket is named.
  """
  text = os.fspath(name) if isinstance(name, os.PathLike) else name
  if not isinstance(text, str):
    raise ValueError(
      "expected the path of a file or folder, as text or pathlib.Path, got"
      f" {type(name).__name__}"
    )
  match = _SCHEME.fullmatch(text)
  # A file of this machine may have a colon in its name.
  if match is None or not (match[2] or match[1] in DRIVERS):
    return epath.Path(text)
  scheme, slashes, rest = match.groups()
  shown = untrusted.printable(text)
  if scheme not in DRIVERS:
    known = " or ".join(f"{each}://BUCKET/…" for each in DRIVERS)
    raise ValueError(
      f"{shown}: unknown scheme {scheme}:; expected a local path, {known}"
    )
  bucket, _, _ = rest.partition("/")
  if slashes != "//" or not bucket:
    raise ValueError(
      f"{shown}: expected {scheme}://BUCKET/…, check the slashes"
    )
  package, extra = DRIVERS[scheme]
  if importlib.util.find_spec(package) is None:
    raise ValueError(
      f"{shown}: {scheme}:// needs the package {package}; in a clone of"
      f" ovi_jax: pip install -e '.[{extra}]'"
    )
  return epath.Path(text)


def locate(name: str | os.PathLike[str]) -> AnyPath:
  """As `path`, but a local path is one of `pathlib`."""
  found = path(name)
  return found if is_remote(found) else pathlib.Path(found)


def local(name: str | os.PathLike[str]) -> pathlib.Path:
  """The path of a file or folder that cannot be in an object store.

  Raises:
    ValueError: it is a URL.
  """
  found = locate(name)
  if isinstance(found, pathlib.Path):
    return found
  raise ValueError(f"{untrusted.printable(str(name))}: expected a local path")


def absolute(name: str | os.PathLike[str]) -> epath.Path:
  """A path that does not depend on the working directory, see `path`."""
  found = path(name)
  return found if is_remote(found) else epath.Path(os.path.abspath(found))


def is_remote(name: str | os.PathLike[str]) -> bool:
  """Whether a path is in an object store."""
  return "://" in os.fspath(name)


def file_system(name: str | os.PathLike[str]) -> tuple[Any, str]:
  """The fsspec file system of a path, and the path in it.

  Raises:
    ValueError: the driver of the scheme is not installed.
  """
  try:
    return fsspec.core.url_to_fs(os.fspath(name))
  except ImportError as error:
    raise ValueError(
      f"{name}: {error}; install the driver of that storage (gcsfs for gs://,"
      " s3fs for s3://)"
    ) from error


@contextlib.contextmanager
def store_errors(name: str | os.PathLike[str]) -> Iterator[None]:
  """Raise errors of a store and its driver as an OSError of one line.

  Raises:
    OSError: the bucket does not exist, access is denied, there are no
      credentials, this machine's clock is wrong, or the store cannot be
      reached.
  """
  if not is_remote(name):
    yield
    return
  try:
    yield
  except _driver_errors(name) as error:
    advice = (
      "check that the bucket exists and that these credentials may list, read,"
      " write and delete in it"
    )
    raise _unusable(name, error, advice) from error


def _unusable(
  name: str | os.PathLike[str], error: Exception, advice: str
) -> OSError:
  """The error of one line for what a store or its driver said.

  Args:
    name: what was used.
    error: of the driver; its text is cut.
    advice: what to do, unless the error is due to this machine's clock.
  """
  said = untrusted.printable(str(error).strip().replace("\n", " "), 300)
  bucket = "/".join(os.fspath(name).split("/")[:3])
  if any(words in said.lower() for words in _WRONG_CLOCK):
    advice = "the clock of this machine differs from the store's; set it"
  return OSError(
    f"{name}: cannot use {bucket} ({type(error).__name__}: {said}); {advice}"
  )


@contextlib.contextmanager
def read_errors(name: str | os.PathLike[str]) -> Iterator[None]:
  """As `store_errors`, but what does not exist is a FileNotFoundError."""
  if not is_remote(name):
    yield
    return
  absent = None
  with store_errors(name):
    try:
      yield
    except FileNotFoundError as error:
      absent = error
  if absent is not None:
    raise FileNotFoundError(
      errno.ENOENT,
      "nothing in the store has this name; check it, and that the bucket"
      " exists",
      untrusted.printable(os.fspath(name)),
    ) from absent


def check_access(name: epath.Path) -> None:
  """Check that a folder of a store can be listed, written, read and cleared.

  Raises:
    OSError: it cannot, see `store_errors`.
  """
  probe = name / f".access-{secrets.token_hex(8)}"
  text = "written to check access; may be deleted"
  with store_errors(name):
    probe.write_text(text)
    list(name.iterdir())
    found = probe.read_text()
  if found != text:
    raise OSError(f"{probe}: expected the text that was written, got another")
  # The error names what stays.
  with store_errors(probe):
    probe.unlink()


def check_described(name: epath.Path) -> None:
  """Check that the bucket of a folder can be described.

  Orbax asks Google Cloud Storage for the description of a bucket before it
  lists checkpoints; the roles for objects alone do not permit that. It asks by
  `google.cloud.storage.Client()`, which may find other credentials than gcsfs
  and needs a project, so this does the same.

  Args:
    name: of the folder, in `gs://`.

  Raises:
    OSError: it cannot; names the permission, or the credentials that are used.
  """
  from google.api_core import exceptions
  from google.auth import exceptions as auth_exceptions
  from google.cloud import storage as cloud_storage

  try:
    cloud_storage.Client().get_bucket(name.parts[2])
  except exceptions.Forbidden as error:
    advice = (
      "checkpoints need the permission storage.buckets.get, which"
      " roles/storage.legacyBucketReader has"
    )
    raise _unusable(name, error, advice) from error
  except (
    exceptions.GoogleAPIError,
    auth_exceptions.GoogleAuthError,
    OSError,
  ) as error:
    advice = (
      "checkpoints need the description of the bucket; check the connection,"
      " the application default credentials (gcloud auth application-default"
      " login) and their project (GOOGLE_CLOUD_PROJECT)"
    )
    raise _unusable(name, error, advice) from error


def check_readable(name: str | os.PathLike[str]) -> None:
  """Check that a file or folder of a store exists and can be listed.

  Raises:
    FileNotFoundError: there is nothing, or no such bucket.
    OSError: the store cannot be used, see `store_errors`.
  """
  if is_remote(name):
    sizes(name)


def exists(name: str | os.PathLike[str]) -> bool:
  """Whether there is a file or folder; `epath` hides errors of a store.

  Raises:
    OSError: the store cannot be used, see `store_errors`.
  """
  if not is_remote(name):
    return os.path.exists(name)
  try:
    with read_errors(name):
      system, file = file_system(name)
      system.info(file)
  except FileNotFoundError:
    return False
  return True


def version(name: str | os.PathLike[str]) -> tuple[Any, ...] | None:
  """What tells a file from another that takes its name later.

  Returns:
    Numbers or text of the file system or the store, to be compared for
    equality; `None` if there is no such file.

  Raises:
    OSError: the store cannot be used, see `store_errors`.
  """
  try:
    if not is_remote(name):
      found = os.stat(name)
      return found.st_ino, found.st_size, found.st_mtime_ns
    with read_errors(name):
      system, file = file_system(name)
      info = system.info(file)
  except (FileNotFoundError, NotADirectoryError):
    return None
  return tuple(str(info.get(key)) for key in _VERSION_KEYS)


def create(name: str | os.PathLike[str]) -> bool:
  """Create an empty file, unless there is one.

  Of several processes that try, one succeeds, on any machine.

  Returns:
    Whether it was created.

  Raises:
    OSError: the folder or the store cannot be written, see `store_errors`.
  """
  try:
    if not is_remote(name):
      os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
      return True
    with store_errors(name):
      system, file = file_system(name)
      try:
        system.pipe_file(file, b"", mode="create")
      except FileExistsError:
        return False
  except FileExistsError:
    return False
  return True


def size(name: str | os.PathLike[str]) -> int:
  """Bytes of a file.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: the store cannot be used, see `store_errors`.
  """
  if not is_remote(name):
    return os.stat(name).st_size
  with read_errors(name):
    system, file = file_system(name)
    return system.info(file)["size"]


def sizes(name: str | os.PathLike[str]) -> dict[str, int]:
  """Names and sizes of the files in a folder of a store, from one listing.

  Args:
    name: of the folder; of a file, the result has that file.

  Raises:
    FileNotFoundError: there is nothing, or no such bucket.
    OSError: the store cannot be used, see `store_errors`.
  """
  with read_errors(name):
    system, root = file_system(name)
    entries = system.ls(root, detail=True)
    if not entries:
      raise FileNotFoundError
  return {
    entry["name"].rpartition("/")[2]: entry["size"]
    for entry in entries
    if entry["type"] == "file"
  }


def read_ranges(
  name: str | os.PathLike[str], ranges: Sequence[tuple[int, int]]
) -> list[bytes]:
  """Read parts of a file, and nothing else of one of a store.

  Args:
    name: of the file.
    ranges: first byte and the byte after the last, of each part.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read, see `store_errors`.
  """
  if not is_remote(name):
    with open(name, "rb") as opened:
      return [_read_at(opened, *each) for each in ranges]
  starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
  with read_errors(name):
    system, file = file_system(name)
    return system.cat_ranges(
      [file] * len(ranges), starts, ends, on_error="raise"
    )


def _read_at(file: io.BufferedReader, start: int, end: int) -> bytes:
  file.seek(start)
  return file.read(end - start)


def read_bytes(name: str | os.PathLike[str], max_bytes: int) -> bytes:
  """Read a file of a store, at most so many bytes.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read, see `store_errors`.
  """
  base = os.fspath(name).rpartition("/")[2]
  size = sizes(name).get(base)
  if size is None:
    raise OSError(errno.EISDIR, "expected a file, found a folder", str(name))
  size = min(size, max_bytes)
  return read_ranges(name, [(0, size)])[0] if size else b""


def read_regular(name: str | os.PathLike[str], max_bytes: int) -> bytes:
  """The bytes of a file here or in a store, see `untrusted.read_regular`."""
  if is_remote(name):
    return read_bytes(path(name), max_bytes + 1)
  return untrusted.read_regular(name, max_bytes)


def sha256(name: str | os.PathLike[str]) -> str:
  """The sha256 of a file, see `open_file`."""
  with open_file(name) as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def open_file(name: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
  """Open a file for reading at random places; closed with the block.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read, see `store_errors`.
  """
  if not is_remote(name):
    with open(name, "rb") as opened:
      yield opened
    return
  with read_errors(name):
    system, file = file_system(name)
    with system.open(file, "rb") as opened:
      yield opened


def upload(source: pathlib.Path, name: str | os.PathLike[str]) -> None:
  """Copy a local file to a store, where it appears when it is complete.

  Raises:
    OSError: the store cannot be written, see `store_errors`.
  """
  with store_errors(name):
    system, path_in_store = file_system(name)
    system.put_file(str(source), path_in_store)


def upload_folder(
  source: pathlib.Path, name: str | os.PathLike[str], last: str = ""
) -> None:
  """Copy the files of a local folder to a store, see `upload`.

  Args:
    source: the folder, with all that is below it but hidden files.
    name: of the folder in the store.
    last: the file that is copied after all others, since readers take it for a
      sign that they are there.
  """
  found = [
    p.relative_to(source)
    for p in source.rglob("*")
    if p.is_file() and not p.name.startswith(".")
  ]
  for file in sorted(found, key=lambda p: (p.as_posix() == last, p)):
    upload(source / file, f"{os.fspath(name).rstrip('/')}/{file.as_posix()}")


@contextlib.contextmanager
def spool() -> Iterator[pathlib.Path]:
  """A temporary local folder, for what is uploaded or was downloaded."""
  with tempfile.TemporaryDirectory(prefix="ovi_jax-") as folder:
    yield pathlib.Path(folder)


@contextlib.contextmanager
def local_copy(name: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A local path of a file: itself, or a temporary copy of the same name.

  Raises:
    FileNotFoundError: there is no such file in the store.
    OSError: it cannot be read, see `store_errors`.
  """
  if not is_remote(name):
    yield pathlib.Path(name)
    return
  with spool() as folder:
    # Readers go by the suffix.
    copy = folder / os.fspath(name).rpartition("/")[2]
    with read_errors(name):
      system, file = file_system(name)
      system.get_file(file, str(copy))
    yield copy


def write_text(name: epath.Path, text: str) -> None:
  """Write a file that is complete under its name, or absent."""
  from ovi_jax import files  # which imports this module

  with files.atomic_path(name) as temporary:
    temporary.write_text(text)


def read_json(
  name: str | os.PathLike[str],
  *,
  max_bytes: int = untrusted.MAX_JSON_BYTES,
  finite: bool = True,
) -> Any:
  """Read a JSON file of unknown origin, see `untrusted.read_json`."""
  if not is_remote(name):
    return untrusted.read_json(name, max_bytes=max_bytes, finite=finite)
  data = read_bytes(name, max_bytes + 1)
  return untrusted.parse_json(data, max_bytes=max_bytes, finite=finite)


def _driver_errors(name: str | os.PathLike[str]) -> tuple[type[Exception], ...]:
  """Exceptions of a path's driver."""
  if os.fspath(name).startswith("gs://"):
    import aiohttp
    import gcsfs.retry
    import google.auth.exceptions

    return (
      OSError,
      aiohttp.ClientError,
      gcsfs.retry.HttpError,
      google.auth.exceptions.GoogleAuthError,
    )
  if os.fspath(name).startswith("s3://"):
    import botocore.exceptions  # pyright: ignore[reportMissingImports]

    return (
      OSError,
      botocore.exceptions.BotoCoreError,
      botocore.exceptions.ClientError,
    )
  return (OSError,)
