"""Files that are whole under their name or absent, and names of files.

`atomic_path` writes, on this machine or to an object store; `inside` resolves a
name that a file of unknown origin gives, so that only regular files of its own
folder are opened; `find` resolves a name that a person wrote.

A name is text in a table and bytes on a disk: UTF-8, although Python decodes it
by the locale, and with accents as characters of their own (NFD) where macOS
wrote it.
"""

import contextlib
import errno
import glob
import os
import pathlib
import re
import shutil
import stat
import sys
import unicodedata
from collections.abc import Callable
from collections.abc import Iterator

from ovi_jax import storage
from ovi_jax import untrusted

_TEMPORARY = re.compile(r"\..+\.(?P<process>\d{1,10})\.part")  # names of them


@contextlib.contextmanager
def atomic_path(
  path: storage.AnyPath,
  before_naming: Callable[[], storage.AnyPath | None] = lambda: None,
) -> Iterator[pathlib.Path]:
  """A local file that takes the place of `path` if nothing is raised.

  It is beside a local `path`, and what a killed process left of an earlier try
  is cleared away. For a `path` in an object store it is in the folder of
  temporary files, and is uploaded.

  Args:
    path: of the file.
    before_naming: called when the file is whole; may return the path that it
      gets instead, in the same folder.

  Raises:
    OSError: the disk is full, or the folder or the store is not writable.
  """
  if storage.is_remote(path):
    with storage.spool() as folder, _room(folder):
      temporary = folder / path.name
      yield temporary
      storage.upload(temporary, before_naming() or path)
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  for left in stale_temporaries(path):
    left.unlink(missing_ok=True)
  temporary = temporary_name(path)
  try:
    with _room(path):
      yield temporary
      with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
      os.replace(temporary, before_naming() or path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _room(path: pathlib.Path) -> Iterator[None]:
  """Say what a full disk means to the writer of a file."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
      raise
    raise OSError(
      error.errno,
      "no space left to write it; free some, or choose another folder",
      str(path),
    ) from error


def inside(folder: str | os.PathLike[str], name: str) -> storage.AnyPath:
  """Resolve a name from a list of unknown origin to a file of its folder.

  Args:
    folder: that the list belongs to; may itself be a link, or in an object
      store. What is in a store is not looked at.
    name: relative, with `/` between folders.

  Returns:
    The path of a regular file in the folder.

  Raises:
    ValueError: the name is absolute, has `..` or a NUL, leads outside through
      a link, or is not that of a regular file (a device, pipe or folder).
    OSError: there is no such file, or it cannot be read.
  """
  shown = untrusted.printable(name)
  parts = pathlib.PurePosixPath(name).parts
  if not parts or "\0" in name or "\\" in name or name.startswith("/"):
    raise ValueError(f"{shown}: expected a relative name of a file")
  if ".." in parts:
    raise ValueError(f"{shown}: expected a name without '..'")
  if storage.is_remote(folder):  # which has no links
    return storage.path(folder).joinpath(*parts)
  root = pathlib.Path(folder).resolve()
  path = pathlib.Path(folder, *parts)
  try:
    resolved = path.resolve(strict=True)
  except RuntimeError as error:  # links in a circle
    raise ValueError(f"{shown}: {error}") from error
  if not resolved.is_relative_to(root):
    raise ValueError(
      f"{shown}: leads outside {folder} through a link; copy the file there"
    )
  if not stat.S_ISREG(resolved.stat().st_mode):
    raise ValueError(f"{shown}: expected a regular file")
  return path


def find(path: pathlib.Path) -> pathlib.Path | None:
  """Find what a path names, whatever bytes the disk has for its text.

  Args:
    path: as a table or the user has it.

  Returns:
    The path of what exists, the given one if it does; `None` for nothing.

  Raises:
    OSError: a name is too long, or a folder may not be read.
  """
  if path.exists():
    return path
  if str(path).isascii():
    return None
  found = pathlib.Path(path.anchor)
  for part in path.parts[bool(path.anchor) :]:
    named = (found / name for name in _spellings(part))
    existing = next((each for each in named if each.exists()), None)
    if existing is None:
      return None
    found = existing
  return found


def with_home(name: str) -> str:
  """The path in a cell of a table or a line of a list, without `~`.

  Shells expand it on command lines alone.

  Args:
    name: as written; `~` counts as the whole of its first part only.
  """
  if name != "~" and not name.startswith(("~/", "~\\")):
    return name
  return os.path.expanduser("~") + name[1:]


def readings(name: str) -> list[str]:
  """The ways to read a path that somebody wrote, the literal one first.

  Args:
    name: as written, perhaps in quotation marks (Windows' "Copy as path") or
      with backslashes between its parts.
  """
  plain = with_home(unquoted(name))
  return list(dict.fromkeys([with_home(name), plain, plain.replace("\\", "/")]))


def listed(value: str, is_there: Callable[[str], bool]) -> list[str]:
  """The names in a flag, with commas between them, or in them.

  Args:
    value: of the flag.
    is_there: whether there is something of a name; only for names with commas.

  Returns:
    Names, without space around them; the longest that is there counts.
  """
  parts = value.split(",")
  names: list[str] = []
  while parts:
    ends = range(len(parts), 1, -1)
    end = next((n for n in ends if is_there(",".join(parts[:n]).strip())), 1)
    names.append(",".join(parts[:end]).strip())
    parts = parts[end:]
  return [name for name in names if name]


def unquoted(name: str) -> str:
  """A path that somebody wrote, without space and quotation marks around it.

  One mark alone is a part of the name, as in `'Twas the night.mp4`.
  """
  name = name.strip()
  for mark in ('"', "'"):
    if len(name) > 2 and name[0] == name[-1] == mark:
      return name[1:-1].strip()
  return name


def text_of(name: str) -> str:
  """The text of a name that the system gave, whatever the locale."""
  if sys.getfilesystemencoding() == "utf-8":
    return name
  try:
    return os.fsencode(name).decode("utf-8")
  except UnicodeError:
    return name


def _spellings(name: str) -> list[str]:
  """A name as Python has it for each way that a disk may spell its text."""
  text = text_of(name)
  forms = [text, *(unicodedata.normalize(f, text) for f in ("NFC", "NFD"))]
  encoded = (os.fsdecode(f.encode("utf-8", "surrogateescape")) for f in forms)
  return list(dict.fromkeys([name, *forms, *encoded]))


def regular_sizes(folder: pathlib.Path) -> dict[str, int]:
  """Names and sizes of the regular files in a folder; links are left out."""
  with os.scandir(folder) as entries:
    return {
      entry.name: entry.stat(follow_symlinks=False).st_size
      for entry in entries
      if entry.is_file(follow_symlinks=False)
    }


def link(source: pathlib.Path, target: pathlib.Path) -> None:
  """The same file in another place, or a copy of it."""
  target.unlink(missing_ok=True)
  try:
    # A relative link would lead to another file from there.
    os.link(source.resolve(), target)
  except OSError:
    shutil.copyfile(source, target)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
  """This process's name for a file that is not complete."""
  return path.with_name(f".{path.name}.{os.getpid()}.part")


def stale_temporaries(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Temporary files of processes that are no more."""
  for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
    if not _is_running(left.name.split(".")[-2]):
      yield left


def abandoned(folder: pathlib.Path) -> list[pathlib.Path]:
  """Temporary files in a folder, of processes that this machine does not run.

  They may be those of another machine that shares the disk.
  """
  return sorted(
    left
    for left in folder.glob(".*.part")
    if (match := _TEMPORARY.fullmatch(left.name))
    and not _is_running(match["process"])
    and left.is_file()
  )


def _is_running(process: str) -> bool:
  """Whether a process of this number runs on this machine."""
  try:
    os.kill(int(process), 0)
  except (ProcessLookupError, ValueError, OverflowError):
    return False
  except PermissionError:
    return True
  return True
