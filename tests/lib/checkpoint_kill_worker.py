"""Saves in a loop until it is killed; run by kill_test.py.

Each start restores the newest checkpoint and sees that it is what was saved at
its step. Lines on stdout: `ready <step restored>`, `complete <step>`.
"""

import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import tree_spec

SIZE = 2**18


def state(step: int) -> dict:
  """A state whose every leaf depends on the step."""
  mesh = jax.make_mesh(
    (2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
  ramp = np.arange(SIZE, dtype=np.float32)
  return {
    "params": jax.device_put(ramp + step, rows),
    "moments": [jax.device_put(ramp * step, rows), jnp.int32(step)],
    "key": jax.random.fold_in(jax.random.key(0), step),
    "step": step,
  }


def check(restored: manager.Restored | None) -> int:
  """The step of what was restored, all of it; -1 for nothing."""
  if restored is None:
    return -1
  step = restored.step
  expected = tree_spec.flatten(state(step))
  for path, leaf in tree_spec.flatten(restored.state).items():
    ours, theirs = (
      np.asarray(tree_spec.to_stored(x)) for x in (leaf, expected[path])
    )
    assert ours.tobytes() == theirs.tobytes(), path
  assert restored.iterator == {"next": step + 1}
  return step


def main(directory: pathlib.Path) -> None:
  with manager.Manager(directory, keep_period=50) as checkpoints:
    first = check(checkpoints.restore_newest(state(0))) + 1
    print("ready", first - 1, flush=True)
    for step in itertools.count(first):
      # Returns once the one before is complete.
      checkpoints.save(step, state(step), {"next": step + 1})
      print("complete", step - 1, flush=True)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
