"""One of two processes that share checkpoints; run by processes_test.py.

Arguments: directory, number of the process, port of process 0, and the size of
a state that is only saved (0: states are saved and restored).
"""

import sys

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ovi_jax import storage
from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import workdir

P = jax.sharding.PartitionSpec


def state(step: int) -> dict:
  """A state over all devices of both processes."""
  axis = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=axis)
  rows = jax.sharding.NamedSharding(mesh, P("fsdp"))
  whole = jax.sharding.NamedSharding(mesh, P())
  ramp = np.arange(64, dtype=np.float32) + step
  return {
    "a": jax.make_array_from_callback((64,), rows, lambda index: ramp[index]),
    "key": jax.jit(lambda: jax.random.key(step), out_shardings=whole)(),
    "host": ramp,
    "step": step,
  }


def check(restored: manager.Restored, step: int) -> None:
  assert restored.step == restored.state["step"] == step
  expected = state(step)
  shards = zip(
    restored.state["a"].addressable_shards, expected["a"].addressable_shards
  )
  for ours, theirs in shards:
    np.testing.assert_array_equal(ours.data, theirs.data)
  np.testing.assert_array_equal(restored.state["host"], expected["host"])
  me = jax.process_index()
  assert restored.iterator == b"input" * (me + step)


def save(directory: epath.Path, size: int) -> None:
  """Save one state of `size` numbers, each process its part, and no more."""
  axis = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=axis)
  rows = jax.sharding.NamedSharding(mesh, P("fsdp"))
  values = np.random.default_rng(0).standard_normal(size, np.float32)
  array = jax.make_array_from_callback((size,), rows, lambda i: values[i])
  with manager.Manager(directory) as checkpoints:
    assert checkpoints.save(1, {"a": array})


def save_and_restore(directory: epath.Path) -> None:
  """Three states, of which the last is damaged."""
  me = jax.process_index()
  workdir.check_config(directory, {"seed": 0}, ())
  path = directory / "checkpoints"
  with manager.Manager(path) as checkpoints:
    assert checkpoints.restore_newest(state(0)) is None
    for step in (1, 2, 3):
      assert checkpoints.save(step, state(step), b"input" * (me + step))
    check(checkpoints.restore_newest(state(0)), 3)
    own = path / "3" / "state" / f"ocdbt.process_{me}"
    assert integrity.listing(own)
    multihost_utils.sync_global_devices("restored")
    if me == 0:
      (path / "3" / "state" / "_METADATA").write_text("{}")
    multihost_utils.sync_global_devices("damaged")
    check(checkpoints.restore_newest(state(0)), 2)
    assert checkpoints.save(3, state(3), b"input" * (me + 3))
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]


def main() -> None:
  name, me, port, size = sys.argv[1:]
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(me))
  directory = storage.path(name)
  if int(size):
    save(directory, int(size))
  else:
    save_and_restore(directory)
  print("done")


if __name__ == "__main__":
  main()
