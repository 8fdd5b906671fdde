"""Attention kernels in programs compiled for a TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ovi_jax.aot import costs
from ovi_jax.aot import hlo
from ovi_jax.aot import topology
from ovi_jax.attention import attention
from ovi_jax.models import remat as remats


@pytest.fixture(autouse=True)
def compiling_anew():
  """Programs for a TPU are not cached; those of later tests are again."""
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("strategy", "remat", "kernels"),
  [
    # Forward, backward; where nothing is kept, forward once more for it.
    ("ulysses", "full", 3),
    ("ulysses", "attention", 2),
    # The parts that pass, and the last one: only forward is a kernel.
    ("ring", "full", 4),
    ("ring", "attention", 2),
  ],
)
def test_saved_attention_is_not_recomputed(strategy, remat, kernels):
  devices = np.array(topology.devices("v5e:2x2")[:2])
  mesh = jax.sharding.Mesh(devices.reshape(1, 2), ("data", "context"))
  attend = functools.partial(
    attention.attention,
    backend="splash",
    letters=("BLNK", "BLNK"),
    strategy=strategy,
  )

  def blocks(x, weights):
    def one(x, w):
      return x + jnp.sin(attend(x * w, x + w, x - w)), None

    policy = remats.policy(remat)
    saved = jax.checkpoint(one, policy=policy, prevent_cse=False)
    return jax.lax.scan(saved, x, weights)[0]

  def loss(weights):
    x = jnp.ones(weights.shape[1:], weights.dtype)
    return jnp.square(blocks(x, weights)).sum()

  place = jax.sharding.NamedSharding(mesh, jax.P(None, None, "context"))
  weights = jax.ShapeDtypeStruct(
    (5, 1, 512, 4, 128), jnp.float32, sharding=place
  )
  with jax.set_mesh(mesh):
    text = jax.jit(jax.grad(loss)).lower(weights).compile().as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.slow
def test_flops_of_the_kernels():
  """Two forward; five backward, which makes the weights again."""
  devices = np.array(topology.devices("v5e:2x2")[:1])
  mesh = jax.sharding.Mesh(devices, ("data",))
  place = jax.sharding.NamedSharding(mesh, jax.P())
  x = jax.ShapeDtypeStruct((1, 1024, 2, 128), jnp.float32, sharding=place)

  def attend(q, k, v):
    return attention.attention(q, k, v, "splash").astype(jnp.float32).sum()

  def products(function) -> float:
    program = jax.jit(function).lower(x, x, x).compile().as_text()
    found = costs.count(hlo.parse(program))
    return found.flops / (2 * 2 * 1024 * 1024 * 128)

  with jax.set_mesh(mesh):
    assert products(attend) == pytest.approx(2)
    assert products(jax.grad(attend, (0, 1, 2))) == pytest.approx(2 + 5)
