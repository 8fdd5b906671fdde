"""Time a training step of stage 3 on an accelerator, with random weights.

  python -m benchmarks.gpu_training [--num_layers=4] [--batch_size=1]
  [--remat=attention] JAX_PLATFORMS=cpu python -m benchmarks.gpu_training
  --small

The step of `configs/fusion.py` (fusion's attention trained, feed-forwards
frozen) at the released widths, with fewer blocks, so that one device of 80 GB
holds weights, optimizer and moments; a batch of 720x720, 5 s. Its share of the
peak is of the model's own arithmetic (`flops`: what remat makes again does not
count) against a measured matrix product.
"""

import json
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import matmul
from configs import fusion as config_lib
from ovi_jax import flops
from ovi_jax.aot import train_step
from ovi_jax.data import schema
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import step as steps
from ovi_jax.training import task as tasks

FLAGS = flags.FLAGS


def settings_of(
  blocks: int, batch: int, remat: str, small: bool
) -> settings_lib.Settings:
  """Stage 3 with so many blocks and fresh towers."""
  config: Any = config_lib.get_config("mini" if small else "")
  for tower in ("video", "audio"):
    config.init_from[tower] = settings_lib.SCRATCH
    if not small:
      config.model[tower].num_layers = blocks
  config.batch_size, config.grad_accum_steps, config.remat = batch, 1, remat
  config.data.sources = ("unused",)
  return settings_lib.Settings.from_config(config)


def random_batch(shapes: schema.Batch) -> schema.Batch:
  """Random latents and text; every row is whole."""
  sizes = shapes.latents.present()

  def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
    normal = jax.random.normal(jax.random.key(0), x.shape, jnp.float32)
    return jax.device_put(normal.astype(x.dtype), x.sharding)

  lengths = {
    name: jax.device_put(
      jnp.full(x.shape, sizes[name].shape[1], x.dtype), x.sharding
    )
    for name, x in shapes.lengths.present().items()
  }
  batch = jax.tree.map(draw, shapes._replace(lengths=None))
  return batch._replace(lengths=type(shapes.lengths)(**lengths))


def measure(settings: settings_lib.Settings, repeats: int) -> dict[str, Any]:
  """Compile the step, and time it."""
  task = tasks.make(settings)
  mesh = task.make_mesh()
  bucket = settings.data.buckets[0]
  with jax.set_mesh(mesh):
    step_config, target = task.step_config, task.target_state(mesh)
    state = task.initial_state(task.init_plan(), target)
    shapes = train_step.batch_of(settings, bucket.video, bucket.audio, mesh)
    batch = random_batch(shapes)
    width = next(iter(settings.model.present().values())).text_dim
    null_SE = jax.device_put(
      jnp.zeros((1, width)), sharding_rules.replicated(mesh)
    )
    shardings = jax.tree.map(lambda x: x.sharding, target)
    program = steps.jit_train_step(shardings, mesh)
    start = time.perf_counter()
    compiled = program.lower(step_config, state, batch, null_SE).compile()
    compiling = time.perf_counter() - start
    seconds = []
    for _ in range(repeats + 2):
      start = time.perf_counter()
      state, metrics = compiled(state, batch, null_SE)
      jax.block_until_ready((state, metrics))
      seconds.append(time.perf_counter() - start)
  only = settings.trainable == param_filter.ATTENTION
  work = flops.batch_cost(
    settings.model,
    jax.tree.map(jnp.shape, batch.latents),
    attention_only=only,
  )
  return {
    "parameters": sum(
      x.size
      for x in [*state.trained_params.values(), *state.frozen_params.values()]
    ),
    "trained": sum(x.size for x in state.trained_params.values()),
    "tokens": work.tokens,
    "compile_seconds": compiling,
    "step_time": statistics.median(seconds[2:]),
    "step_time_min": min(seconds[2:]),
    "step_tflop": work.flops / 1e12,
    "loss": float(metrics.loss),
  }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  devices = jax.devices()
  side = 256 if FLAGS.small else 8192
  best = matmul.peak(jnp.dtype(jnp.bfloat16), side) * len(devices)
  settings = settings_of(
    FLAGS.num_layers, FLAGS.batch_size, FLAGS.remat, FLAGS.small
  )
  found = measure(settings, FLAGS.repeats)
  rate = found["step_tflop"] * 1e12 / found["step_time"]
  stats = devices[0].memory_stats() or {}
  figures = {
    "device": f"{len(devices)} x {devices[0].device_kind}",
    "jax": jax.__version__,
    "peak_tflops": best / 1e12,
    **found,
    "share_of_peak": rate / best,
    "peak_bytes": stats.get("peak_bytes_in_use"),
  }
  print(json.dumps(figures, indent=1))
  if FLAGS.out:
    pathlib.Path(FLAGS.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
  flags.DEFINE_integer("num_layers", 4, "Layers of each tower.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 1, "Clips.", lower_bound=1)
  flags.DEFINE_integer("repeats", 5, "Timed steps.", lower_bound=1)
  flags.DEFINE_bool("small", False, "Tiny sizes: does this script work?")
  flags.DEFINE_string("out", "", "JSON file for the figures.")
  flags.DEFINE_string("remat", "attention", "See configs/fusion.py.")
  app.run(main)
