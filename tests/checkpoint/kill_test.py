"""A run killed at a random moment resumes from its newest checkpoint."""

import pathlib
import random
import subprocess
import sys
import time

import pytest

from ovi_jax.checkpoint import manager
from tests.lib import checkpoint_kill_worker
from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOST_SAVES = 4  # that a run completes before the moment of its kill


def run(directory: pathlib.Path, saves: int, part: float) -> tuple[int, int]:
  """Run the worker and kill it while it saves.

  Args:
    directory: of the checkpoints.
    saves: lines about complete saves that are waited for.
    part: of the time of a save, as measured, until the kill.

  Returns:
    The step that was restored, and the newest complete one.
  """
  environment = child_env.environment(devices=2, PYTHONPATH=ROOT)
  command = [sys.executable, "-m", "tests.lib.checkpoint_kill_worker"]
  with subprocess.Popen(
    [*command, str(directory)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env=environment,
    cwd=ROOT,
    text=True,
  ) as worker:
    first = worker.stdout.readline().split()
    began = time.perf_counter()
    lines = [worker.stdout.readline() for _ in range(saves)]
    took = (time.perf_counter() - began) / max(saves, 1)
    time.sleep(part * min(took, 1.0))
    alive = worker.poll() is None
    worker.kill()
    out, err = worker.communicate()
  assert alive and first, err
  lines += [line for line in out.splitlines(keepends=True) if line[-1] == "\n"]
  restored = int(first[1])
  complete = [int(line.split()[1]) for line in lines]
  return restored, max([restored, *complete])


def rounds(
  directory: pathlib.Path, count: int, seed: int, lines: list[str]
) -> None:
  """Kill a run `count` times; each start finds all that was complete."""
  moments = random.Random(seed)
  complete, waited = -1, 0
  for _ in range(count):
    saves, part = moments.randint(0, MOST_SAVES), moments.random()
    restored, reached = run(directory, saves, part)
    assert restored >= complete, (restored, complete, saves, part)
    # The first line of a run repeats the step that was restored.
    complete, waited = reached, waited + max(saves - 1, 0)
  assert complete >= waited - 1
  with manager.Manager(directory, keep_period=50) as checkpoints:
    newest = checkpoints.restore_newest(checkpoint_kill_worker.state(0))
    assert checkpoint_kill_worker.check(newest) >= complete
  assert not [line for line in lines if "damaged" in line]
  left = {path.name for path in directory.iterdir()}
  assert all(name.isdigit() for name in left), left
  assert len([n for n in left if int(n) % 50]) <= 3


@pytest.mark.slow
def test_checkpoints_survive_three_kills(tmp_path, log_lines):
  rounds(tmp_path, 3, 3, log_lines)


@pytest.mark.slow
@pytest.mark.nightly
def test_checkpoints_survive_thirty_kills(tmp_path, log_lines):
  rounds(tmp_path, 30, 30, log_lines)
