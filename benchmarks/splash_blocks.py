"""Searches the block sizes of the TPU attention kernel for one kind of chip.

  python -m benchmarks.splash_blocks --keys=15004 --heads=12 [--backward]
  python -m benchmarks.splash_blocks --aot=v6e:2x4 --keys=15004 --heads=12

On a TPU, every candidate of the forward kernel (with `--backward`, of the
backward kernel) is timed, and the best is printed as a row of
`ovi_jax/attention/splash_blocks.json`. Without a TPU (`--aot`), candidates are
compiled, which shows which of them fit in VMEM.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from absl import flags

from ovi_jax import cli
from ovi_jax.aot import topology
from ovi_jax.attention import attention
from ovi_jax.attention import splash
from ovi_jax.sharding import mesh as meshes

HEAD_SIZE = 128
BLOCKS = (512, 768, 1024, 1536, 2048)
COMPUTE = (256, 512, 1024)

FLAGS = flags.FLAGS


def candidates(device_kind: str, backward: bool) -> list[dict[str, int]]:
  """Limits that are worth a try: of one kernel; the table's of the other."""
  names = splash.SIZES[3:] if backward else splash.SIZES[:3]
  fixed = splash.limits_of(device_kind, FLAGS.keys)
  return [
    {**fixed, **dict(zip(names, sizes))}
    for sizes in itertools.product(BLOCKS, BLOCKS, COMPUTE)
    if sizes[2] <= sizes[1]
  ]


def program(backward: bool) -> Callable[..., Any]:
  """Attention, or its gradient by all three."""

  def attend(q, k, v):
    return attention.attention(q, k, v, "splash")

  def total(q, k, v):
    return attend(q, k, v).astype(jnp.float32).sum()

  return jax.grad(total, (0, 1, 2)) if backward else attend


def compiled(limits: Mapping[str, int], device: Any) -> Any:
  """The program with these blocks.

  Raises:
    JaxRuntimeError: they do not fit.
  """
  mesh = meshes.make([device])
  shape = 1, FLAGS.keys, FLAGS.heads, HEAD_SIZE
  given = jax.ShapeDtypeStruct(
    shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, jax.P())
  )
  row = {"chip": splash.ANY, "up_to": None, **limits}
  splash.table = lambda: [row]
  with jax.set_mesh(mesh):
    lowered = jax.jit(program(FLAGS.backward)).lower(given, given, given)
    return lowered.compile()


def seconds(run: Any) -> float:
  """Median of `--repeats`, after one that does not count."""
  random = np.random.default_rng(0)
  shape = 1, FLAGS.keys, FLAGS.heads, HEAD_SIZE
  q, k, v = (
    jnp.asarray(random.standard_normal(shape), jnp.bfloat16) for _ in range(3)
  )
  found = []
  for _ in range(FLAGS.repeats + 1):
    began = time.perf_counter()
    jax.block_until_ready(run(q, k, v))
    found.append(time.perf_counter() - began)
  return statistics.median(found[1:])


def main() -> None:
  device = topology.devices(FLAGS.aot)[0] if FLAGS.aot else jax.devices()[0]
  if device.platform != "tpu":
    raise app.UsageError("needs a TPU, or --aot=TOPOLOGY to see what fits")
  best: tuple[float, dict[str, int]] | None = None
  for limits in candidates(device.device_kind, FLAGS.backward):
    try:
      run = compiled(limits, device)
    except jax.errors.JaxRuntimeError as error:
      print(f"{limits}: {str(error).splitlines()[0][:100]}", flush=True)
      continue
    if FLAGS.aot:
      print(f"{limits}: fits", flush=True)
      continue
    took = seconds(run)
    print(f"{limits}: {1e3 * took:.2f} ms", flush=True)
    best = min(best or (took, limits), (took, limits), key=lambda b: b[0])
  if best is not None:
    row = {"chip": device.device_kind, "up_to": FLAGS.keys, **best[1]}
    print(json.dumps(row))


if __name__ == "__main__":
  flags.DEFINE_integer("keys", 15004, "Tokens that attend to each other.")
  flags.DEFINE_integer("heads", 24, "Heads of a device.")
  flags.DEFINE_bool("backward", False, "The gradient, as training needs it.")
  flags.DEFINE_integer("repeats", 10, "Timed runs of each.")
  flags.DEFINE_string("aot", "", "A topology; compile only.")
  cli.run(main)
