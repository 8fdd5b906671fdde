"""Goodput: how the time of a run is spent.

Every second since a `Timer` was made belongs to one category. The command makes
it after its imports, whose seconds are not counted.

  init        until the loop begins: connecting, data, restoring
  compile     compiling the step
  data_wait   waiting for the next batch
  checkpoint  copying the state, and waiting for an earlier save
  evaluation  held-out loss and samples
  lost        training steps that were repeated after a restart
  train       everything else: the training steps

Goodput is the fraction of time in training steps. Seconds are totals over all
restarts of a run: each log line has them, and a restart begins with those of
the last line. Time between restarts, and between the last log line and a kill,
is not counted.
"""

import contextlib
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

INIT, COMPILE, DATA_WAIT = "init", "compile", "data_wait"
CHECKPOINT, EVALUATION = "checkpoint", "evaluation"
LOST, TRAIN = "lost", "train"
CATEGORIES = (INIT, COMPILE, DATA_WAIT, CHECKPOINT, EVALUATION, LOST, TRAIN)
_PREFIX = "goodput"


def _total(line: Mapping[str, Any]) -> float:
  """All seconds that a log line counts."""
  return sum(line.get(f"{_PREFIX}/{name}", 0.0) for name in CATEGORIES)


class Timer:
  """Measures the categories of one process."""

  def __init__(self):
    self._began = time.perf_counter()
    self._measured: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    # Of earlier restarts.
    self._before: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)

  @contextlib.contextmanager
  def measure(self, category: str) -> Iterator[None]:
    """Count the time of the block; blocks are not nested."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self._measured[category] += time.perf_counter() - began

  def loop_begins(self) -> None:
    """Count all time so far as `init`."""
    self._measured[INIT] = time.perf_counter() - self._began

  def resume(self, lines: Sequence[Mapping[str, Any]], step: int) -> None:
    """Continue the totals of earlier restarts.

    Args:
      lines: log lines of the run, sorted by step.
      step: step of the restored checkpoint; later steps count as lost.
    """
    known = [line for line in lines if f"{_PREFIX}/{TRAIN}" in line]
    if not known:
      return
    # Totals only grow; the clocks of hosts may differ.
    last = max(known, key=_total)
    for name in CATEGORIES:
      self._before[name] = float(last.get(f"{_PREFIX}/{name}", 0.0))
    if last["step"] <= step:
      return
    kept = [line for line in known if line["step"] <= step]
    saved = float(kept[-1][f"{_PREFIX}/{TRAIN}"]) if kept else 0.0
    repeated = max(0.0, self._before[TRAIN] - saved)
    self._before[TRAIN] -= repeated
    self._before[LOST] += repeated

  def seconds(self) -> dict[str, float]:
    """Seconds by category, over all starts of the run."""
    found = dict(self._measured)
    elapsed = time.perf_counter() - self._began
    found[TRAIN] = max(0.0, elapsed - sum(found.values()))
    return {name: found[name] + self._before[name] for name in CATEGORIES}

  def scalars(self) -> dict[str, float]:
    """Seconds by category, and the share of `train`, for a log line."""
    seconds = self.seconds()
    total = sum(seconds.values())
    found = {f"{_PREFIX}/{n}": round(s, 3) for n, s in seconds.items()}
    share = seconds[TRAIN] / total if total else 0.0
    return found | {f"{_PREFIX}/fraction": round(share, 4)}

  def line(self) -> str:
    """The totals in words, for the end of a start."""
    seconds = self.seconds()
    total = sum(seconds.values())
    shown = ", ".join(f"{n} {s:.1f}" for n, s in seconds.items())
    share = 100 * seconds[TRAIN] / total if total else 0.0
    return f"goodput {share:.1f}% of {total:.1f} s (seconds: {shown})"
