"""Formats exceptions as text that is the same on every machine."""

import pathlib
import re
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_LIBRARIES = ("site-packages", "dist-packages")
_STDLIB = pathlib.Path(sysconfig.get_path("stdlib")).name
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
# Random names: copies of remote files, temporary outputs.
_TEMPORARY = re.compile(
  re.escape(tempfile.gettempdir()) + r"/(ovi_jax-|tmp)[a-z0-9_]{8}\b"
)


def format_error(error: BaseException) -> str:
  """The traceback of an error and of its causes, without the caller's frame.

  Installation paths, memory addresses and names of temporary files are removed.
  """
  if error.__traceback__ is not None:
    error = error.with_traceback(error.__traceback__.tb_next)
  lines = list(_chain(error))
  return _TEMPORARY.sub("…", _ADDRESS.sub("0x…", "\n".join(lines)))


def _chain(error: BaseException) -> Iterator[str]:
  """Lines of an error: its cause first, then itself, then its group."""
  before = error.__cause__
  if before is None and not error.__suppress_context__:
    before = error.__context__
  if before is not None:
    yield from _chain(before)
    yield "raised from it:"
  # The first frame is the engine's call.
  for frame in traceback.extract_tb(error.__traceback__):
    yield f"{_relative_path(frame.filename)}:{frame.lineno} in {frame.name}"
    if frame.line:
      yield f"  {frame.line}"
  yield f"{type(error).__name__}: {error}"
  if isinstance(error, BaseExceptionGroup):
    for each in error.exceptions:
      yield "sub-exception:"
      yield from _chain(each)


def _relative_path(name: str) -> str:
  """A source path relative to its package root."""
  path = pathlib.Path(name)
  if path.is_relative_to(_ROOT) and not set(_LIBRARIES) & set(path.parts):
    return path.relative_to(_ROOT).as_posix()
  for folder in (*_LIBRARIES, _STDLIB):
    if folder in path.parts:
      return "/".join(path.parts[path.parts.index(folder) + 1 :])
  return path.name
