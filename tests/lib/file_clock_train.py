"""train.py whose saves and grace period follow a clock in a file.

`CLOCK` names the file, which has the time in seconds. What the program does
with it is noted beside the file, so that a test can wait for it: `.steps` has
how often the loop has read it, which is once a step, `.grace` the time that the
limit after SIGTERM was last compared with.
"""

import itertools
import os
import pathlib
import threading
import types
from typing import Any
from unittest import mock

from ovi_jax.commands import train
from ovi_jax.sharding import distributed
from ovi_jax.training import loop
from tests.lib import train_runs

CLOCK = "OVI_JAX_TEST_CLOCK"


class FileClock:
  """The clock of a run, as a test sets it.

  Attributes:
    path: of the file.
  """

  def __init__(self, path: pathlib.Path):
    self.path = path
    self.set(0)

  def set(self, seconds: float) -> None:
    _replace(self.path, seconds)

  def noted(self, kind: str) -> float:
    """The last note of a kind; -1 if there is none."""
    note = self.path.with_suffix(f".{kind}")
    return float(note.read_text()) if note.exists() else -1

  def start(
    self, words: list[str], log: pathlib.Path, **more: Any
  ) -> train_runs.Started:
    """Start a command of `train_runs.command` with this clock."""
    for note in self.path.parent.glob(f"{self.path.name}.*"):
      note.unlink()
    variables = {CLOCK: self.path, "PYTHONPATH": train_runs.ROOT}
    words = [words[0], __file__, *words[2:]]
    return train_runs.Started(words, log, **variables, **more)


def _replace(path: pathlib.Path, value: float) -> None:
  """Write a number to a file that always has one."""
  temporary = path.with_name(f"{path.name}.new")
  temporary.write_text(str(value))
  temporary.rename(path)


def main() -> None:
  path, count = pathlib.Path(os.environ[CLOCK]), itertools.count(1)

  def monotonic() -> float:
    _replace(path.with_suffix(".steps"), next(count))
    return float(path.read_text())

  class Timer(threading.Timer):
    """Calls its function when the time in the file has passed."""

    def run(self) -> None:
      end = float(path.read_text()) + self.interval
      while not self.finished.wait(0.01):
        if (now := float(path.read_text())) >= end:
          self.function(*self.args, **self.kwargs)
          return
        _replace(path.with_suffix(".grace"), now)

  clock = {"monotonic": monotonic, "perf_counter": loop.time.perf_counter}
  with (
    mock.patch.object(loop, "time", types.SimpleNamespace(**clock)),
    mock.patch.object(
      distributed,
      "threading",
      types.SimpleNamespace(Timer=Timer, Thread=threading.Thread),
    ),
  ):
    train.start()


if __name__ == "__main__":
  main()
