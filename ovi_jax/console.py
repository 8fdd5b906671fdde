"""Console output: log lines, errors and progress bars that cannot end a run.

Modules log with `logging.getLogger(__name__)`. Commands print messages of the
loggers below `ovi_jax`, and of the module that was started (`python -m`), at
INFO and above to stdout, without a prefix; libraries log through loggers of
their own. From Python nothing is printed unless the caller configures
`logging`.

What is printed often holds text from files: prompts, names, error messages of
libraries. Control characters in it are printed escaped, characters that the
console's encoding lacks as `\\u011b`. Output that nobody reads any more (a
closed pipe, a full disk, no stdout at all) is dropped and the run goes on.
"""

import contextlib
import io
import logging
import os
import select
import sys
import time
from collections.abc import Iterable
from typing import Any
from typing import TextIO

import tqdm
from absl import logging as absl_logging

from ovi_jax import untrusted

LOGGERS = logging.getLogger("ovi_jax"), logging.getLogger("__main__")
SECONDS_A_LINE = 30  # between lines of progress where bars cannot be drawn
_ESCAPE = "backslashreplace"


def setup() -> None:
  """Make the process's stdout and stderr safe and print the log, once.

  Streams that somebody else has put in their place (a notebook, a test) stay.
  """
  for descriptor in (1, 2):
    try:
      os.fstat(descriptor)
    except OSError:  # `>&-`: no file that is opened later may take its number
      _drop(descriptor)
  if sys.stdout is sys.__stdout__:
    sys.stdout = _Console(1, sys.stdout, "\n\t")
  if sys.stderr is sys.__stderr__:
    # tqdm goes back to the start of its line.
    sys.stderr = _Console(2, sys.stderr, "\n\t\r")
    absl_logging.get_absl_handler().python_handler.setStream(sys.stderr)
  for logger in LOGGERS:
    if not any(isinstance(x, _LogHandler) for x in logger.handlers):
      logger.addHandler(_LogHandler())
      logger.setLevel(logging.INFO)
      logger.propagate = False  # absl prints what reaches the root logger


class _LogHandler(logging.Handler):
  """Prints messages as lines on stdout."""

  def emit(self, record: logging.LogRecord) -> None:
    log(record.getMessage())


def log(line: str) -> None:
  """Print a line for the user, whatever stdout is.

  Args:
    line: it may hold line ends; other control characters are escaped.
  """
  text = untrusted.escape(line, keep="\n\t")
  # Bars on a terminal are drawn again below the line.
  below = contextlib.nullcontext
  if draws_bars():
    below = tqdm.tqdm.external_write_mode
  # ValueError: a closed stream.
  with contextlib.suppress(OSError, ValueError), below():
    try:
      print(text, flush=True)
    except UnicodeEncodeError:
      print(text.encode("ascii", _ESCAPE).decode(), flush=True)


def error(message: str) -> None:
  """Write the last words of a command to stderr, in one piece.

  `sys.exit` with a message writes through buffers that threads of libraries
  share, which may be telling of the same failure at that moment.

  Args:
    message: it may hold line ends; other control characters are escaped.
  """
  stream = sys.stderr
  if stream is None:
    return
  text = untrusted.escape(message, keep="\n\t") + "\n"
  with contextlib.suppress(OSError, ValueError):
    stream.flush()
    encoding = stream.encoding or "utf-8"
    os.write(stream.fileno(), text.encode(encoding, _ESCAPE))


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
  """A progress bar; on a stream that is no terminal, a line now and then.

  Args:
    iterable: as of `tqdm.tqdm`.
    **options: as of `tqdm.tqdm`.

  Returns:
    A `tqdm.tqdm`.
  """
  if draws_bars():
    return tqdm.tqdm(iterable, dynamic_ncols=True, **options)
  return tqdm.tqdm(iterable, file=_Lines(), **options)


def draws_bars() -> bool:
  """Whether stderr is a terminal that can rewrite a line."""
  stream = sys.stderr
  if stream is None or stream.closed or os.environ.get("TERM") == "dumb":
    return False
  return stream.isatty()


class _Console(io.TextIOWrapper):
  """Text to a file descriptor: escaped, and dropped where it cannot go."""

  def __init__(self, descriptor: int, replaces: TextIO | None, keep: str):
    if replaces is None:  # its number may be another file's by now
      descriptor = os.open(os.devnull, os.O_WRONLY)
    else:
      with contextlib.suppress(OSError, ValueError):
        replaces.flush()
    super().__init__(
      io.BufferedWriter(_Descriptor(descriptor, "wb", closefd=False)),
      encoding="utf-8" if replaces is None else replaces.encoding,
      errors=_ESCAPE,
      line_buffering=True,
    )
    self._keep = keep

  def write(self, s: str, /) -> int:
    super().write(untrusted.escape(s, self._keep))
    return len(s)


class _Descriptor(io.FileIO):
  """A file descriptor that becomes the null device on its first error."""

  def write(self, b: Any, /) -> int:
    try:
      while (count := super().write(b)) is None:  # non-blocking, and full
        select.select([], [self], [])
      return count
    except OSError:
      _drop(self.fileno())
      return memoryview(b).nbytes


def _drop(descriptor: int) -> None:
  """Make a file descriptor the null device's."""
  null = os.open(os.devnull, os.O_WRONLY)
  if null != descriptor:
    os.dup2(null, descriptor)
    os.close(null)


class _Lines:
  """Writes tqdm's progress as separate lines, at a limited rate."""

  def __init__(self):
    self._last = time.monotonic()

  def write(self, text: str) -> None:
    line, now = text.strip(), time.monotonic()
    if line and now - self._last >= SECONDS_A_LINE:
      self._last = now
      with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)

  def flush(self) -> None:
    """Nothing is held back."""
