"""Paths of this machine and of object stores (`gs://`, `s3://`), alike.

A path is an `etils.epath.Path`. The drivers are fsspec's: gcsfs for Google
Cloud Storage, s3fs for S3. An object of a store is complete when it appears,
folders exist while something is in them, and there is no atomic rename.
"""

import contextlib
import importlib.util
import os
import pathlib
import re
import secrets
import typing
from collections.abc import Iterator
from typing import Any

import fsspec
import fsspec.config
from etils import epath

from ovi_jax import files
from ovi_jax import untrusted

# Scheme -> package of its driver, and the extra that installs it.
DRIVERS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
# Other processes write too: a driver must not answer from an earlier listing.
for _protocol in ("gs", "gcs", "s3"):
  fsspec.config.conf.setdefault(_protocol, {})["use_listings_cache"] = False


def path(name: str | os.PathLike[str]) -> epath.Path:
  """A path of this machine or of an object store, from its name.

  Args:
    name: such as `runs/one` or `gs://bucket/runs/one`.

  Raises:
    ValueError: the scheme is unknown or its driver is not installed, a slash is
      missing, or no bucket is named.
  """
  text = os.fspath(name)
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
      f"{shown}: {scheme}:// needs the package {package}; pip install"
      f" 'ovi_jax[{extra}]'"
    )
  return epath.Path(text)


def absolute(name: str | os.PathLike[str]) -> epath.Path:
  """A path that does not depend on the working directory, see `path`."""
  found = path(name)
  return found if is_remote(found) else epath.Path(os.path.abspath(found))


def is_remote(name: str | os.PathLike[str]) -> bool:
  """Whether a path is in an object store."""
  return "://" in os.fspath(name)


def file_system(name: epath.Path) -> tuple[Any, str]:
  """The fsspec file system of a path, and the path in it."""
  return fsspec.core.url_to_fs(os.fspath(name))


@contextlib.contextmanager
def store_errors(name: epath.Path) -> Iterator[None]:
  """Raise errors of a store and its driver as an OSError of one line.

  Raises:
    OSError: the bucket does not exist, access is denied, there are no
      credentials, or the store cannot be reached.
  """
  if not is_remote(name):
    yield
    return
  try:
    yield
  except _driver_errors(name) as error:
    said = untrusted.printable(str(error).strip().replace("\n", " "), 300)
    bucket = "/".join(os.fspath(name).split("/")[:3])
    raise OSError(
      f"{name}: cannot use {bucket} ({type(error).__name__}: {said}); check"
      " that the bucket exists and that these credentials may list, read, write"
      " and delete in it"
    ) from error


def check_access(name: epath.Path) -> None:
  """Check that a folder of a store can be listed, written and cleared.

  Raises:
    OSError: it cannot, see `store_errors`.
  """
  probe = name / f".access-{secrets.token_hex(8)}"
  with store_errors(name):
    probe.write_text("")
    list(name.iterdir())
    probe.unlink()


def write_text(name: epath.Path, text: str) -> None:
  """Write a file that is complete under its name, or absent."""
  if is_remote(name):
    name.write_text(text)
    return
  with files.atomic_path(pathlib.Path(name)) as temporary:
    temporary.write_text(text)


def read_json(name: epath.Path, *, finite: bool = True) -> Any:
  """Read a JSON file of unknown origin, see `untrusted.read_json`."""
  if not is_remote(name):
    return untrusted.read_json(name, finite=finite)
  with name.open("rb") as file:
    binary = typing.cast(typing.BinaryIO, file)
    data = untrusted.read_at_most(binary, untrusted.MAX_JSON_BYTES + 1)
  return untrusted.parse_json(data, finite=finite)


def _driver_errors(name: epath.Path) -> tuple[type[Exception], ...]:
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
  import botocore.exceptions  # pyright: ignore[reportMissingImports]

  return OSError, botocore.exceptions.BotoCoreError
