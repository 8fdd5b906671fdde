"""Memory of full-size sampling, from the compiler, without the hardware.

Compiles the denoising step and the video decode step of the released model
(11.66 B parameters, bfloat16) and prints what the compiler says they hold.

  pip install "jax[tpu]"        # brings the compiler; no TPU is needed
  TPU_ACCELERATOR_TYPE=v5p-8 TPU_WORKER_HOSTNAMES=localhost JAX_PLATFORMS=cpu \\
    python benchmarks/memory.py --topology=v5p:2x2x1 --devices=1
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ovi_jax import geometry
from ovi_jax.convert import mapping
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import fusion
from ovi_jax.models.video_vae import codec
from ovi_jax.parallel import mesh as meshes
from ovi_jax.parallel import partition
from ovi_jax.sampling import denoise
from ovi_jax.sampling import solver

GIB = 2**30
DTYPE = jnp.dtype("bfloat16")
CASES = {"720x720_5s": (704, 704), "960x960_10s": (960, 960)}
ARCH = architecture.Architecture.from_release(architecture.released_sizes())


def struct(shape: tuple[int, ...], sharding: Any, dtype: Any = jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def parameters(component: str, mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """A component's parameters as shapes on the mesh, bfloat16."""
  shapes = architecture.parameter_shapes(component, ARCH.config(component))
  flat = mapping.flatten(shapes)
  whole = partition.replicated(mesh)
  placed = {path: whole for path in flat}
  if component == "fusion":
    placed = partition.shardings(flat, partition.FUSION, mesh)
  return mapping.nest(
    {path: struct(x.shape, placed[path], DTYPE) for path, x in flat.items()}
  )


def denoising(clip: geometry.Clip, mesh: jax.sharding.Mesh) -> Any:
  """The compiled guided step of one clip."""
  whole = NamedSharding(mesh, P())
  model = fusion.FusionDiT(ARCH.fusion, DTYPE, "xla")
  params = parameters("fusion", mesh)
  rows, columns = clip.latent_height, clip.latent_width
  x = AV(
    struct((1, clip.latent_frames, rows, columns, 48), whole),
    struct((1, clip.audio_latents, 20), whole),
  )
  method = solver.named("unipc")

  def whole_like(function, *arguments) -> Any:
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda s: struct(s.shape, whole, s.dtype), shapes)

  def conditions(params, x):
    doubled = jax.tree.map(lambda a: jnp.concatenate([a, a]), x)
    text = jnp.zeros((2, 512, 4096))
    given = ({"params": params}, doubled, AV(text, text))
    return model.apply(*given, method="conditions")

  scale = struct((), whole)
  inputs = denoise.Inputs(
    whole_like(conditions, params, x),
    struct((30, 2), whole, jnp.bool_),
    AV(scale, scale),
  )
  state = whole_like(lambda x: AV(*(method.init(a) for a in x)), x)
  row = struct((9,), whole)
  with jax.set_mesh(mesh):
    lowered = denoise.step.lower(
      model, method, params, inputs, x, state, scale, row
    )
    return lowered.compile()


def decoding(clip: geometry.Clip, mesh: jax.sharding.Mesh) -> Any:
  """The compiled decode step of one latent frame."""
  whole = NamedSharding(mesh, P())
  vae = ARCH.video_vae
  height, width = clip.pixels
  cache = jax.eval_shape(
    lambda: codec.init_decoder_cache(vae, 1, height, width, DTYPE)
  )
  cache = jax.tree.map(lambda s: struct(s.shape, whole, s.dtype), cache)
  latent = struct((1, clip.latent_height, clip.latent_width, 48), whole)

  def step(params, cache, latent, is_first):
    tree = {"decoder": params}
    return codec.decode_step(vae, tree, cache, latent, is_first, DTYPE)

  params = parameters("video_vae", mesh)["decoder"]
  with jax.set_mesh(mesh):
    lowered = jax.jit(step, donate_argnums=1).lower(
      params, cache, latent, struct((), whole, jnp.bool_)
    )
    return lowered.compile()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", help="TPU, e.g. v5p:2x2x1; default: here")
  parser.add_argument("--devices", type=int, default=1)
  options = parser.parse_args()
  devices = jax.devices()
  if options.topology:
    devices = topologies.get_topology_desc(
      platform="tpu", topology_name=options.topology
    ).devices
  mesh = meshes.for_sampling(list(devices)[: options.devices], heads=24)
  print(
    f"{options.devices} x {devices[0].device_kind}, mesh {dict(mesh.shape)}"
  )
  print("| program | arguments, GiB | temporary, GiB | compile, s |")
  print("|---|---|---|---|")
  for name, (height, width) in CASES.items():
    clip = geometry.variant(name).clip(height, width)
    for program, make in (("step", denoising), ("decode", decoding)):
      start = time.perf_counter()
      memory = make(clip, mesh).memory_analysis()
      seconds = time.perf_counter() - start
      print(
        f"| {name} {height}x{width} {program}"
        f" | {memory.argument_size_in_bytes / GIB:.1f}"
        f" | {memory.temp_size_in_bytes / GIB:.1f} | {seconds:.0f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
