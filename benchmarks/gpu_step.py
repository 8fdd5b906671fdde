"""Time a full-size denoising step on an accelerator, with random weights.

  python -m benchmarks.gpu_step [--clips=720x720_5s,960x960_10s] [--trace=DIR]
  JAX_PLATFORMS=cpu python -m benchmarks.gpu_step --small

The 11.66 B parameters are made on the device, so no file is read. Needs one
device of 80 GB, or several (they share the weights as `sample.py` does). A step
is both guidance passes, guidance and UniPC; its arithmetic is counted from the
sizes (`flops`), its share of the peak is against a measured matrix product.
"""

import json
import pathlib
import statistics
import sys
import time
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import cases
from benchmarks import flops
from benchmarks import matmul
from ovi_jax import cli
from ovi_jax.attention import attention
from ovi_jax.convert import mapping
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser
from ovi_jax.sampling import guidance
from ovi_jax.sampling import solvers
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules

FLAGS = flags.FLAGS
flags.DEFINE_list("clips", ["720x720_5s", "960x960_10s"], "Clips to time.")
flags.DEFINE_integer("repeats", 5, "Timed steps a clip.", lower_bound=1)
flags.DEFINE_integer("slg_layer", 11, "Block left out when negative.")
flags.DEFINE_string("attention", "auto", "See ovi_jax/attention/attention.py.")
flags.DEFINE_string("trace", "", "Directory for a profile of one step.")
flags.DEFINE_string("out", "", "JSON file for the figures.")
flags.DEFINE_bool("small", False, "Tiny sizes: does this script work?")


def random_params(
  config: AV[dit.DiTConfig], dtype: Any, mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Random parameters of a denoiser, made leaf by leaf where they live."""
  shapes = mapping.flatten(architecture.parameter_shapes("fusion", config))
  placed = sharding_rules.param_shardings(shapes, sharding_rules.FUSION, mesh)

  def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
    if path.endswith("scale"):
      return jnp.ones(shape, dtype)
    key = jax.random.key(zlib.crc32(path.encode()))
    return 0.02 * jax.random.normal(key, shape, dtype)

  flat = {}
  for path, value in shapes.items():
    make = jax.jit(leaf, static_argnums=(0, 1), out_shardings=placed[path])
    flat[path] = jax.block_until_ready(make(path, value.shape))
  return mapping.nest(flat)


def measure(
  model: fusion.FusionDiT, params: Any, clip: flops.Clip, name: str
) -> dict[str, Any]:
  """Compile and time the step of one clip."""
  config = model.config
  keys = jax.random.split(jax.random.key(0), 3)
  x = AV(
    jax.random.normal(keys[0], (1, *clip.video, config.video.channels)),
    jax.random.normal(keys[1], (1, clip.audio, config.audio.channels)),
  )
  rows = min(cases.PROMPT_TOKENS, config.video.max_text_len)
  prompt = np.asarray(jax.random.normal(keys[2], (rows, config.video.text_dim)))
  text = denoiser.text_pairs(
    [prompt], AV(prompt, prompt), config.video.max_text_len, model.backend
  )
  keep = guidance.slg_mask(config.video.num_layers, 1, FLAGS.slg_layer)
  prepared = denoiser.step_constants(
    model, params, guidance.duplicate_for_cfg(x), text
  )
  inputs = denoise.Inputs(prepared, jnp.asarray(keep), AV(**cases.GUIDANCE))
  method = solvers.named("unipc")
  levels = method.schedule(cases.STEPS, cases.SHIFT)
  rows = method.coefficients(levels.sigmas)
  state = AV(**{n: method.init(a) for n, a in x.present().items()})
  t, sigma = np.float32(levels.t[0]), np.float32(levels.sigmas[0])
  start = time.perf_counter()
  lowered = denoise.step.lower(
    model, method, params, inputs, x, state, t, rows[0], sigma
  )
  compiled = lowered.compile()
  compiling = time.perf_counter() - start

  seconds = []
  for i in range(FLAGS.repeats + 2):
    start = time.perf_counter()
    t, sigma = np.float32(levels.t[i]), np.float32(levels.sigmas[i])
    x, state = compiled(params, inputs, x, state, t, rows[i], sigma)
    jax.block_until_ready((x, state))
    seconds.append(time.perf_counter() - start)
  if FLAGS.trace:
    with jax.profiler.trace(f"{FLAGS.trace}/{name}"):
      jax.block_until_ready(compiled(params, inputs, x, state, t, rows[0]))
  return {
    "tokens": clip.video_tokens,
    "compile_seconds": compiling,
    "step_time": statistics.median(seconds[2:]),
    "step_time_min": min(seconds[2:]),
  }


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  sizes = flops.released_sizes(FLAGS.small)
  config = AV(**{n: dit.DiTConfig.from_release(s) for n, s in sizes.items()})
  clips = {n: flops.CLIPS[n] for n in FLAGS.clips}
  if FLAGS.small:
    clips = {"small": flops.SMALL}
  dtype = jnp.dtype(jnp.bfloat16)
  devices = jax.devices()
  backend = attention.resolve(
    FLAGS.attention, cli.platform(), dtype, config.video.head_dim
  )
  best = matmul.peak(dtype, 256 if FLAGS.small else 8192) * len(devices)
  figures: dict[str, Any] = {
    "device": f"{len(devices)} x {devices[0].device_kind}",
    "jax": jax.__version__,
    "attention": backend,
    "peak_tflops": best / 1e12,
  }
  mesh = meshes.for_sampling(devices, config.video.num_heads)
  model = fusion.FusionDiT(config, dtype, backend)
  params = random_params(config, dtype, mesh)
  with jax.set_mesh(mesh):
    for name, clip in clips.items():
      figures[name] = measure(model, params, clip, name)
      work = flops.step(sizes, clip, FLAGS.slg_layer)
      rate = work / figures[name]["step_time"]
      stats = devices[0].memory_stats() or {}
      figures[name] |= {
        "step_tflop": work / 1e12,
        "tflops": rate / 1e12,
        "share_of_peak": rate / best,
        "peak_bytes": stats.get("peak_bytes_in_use"),
      }
      print(name, json.dumps(figures[name]), flush=True)
  print(json.dumps(figures, indent=1))
  if FLAGS.out:
    pathlib.Path(FLAGS.out).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
