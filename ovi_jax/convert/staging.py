"""Write a directory as a whole: new files beside the old ones, then renames.

One process at a time: the lock is the kernel's and ends with its process.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
from collections.abc import Iterable
from collections.abc import Iterator

from ovi_jax import untrusted

_STAGING = ".converting"
_LOCK = ".converting.lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_folder(out: pathlib.Path) -> None:
  """ValueError if a file stands where `--out` or a folder above it must be."""
  above = next(p for p in (out, *out.parents) if p.exists())
  if not above.is_dir():
    is_out = "--out" if above == out else f"--out={out}"
    kind = untrusted.irregular(above) or "a file"
    raise ValueError(f"{is_out}: expected a folder, {above} is {kind}")


@contextlib.contextmanager
def staged(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """An empty directory below `out`, which goes at the end; see `move`.

  Args:
    out: directory to write; made if it is not there, and removed if it is then
      still empty.

  Raises:
    ValueError: another process writes to `out`, or it is a file.
    OSError: nothing can be written; names `out`.
  """
  check_folder(out)
  absent = [p for p in (out, *out.parents) if not p.exists()]
  out.mkdir(parents=True, exist_ok=True)
  try:
    with _alone(out):
      folder = out / _STAGING
      shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
      folder.mkdir()
      try:
        yield folder
      finally:
        shutil.rmtree(folder, ignore_errors=True)
  except OSError as error:
    if str(error.filename).startswith(str(out / _STAGING)):
      raise OSError(error.errno, error.strerror, str(out)) from error
    if error.errno in _NO_ROOM and error.filename is None:
      what = f"{error.strerror}; make room or write elsewhere"
      raise OSError(error.errno, what, str(out)) from error
    raise
  finally:
    for path in absent:
      with contextlib.suppress(OSError):
        path.rmdir()


def move(
  folder: pathlib.Path,
  out: pathlib.Path,
  last: str = "",
  stale: Iterable[str] = (),
) -> None:
  """Put new files in the place of old ones: renames alone, in a moment.

  Args:
    folder: of `staged`.
    out: directory to write.
    last: name of the file that is moved after all others.
    stale: names of files that are removed unless there are new ones.
  """
  files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
  names = sorted(map(str, files), key=lambda name: (name == last, name))
  for name in names:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    os.replace(folder / name, out / name)
  for name in set(stale) - set(names):
    (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(out: pathlib.Path) -> Iterator[None]:
  """Keep other processes out; ValueError if one is there."""
  path = out / _LOCK
  with path.open("w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      is_held = path.exists() and os.path.samestat(
        os.fstat(file.fileno()), path.stat()
      )
    except BlockingIOError:
      is_held = False
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      is_held = True  # this file system has no locks
    if not is_held:
      raise ValueError(
        f"another process is writing to {out}; wait for it to end, or use"
        " another --out"
      )
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
