"""A command that is killed at random moments, again and again."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time
from collections.abc import Iterator

from tests.curation import harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
LONGEST = 120.0  # seconds that anything waited for may take


@contextlib.contextmanager
def started(words: list[str]) -> Iterator[subprocess.Popen]:
  """The command in a session of its own; nothing of it is left after."""
  process = subprocess.Popen(
    words,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )
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
) -> set[int]:
  """Kill a command so often, then let it end, and compare.

  Args:
    words: of the command.
    out: where it writes.
    wanted: what an undisturbed run left there.
    kills: every fifth is of a worker, which the run survives.

  Returns:
    How many files there were at the kills.
  """
  moments = random.Random(kills)
  found = set()
  for number in range(kills):
    with started(words) as process:
      # By files, not by time: most of that is the start, on a busy machine.
      until = written(out) + moments.randrange(1, 15)
      while process.poll() is None and written(out) < until:
        time.sleep(0.001)
      time.sleep(moments.uniform(0, 0.05))
      victim = process.pid
      workers = members(process.pid) - {process.pid}
      if number % 5 == 4 and workers:
        victim = max(workers)
      with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
      if victim == process.pid:
        assert process.wait() in (-signal.SIGKILL, 0)
      else:
        said, _ = process.communicate(timeout=LONGEST)
        assert process.returncode == 0, said
      wait(lambda: not members(process.pid), "the end of the workers")
    found.add(len(harness.contents(out)) if out.exists() else 0)
    if harness.contents(out) == wanted:
      # All was done: begin anew, for the sake of the kills that are left.
      for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
  code, said = run(words)
  assert code == 0, said
  assert harness.contents(out) == wanted
  return found
