"""Commands that are killed at random moments and run again."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator

from tests.lib.curation import harness

ROOT = pathlib.Path(__file__).resolve().parents[3]
LONGEST = 120.0  # seconds that anything waited for may take


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen]:
  """The command in a session of its own; nothing of it is left after."""
  # A shell's background jobs ignore SIGINT, and so does what they start, unless
  # it is handled here.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    words,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
  signal.signal(signal.SIGINT, before)
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def members(session: int) -> set[int]:
  """The processes of a session that run."""
  found = set()
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      fields = path.read_text().rpartition(")")[2].split()
      if int(fields[3]) == session and fields[0] != "Z":
        found.add(int(path.parent.name))
  return found


def wait(condition, what: str) -> None:
  until = time.monotonic() + LONGEST
  while not condition():
    assert time.monotonic() < until, f"{what} did not happen"
    time.sleep(0.01)


def run(words: list[str]) -> tuple[int, str]:
  done = subprocess.run(
    words, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST
  )
  return done.returncode, done.stdout + done.stderr


def written(out: pathlib.Path) -> int:
  """Files that stand, whole or not."""
  return sum(len(names) for *_, names in os.walk(out))


def killed(
  words: list[str],
  out: pathlib.Path,
  wanted: dict[str, bytes],
  kills: int,
) -> list[int]:
  """Kill a command so often, then let it end, and compare.

  The moments are spread over the run, by the files that it has written: one in
  each of so many parts, at random within it.

  Args:
    words: of the command.
    out: where it writes.
    wanted: what an undisturbed run left there.
    kills: of the command, every third of a worker, which the run survives.

  Returns:
    How many files there were at each kill.
  """
  moments = random.Random(kills)
  part = len(wanted) / kills
  found = []
  for number in range(kills):
    until = int(part * (number + moments.random()))
    with started(words) as process:
      while process.poll() is None and written(out) < until:
        time.sleep(0.001)
      time.sleep(moments.uniform(0, 0.05))
      if process.poll() is not None:
        continue  # It completed before the kill: the last part is short.
      found.append(written(out))
      victim = process.pid
      workers = members(process.pid) - {process.pid}
      if number % 3 == 2 and workers:
        victim = max(workers)
      with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
      if victim == process.pid:
        assert process.wait() in (-signal.SIGKILL, 0)
      else:
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.wait()
      wait(lambda: not members(process.pid), "the end of the workers")
  assert len(found) >= 0.8 * kills, f"only {len(found)} of {kills} kills met it"
  code, output = run(words)
  assert code == 0, output
  assert harness.contents(out) == wanted
  return found
