"""Two processes of one run save, restore and fall back together."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from ovi_jax.checkpoint import manager
from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> str:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return str(listener.getsockname()[1])


@pytest.mark.slow
def test_two_processes_save_and_restore_one_state(tmp_path):
  environment = child_env.environment(devices=2, PYTHONPATH=ROOT)
  command = [sys.executable, "-m", "tests.lib.checkpoint_process_worker"]
  port = free_port()
  workers = [
    subprocess.Popen(
      [*command, str(tmp_path), str(me), port],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=environment,
      cwd=ROOT,
      text=True,
    )
    for me in range(2)
  ]
  try:
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for output in outputs:
    assert output.endswith("done\n"), output
    assert "3 is damaged: state/_METADATA" in output
  # One process takes over the state, but not the place in the input.
  target = {
    "a": jax.ShapeDtypeStruct((64,), np.float32),
    "key": jax.random.key(0),
    "host": np.zeros(64, np.float32),
    "step": 0,
  }
  with manager.Manager(tmp_path / "checkpoints") as checkpoints:
    restored = checkpoints.restore_newest(target)
  np.testing.assert_array_equal(restored.state["a"], restored.state["host"])
  with pytest.raises(ValueError, match="of 2 processes, this run has 1"):
    _ = restored.iterator
