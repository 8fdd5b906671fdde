"""A time limit on training steps, for collectives and hosts that hang.

If a step takes longer than the limit, every process logs where it is, prints
the stacks of its threads to stderr and exits with `TIMED_OUT`. Before that the
processes exchange where they are through JAX's coordination service, which
needs no device, and name the processes that are behind. Compilation, evaluation
and checkpoints are not limited.

The limit is watched by a thread. If the interpreter itself is blocked (a C
extension that holds the lock), SIGALRM ends the process a little later:
faulthandler, which needs no interpreter, prints the stacks, and the exit code
is that of the signal (142 in a shell or a container), so restart policies do
not take it for an error in the input, whose code is 1.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
from orbax import checkpoint as ocp

from ovi_jax import console

TIMED_OUT = 76  # exit code of a step that took longer than the limit
DEVICES = "waiting for the devices"
_GRACE = 10.0  # seconds in which processes exchange where they are
_LEAVING = 0.5  # seconds that process 0, the coordinator, exits later
_POLL = 1.0
_KEY = "ovi_jax/timed_out"
_STDERR = 2


class Watchdog:
  """Watches the steps of this process; use it in a `with` block."""

  def __init__(self, seconds: float):
    """`seconds`: time limit of a step; 0 = none."""
    self._seconds = seconds
    self._began: float | None = None  # of the step; `None` while not limited
    self._step, self._phase = 0, "starting"
    self._stop = threading.Event()
    self._expired = threading.Event()
    self._index, self._count = jax.process_index(), jax.process_count()
    self._thread = threading.Thread(
      target=self._watch, name="step_watchdog", daemon=True
    )

  def __enter__(self) -> "Watchdog":
    if self._seconds:
      faulthandler.register(signal.SIGALRM, file=_STDERR, chain=True)
      self._set_alarm()
      self._thread.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self._began = None
    self._stop.set()
    if not self._seconds:
      return
    if self._expired.is_set():
      # Another process's exit raised an error here; the thread ends this one.
      threading.Event().wait()
    self._thread.join()
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.unregister(signal.SIGALRM)

  def begin(self, step: int) -> None:
    """Start the clock of a step.

    Args:
      step: number of finished steps.
    """
    self._step, self._began = step, time.monotonic()

  def at(self, phase: str) -> None:
    """Note what the step does now."""
    self._phase = phase

  @contextlib.contextmanager
  def unlimited(self, phase: str) -> Iterator[None]:
    """Stop the clock during a block."""
    began, self._began, self._phase = self._began, None, phase
    try:
      yield
    finally:
      self._began = None if began is None else time.monotonic()

  def _watch(self) -> None:
    poll = min(_POLL, self._seconds / 4)
    while not self._stop.wait(poll):
      self._set_alarm()
      began = self._began
      if began is not None and time.monotonic() - began > self._seconds:
        self._expired.set()
        self._expire()

  def _set_alarm(self) -> None:
    """Postpone SIGALRM, which comes if a blocked interpreter does not."""
    signal.setitimer(signal.ITIMER_REAL, self._seconds + _GRACE)

  def _expire(self) -> None:
    """Report, print the stacks and exit."""
    mine = {
      "process": self._index,
      "host": socket.gethostname(),
      "step": self._step,
      "phase": self._phase,
    }
    console.error(
      f"step {self._step + 1} took longer than step_timeout_seconds"
      f" {self._seconds:g}; {_place(mine)}; stacks of all threads:"
    )
    faulthandler.dump_traceback(file=_STDERR, all_threads=True)
    found: list[dict[str, Any] | None] = [mine]
    if self._count > 1:
      found = _exchange(mine, self._count)
    console.error(summary(found))
    console.error(f"exit code {TIMED_OUT}; the same command resumes the run")
    if self._count > 1 and self._index == 0:
      time.sleep(_LEAVING)
    os._exit(TIMED_OUT)


def summary(found: Sequence[dict[str, Any] | None]) -> str:
  """The processes that are behind, in words.

  Args:
    found: of each process its index, host, finished steps and phase; `None`
      without a report.
  """
  reports = [report for report in found if report is not None]
  missing = [str(i) for i, report in enumerate(found) if report is None]
  least = min(report["step"] for report in reports)
  behind = [
    report
    for report in reports
    if report["step"] == least and report["phase"] != DEVICES
  ]
  parts = []
  if missing:
    parts.append(f"no report from process {', '.join(missing)}")
  if behind:
    parts.append(f"behind: {'; '.join(_place(r) for r in behind[:8])}")
  if not parts:
    parts.append("all processes wait for their devices: a device hangs")
  return "timed out; " + "; ".join(parts)


def _place(report: dict[str, Any]) -> str:
  return (
    f"process {report['process']} ({report['host']}) after step"
    f" {report['step']}, {report['phase']}"
  )


def _exchange(mine: dict[str, Any], count: int) -> list[dict[str, Any] | None]:
  """The reports of all processes; `None` for those without one in time."""
  client: Any = ocp.multihost.get_jax_distributed_client()
  until, found = time.monotonic() + _GRACE, []
  # An error of the service means the same as no report.
  with contextlib.suppress(RuntimeError):
    client.key_value_set(f"{_KEY}/{mine['process']}", json.dumps(mine))
  for number in range(count):
    left = max(0.0, until - time.monotonic())
    try:
      text = client.blocking_key_value_get(
        f"{_KEY}/{number}", int(1000 * left) + 1
      )
      found.append(json.loads(text))
    except RuntimeError:
      found.append(None)
  return found
