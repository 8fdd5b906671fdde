"""8-bit kernels in programs compiled for a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ovi_jax.aot import hlo
from ovi_jax.aot import topology
from ovi_jax.models import block_params

BLOCKS, TOKENS, WIDTH, HIDDEN = 4, 8192, 1024, 4096


@pytest.fixture(autouse=True)
def compiling_anew():
  """Programs for a TPU are not cached; those of later tests are again."""
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


def stored_matrices(program: hlo.Program) -> list[tuple[int, ...]]:
  """Shapes of dequantized kernels that are results outside of fusions."""
  every = [x for c in program.computations.values() for x in c.instructions]
  fused = {x.called("calls") for x in every if x.opcode == "fusion"}
  ends = (WIDTH, HIDDEN), (HIDDEN, WIDTH)
  return [
    array.shape
    for computation in program.computations.values()
    if computation.name not in fused
    for each in computation.instructions
    for array in each.results
    if array.dtype in ("bf16", "f32") and array.shape[-2:] in ends
  ]


@pytest.mark.slow
def test_a_kernel_is_dequantized_in_the_fusion_of_its_product():
  """Of no block is there a matrix in 16 or 32 bits in memory."""
  mesh = jax.sharding.Mesh(np.array(topology.devices("v6e:1x1")), ("data",))
  place = jax.sharding.NamedSharding(mesh, jax.P())

  def argument(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  def layer(inputs, outputs):
    kernel = argument(jnp.int8, BLOCKS, inputs, outputs)
    scale = argument(jnp.float32, BLOCKS, outputs)
    return {"kernel": kernel, "kernel_scale": scale}

  def block(x, params):
    params = block_params.merge(params, jnp.bfloat16)
    hidden = jax.nn.gelu(x @ params["in"]["kernel"])
    return x + hidden @ params["out"]["kernel"], None

  def by_block(x, params):
    return jax.lax.scan(block, x, params)[0]

  def all_at_once(x, params):
    return by_block(x, block_params.merge(params, jnp.bfloat16))

  params = {"in": layer(WIDTH, HIDDEN), "out": layer(HIDDEN, WIDTH)}
  x = argument(jnp.bfloat16, TOKENS, WIDTH)
  ours, naive = (
    hlo.parse(jax.jit(function).lower(x, params).compile().as_text() or "")
    for function in (by_block, all_at_once)
  )
  assert ours.computations and not stored_matrices(ours)
  assert (BLOCKS, WIDTH, HIDDEN) in stored_matrices(naive)
