"""Logs of a run: one JSON object a line, and TensorBoard event files.

Both hold the same scalars under the same names (`train/loss`). A run that is
restarted from an earlier step logs those steps again; readers take the last.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from typing import Protocol

import tensorboardX

FILE = "metrics.jsonl"
EVENTS = "tensorboard"


class Writer(Protocol):
  """Takes the scalars of a run."""

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None: ...
  def flush(self) -> None: ...


class Logs:
  """Writes scalars; use it in a `with` block."""

  def __init__(self, directory: str | os.PathLike[str]):
    """Open the files of a run, to add to them.

    Raises:
      OSError: the directory cannot be made or written.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    self._path = str(path)
    _end_with_a_line(path / FILE)
    self._lines = open(path / FILE, "a", buffering=1)  # noqa: SIM115
    self._events = tensorboardX.SummaryWriter(str(path / EVENTS))

  def __enter__(self) -> "Logs":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    try:
      self._lines.close()
      self._events.close()
    except OSError:
      # What ended the block says more.
      if kind is None:
        raise

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    """Write the values of a step; those that are `None` are left out."""
    kept = {n: float(v) for n, v in values.items() if v is not None}
    # JSON knows no NaN; a reader should see that there was one.
    plain = {n: v if math.isfinite(v) else str(v) for n, v in kept.items()}
    line = {"step": step, "time": round(time.time(), 3)} | plain
    try:
      self._lines.write(json.dumps(line) + "\n")
      for name, value in kept.items():
        self._events.add_scalar(name, value, step)
    except OSError as error:
      # The system does not say where.
      raise OSError(error.errno, error.strerror, self._path) from error

  def flush(self) -> None:
    """Bring everything to the disk."""
    self._lines.flush()
    self._events.flush()


class Silent:
  """The logs of a process that writes none: the first of several does."""

  def __enter__(self) -> "Silent":
    return self

  def __exit__(self, *_: Any) -> None:
    pass

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    pass

  def flush(self) -> None:
    pass


def read(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """What a run's log says of each step, sorted; of each name the last value.

  A last line that a kill cut short is left out.
  """
  latest: dict[int, dict[str, Any]] = {}
  for line in (pathlib.Path(directory) / FILE).read_text().splitlines():
    try:
      values = json.loads(line)
    except json.JSONDecodeError:
      continue
    latest.setdefault(values["step"], {}).update(values)
  return [latest[step] for step in sorted(latest)]


def _end_with_a_line(path: pathlib.Path) -> None:
  """Finish a line that a kill cut short, so the next is one of its own."""
  if path.exists() and path.read_bytes()[-1:] not in (b"", b"\n"):
    with open(path, "a") as file:
      file.write("\n")
