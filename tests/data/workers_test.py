"""Worker processes end with their parent."""

import pathlib
import subprocess
import sys

import pytest

from ovi_jax.data import builder
from tests.lib import random_records

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import multiprocessing, sys
from ovi_jax.data import loader
from tests.lib import record_loader
chosen = record_loader.settings(sys.argv[1], num_workers=1)
batches = loader.load(chosen, batch=1, seed=0)
next(batches)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(tmp_path):
  builder.write(
    tmp_path / "a",
    {"train": random_records.sounds([5, 6])},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a")]
  with subprocess.Popen(
    command,
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    # Python's resource tracker reports the shared memory and semaphores that it
    # removes after the killed process.
    stderr=subprocess.PIPE,
  ) as parent:
    assert parent.stdout is not None
    assert parent.stdout.readline().split()  # the workers' numbers
    parent.kill()
    # Workers inherit stdout: it ends when all of them have ended.
    assert parent.communicate(timeout=300)[0] == b""
