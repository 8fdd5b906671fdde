"""Worker processes: nothing of them is left when their parent is killed."""

import os
import pathlib
import subprocess
import sys
import time

from ovi_jax.data import builder
from tests.lib import random_records

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = """
import multiprocessing, sys, time
from ovi_jax.data import loader
from tests.lib import record_loader
chosen = record_loader.settings(sys.argv[1], num_workers=1)
batches = loader.load(chosen, batch=1, seed=0)
next(batches)
print(*(p.pid for p in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


def is_running(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  state = pathlib.Path(f"/proc/{process}/stat")
  return not (state.exists() and state.read_text().split()[2] == "Z")


def test_workers_end_when_their_parent_is_killed(tmp_path):
  builder.write(
    tmp_path / "a",
    {"train": random_records.sounds([5, 6])},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  command = [sys.executable, "-c", SCRIPT, str(tmp_path / "a")]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
  assert workers
  until = time.monotonic() + 10
  while any(map(is_running, workers)) and time.monotonic() < until:
    time.sleep(0.1)
  assert not any(map(is_running, workers))
