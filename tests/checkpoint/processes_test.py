"""Two processes of one run save, restore and fall back together."""

import pathlib
import socket
import subprocess
import sys
from collections.abc import Mapping
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from ovi_jax import storage
from ovi_jax.checkpoint import manager
from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port() -> str:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return str(listener.getsockname()[1])


def run_two(
  directory: object, size: int = 0, more: Sequence[Mapping[str, str]] = ({}, {})
) -> list[str]:
  """What two workers say, see tests/lib/checkpoint_process_worker.py."""
  command = [sys.executable, "-m", "tests.lib.checkpoint_process_worker"]
  port = free_port()
  workers = [
    subprocess.Popen(
      [*command, str(directory), str(me), port, str(size)],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=child_env.environment(devices=2, PYTHONPATH=ROOT) | variables,
      cwd=ROOT,
      text=True,
    )
    for me, variables in enumerate(more)
  ]
  try:
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for output in outputs:
    assert output.endswith("done\n"), output
  return outputs


@pytest.mark.slow
def test_processes_read_less_than_their_share_while_they_save(bucket_endpoint):
  store, size = bucket_endpoint.store, 2**20
  directory = f"{store.create('shares')}/checkpoints"
  with store.endpoint() as first, store.endpoint() as second:
    ends = (first, second)
    run_two(directory, size, [end.environment for end in ends])
    share = 4 * size / 2
    for end in ends:
      assert end.bytes_written > share
      assert end.bytes_read < share / 4
  path = storage.path(directory)
  with manager.Manager(path) as checkpoints:
    target = {"a": jax.ShapeDtypeStruct((size,), np.float32)}
    restored = checkpoints.restore_newest(target)
  assert restored is not None
  expected = np.random.default_rng(0).standard_normal(size, np.float32)
  np.testing.assert_array_equal(restored.state["a"], expected)


@pytest.mark.slow
def test_two_processes_save_and_restore_one_state(tmp_path):
  outputs = run_two(tmp_path)
  for output in outputs:
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
  with pytest.raises(ValueError, match=r"2 processes \(now 1\)"):
    _ = restored.iterator
