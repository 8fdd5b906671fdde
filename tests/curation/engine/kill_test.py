"""The command, killed at random moments, ends as one left alone."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.curation import harness

ROOT = pathlib.Path(__file__).resolve().parents[3]
LONGEST = 120.0  # seconds that anything waited for may take


def command(inputs: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
  return [
    sys.executable,
    "-m",
    "ovi_jax.curation",
    "--config=tests/curation/lines/config.py",
    f"--config.inputs=('{inputs}',)",
    f"--config.out={out}",
    "--config.workers=2",
    *more,
  ]


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


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[pathlib.Path, dict[str, bytes]]:
  """Inputs, and what an undisturbed run made of them."""
  folder = tmp_path_factory.mktemp("alone")
  inputs = harness.write_inputs(folder / "in", 8)
  code, said = run(command(inputs, folder / "out"))
  assert code == 0, said
  assert "write:" in said and "turn: 32 clips passed on" in said
  return inputs, harness.contents(folder / "out")


def written(out: pathlib.Path) -> int:
  """Files that stand, whole or not."""
  return sum(len(names) for *_, names in os.walk(out))


def killed(
  alone: tuple[pathlib.Path, dict[str, bytes]],
  out: pathlib.Path,
  kills: int,
) -> set[int]:
  """Kill the command so often; returns how many files there were then."""
  inputs, wanted = alone
  moments = random.Random(kills)
  found = set()
  for number in range(kills):
    with started(command(inputs, out)) as process:
      # By files, not by time: most of that is the start, on a busy machine.
      until = written(out) + moments.randrange(1, 15)
      while process.poll() is None and written(out) < until:
        time.sleep(0.001)
      time.sleep(moments.uniform(0, 0.05))
      victim = process.pid
      workers = members(process.pid) - {process.pid}
      if number % 5 == 4 and workers:
        victim = max(workers)  # which the run survives
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
  code, said = run(command(inputs, out))
  assert code == 0, said
  assert harness.contents(out) == wanted
  return found


def test_a_run_that_is_killed_ends_as_one_left_alone(alone, tmp_path):
  killed(alone, tmp_path / "out", 1)


@pytest.mark.slow
def test_a_run_that_is_killed_twenty_times_ends_as_one_left_alone(
  alone, tmp_path
):
  found = killed(alone, tmp_path / "out", 20)
  assert len(found) > 6, "the kills were all at the same places"


def test_no_worker_outlives_its_parent_though_it_hangs(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "0.txt").write_text("hang\n")
  seen = tmp_path / "seen"
  words = command(tmp_path / "in", tmp_path / "out")
  with started([*words, f"--config.stages.weigh.seen={seen}"]) as process:
    wait(seen.exists, "the clip that hangs")
    assert members(process.pid) > {process.pid}
    process.kill()
    wait(lambda: not members(process.pid), "the end of the workers")


@pytest.mark.parametrize(
  "number",
  [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM],
)
def test_a_run_stops_when_it_is_told(tmp_path, number):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "0.txt").write_text("one\nhang\n")
  seen, out = tmp_path / "seen", tmp_path / "out"
  words = command(tmp_path / "in", out, f"--config.stages.weigh.seen={seen}")
  with started(words) as process:
    wait(lambda: seen.exists() and "hang" in seen.read_text(), "the clip")
    if number == signal.SIGINT:
      os.killpg(process.pid, number)  # as a terminal does
    else:
      process.send_signal(number)
    said, _ = process.communicate(timeout=LONGEST)
    wait(lambda: not members(process.pid), "the end of the workers")
  assert "Traceback" not in said, said
  if number == signal.SIGTERM:
    assert process.returncode == 75
  else:
    assert process.returncode == 130
    assert "interrupted; the same command goes on" in said


def test_the_command_says_what_is_wrong_in_a_line(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  (inputs / "0.txt").write_text("raise a\nraise b\nraise c\n")
  code, said = run(command(inputs, tmp_path / "out"))
  last = said.strip().splitlines()[-2:]
  assert code == 1 and "Traceback" not in said
  assert last[0].startswith("clips, shard 0: weigh failed for 3 of 3 clips")
