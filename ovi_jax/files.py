"""Writing files so that what stands under a name is always whole."""

import contextlib
import errno
import glob
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """A file beside `path` that takes its place if nothing is raised.

  What a killed process left of an earlier try is cleared away.

  Raises:
    OSError: the disk is full, or the folder is not writable.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  for left in left_over(path):
    left.unlink(missing_ok=True)
  temporary = temporary_name(path)
  try:
    yield temporary
    with open(temporary, "rb+") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise OSError(
      error.errno,
      "no space left to write it; free some, or choose another folder",
      str(path),
    ) from error
  finally:
    temporary.unlink(missing_ok=True)


def link(source: pathlib.Path, target: pathlib.Path) -> None:
  """The same file in another place, or a copy of it."""
  target.unlink(missing_ok=True)
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
  """What this process calls a file that is not yet whole."""
  return path.with_name(f".{path.name}.{os.getpid()}.part")


def left_over(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Temporary files of processes that are no more."""
  for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
    if not _is_running(left.name.split(".")[-2]):
      yield left


def _is_running(process: str) -> bool:
  """Whether a process of this number runs on this machine."""
  try:
    os.kill(int(process), 0)
  except (ProcessLookupError, ValueError, OverflowError):
    return False
  except PermissionError:
    return True
  return True
