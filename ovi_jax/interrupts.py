"""Ctrl-C ends a command, at the first try and in one line.

Python raises KeyboardInterrupt wherever the main thread is. In a callback of
the garbage collector (JAX has one), a finalizer or a callback of C code the
exception is dropped and the command would go on: it is raised again a moment
later. While modules are imported nothing else has been set up, so this module
imports the standard library alone.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import types
from typing import Any

_SECONDS = 0.05  # after which the main thread has left the callback


def setup() -> None:
  """Install the hooks of the process, once."""
  if sys.excepthook is not _last_words:
    sys.excepthook = _last_words
  if not isinstance(sys.unraisablehook, _Unraisable):
    sys.unraisablehook = _Unraisable(sys.unraisablehook)


def command_name() -> str:
  """The running command, as errors name it, such as `train` or `ovi-train`."""
  name = sys.argv[0]
  if name == "-m":  # which Python replaces when it has imported the packages
    module = sys.orig_argv[sys.orig_argv.index(name) + 1]
    return module.removesuffix(".__main__").rpartition(".")[2]
  path = pathlib.Path(name)
  # python -m PACKAGE
  return path.parent.name if path.stem == "__main__" else path.stem


class _Unraisable:
  """Raises a dropped KeyboardInterrupt again; passes other errors on."""

  def __init__(self, before: Any):
    self._before = before

  def __call__(self, unraisable: Any, /) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      self._before(unraisable)
      return
    # A signal, which ends what the main thread waits for, too.
    main, number = threading.main_thread().ident, signal.SIGINT
    timer = threading.Timer(_SECONDS, signal.pthread_kill, (main, number))
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # Python is about to end
      timer.start()


def _last_words(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """One line for Ctrl-C where the command has none of its own."""
  if not _is_interrupt(error):
    sys.__excepthook__(kind, error, trace)
    return
  line = f"{command_name()}: interrupted; the same command can be run again\n"
  with contextlib.suppress(OSError):
    os.write(2, line.encode("ascii", "backslashreplace"))


def _is_interrupt(error: BaseException | None) -> bool:
  """Whether it is Ctrl-C, or what an import or C code has made of it."""
  while isinstance(error, ImportError | SystemError):
    error = error.__cause__ or error.__context__
  return isinstance(error, KeyboardInterrupt)
