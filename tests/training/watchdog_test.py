"""Time limits of steps."""

import signal
import subprocess
import sys
import threading

import pytest

from ovi_jax.training import watchdog

# The C library's `pause`, called with the interpreter's lock.
BLOCKED = """
import ctypes
from ovi_jax.training import watchdog
watchdog._GRACE = 1.0
with watchdog.Watchdog(1.0) as dog:
  dog.begin(3)
  ctypes.PyDLL(None).pause()
"""


def report(process, step, phase):
  return {
    "process": process,
    "host": f"host-{process}",
    "step": step,
    "phase": phase,
  }


def test_the_processes_that_are_behind_are_named():
  found = [
    report(0, 5, watchdog.DEVICES),
    report(1, 4, "waiting for data"),
    None,
  ]
  assert watchdog.summary(found) == (
    "timed out; no report from process 2; behind: process 1 (host-1) after"
    " step 4, waiting for data"
  )
  waiting = [report(number, 5, watchdog.DEVICES) for number in range(2)]
  assert "all processes wait for their devices" in watchdog.summary(waiting)


@pytest.fixture
def expired(monkeypatch):
  """Set instead of ending the process."""
  event = threading.Event()

  def expire(self):
    self._expired.clear()
    event.set()

  monkeypatch.setattr(watchdog.Watchdog, "_expire", expire)
  return event


def test_a_step_over_the_limit_expires(expired):
  with watchdog.Watchdog(0.05) as dog:
    dog.begin(3)
    assert expired.wait(60)


def test_unlimited_blocks_and_no_limit_do_not_expire(expired):
  with watchdog.Watchdog(0.0) as dog:
    dog.begin(0)
    assert not dog._thread.is_alive()
  with watchdog.Watchdog(3600) as dog:
    dog.begin(0)
    with dog.unlimited("evaluating"):
      assert dog._began is None
    assert dog._began is not None
  assert not expired.is_set()


def test_a_blocked_interpreter_ends_with_stacks_and_a_code_of_its_own():
  ended = subprocess.run(
    [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False
  )
  # 142 for a shell: restart policies take 1 for an error in the input.
  assert ended.returncode == -signal.SIGALRM, ended.stderr
  assert 'File "<string>", line 7' in ended.stderr
  assert "in _watch" in ended.stderr  # the stacks of all threads


def test_a_watchdog_that_ends_leaves_no_timer(expired):
  with watchdog.Watchdog(3600) as dog:
    dog.begin(0)
  assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
  assert not expired.is_set()
