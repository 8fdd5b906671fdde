"""Attention over a mesh equals one device, with gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.attention import attention
from ovi_jax.attention import blockwise
from ovi_jax.attention import context
from ovi_jax.sharding import mesh as meshes

MESHES = {
  "context": {"context": 4, "data": 2},
  "wide context": {"context": 8},
  "mixed": {"context": 2, "tensor": 2, "fsdp": 2},
}
# Queries and keys of: a video's tokens, its text, a sound's over a video's.
LETTERS = {
  "self": ("BLNK", "BLNK"),
  "text": ("BLNK", "BSNK"),
  "few": ("BSnK", "BSnK"),
  "sound to video": ("BSNK", "BLNK"),
}


def drawn(queries: int, keys: int, heads: int = 8, size: int = 8):
  random = np.random.default_rng(0)
  shapes = [(2, n, heads, size) for n in (queries, keys, keys, queries)]
  return [random.standard_normal(s, np.float32) for s in shapes]


def value_and_gradients(arrays, **options):
  *inputs, g = arrays

  @jax.jit
  def run(q, k, v):
    def total(q, k, v):
      out = attention.attention(q, k, v, **options)
      return (out.astype(jnp.float32) * g).sum(), out

    return jax.grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)

  gradients, out = run(*inputs)
  return jax.device_get((out, *gradients))


def assert_equal(found, expected, limit=1e-5):
  for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected):
    error = np.abs(a - b).max() / np.abs(b).max()
    assert error < limit, (name, error)


def compare(arrays, mesh, backend, length, strategy):
  """Attention split over a mesh, and by XLA on one device."""
  expected = value_and_gradients(arrays, backend="xla", length=length)
  with jax.set_mesh(mesh):
    found = value_and_gradients(
      arrays,
      backend=backend,
      length=length,
      letters=LETTERS["self"],
      strategy=strategy,
    )
  assert_equal(found, expected)


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("strategy", ["ulysses", "ring"])
@pytest.mark.parametrize("length", [None, 19, (3, 24)])
def test_context_parallel_attention_equals_one_device(sizes, strategy, length):
  arrays = drawn(24, 24)
  count = length if length is None or isinstance(length, int) else None
  if count is None and length is not None:
    count = jnp.asarray(length)
  mesh = meshes.make(jax.devices(), **MESHES[sizes])
  compare(arrays, mesh, "xla_head", count, strategy)


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.parametrize("kind", ["text", "few", "sound to video"])
@pytest.mark.parametrize("length", [None, 19])
@pytest.mark.slow
def test_different_counts_of_queries_and_keys_equal_one_device(
  sizes, kind, length
):
  arrays = drawn(16, 24) if kind == "text" else drawn(5, 24)
  expected = value_and_gradients(arrays, backend="xla", length=length)
  with jax.set_mesh(meshes.make(jax.devices(), **MESHES[sizes])):
    found = value_and_gradients(
      arrays, backend="xla_head", length=length, letters=LETTERS[kind]
    )
  assert_equal(found, expected)


def test_heads_that_the_context_axis_does_not_divide_need_ring_attention():
  arrays = drawn(16, 16, heads=4)
  call = functools.partial(
    value_and_gradients, arrays, backend="xla", letters=LETTERS["self"]
  )
  with jax.set_mesh(meshes.make(jax.devices(), context=8)):
    with pytest.raises(ValueError, match="cannot shard 4 heads over 8 devices"):
      call()
    found = call(strategy="ring")
  assert_equal(found, value_and_gradients(arrays, backend="xla"))


def test_attention_over_parts_of_the_keys_combines_exactly():
  """Two parts, one of them without a key that counts, are the whole."""
  q, k, v, _ = drawn(600, 40)
  length = jnp.array([17, 33])
  whole = attention.attention(q, k, v, "xla", length=length)
  outs, lse = zip(
    *(
      blockwise.attend_part(
        q, k[:, a:b], v[:, a:b], jnp.clip(length - a, 0, 20)
      )
      for a, b in ((0, 20), (20, 40))
    )
  )
  total = jnp.logaddexp(*lse)
  merged = sum(jnp.exp(s - total)[..., None] * o for s, o in zip(lse, outs))
  np.testing.assert_allclose(merged, whole, atol=2e-6)


@pytest.mark.parametrize("strategy", ["ulysses", "ring"])
@pytest.mark.parametrize(
  "length", [pytest.param(None, marks=pytest.mark.slow), 300]
)
def test_the_tpu_kernel_runs_on_a_mesh(strategy, length):
  arrays = drawn(320, 320, heads=2, size=128)
  mesh = meshes.make(jax.devices()[:2], context=2)
  compare(arrays, mesh, "splash", length, strategy)


@pytest.mark.parametrize(
  "sizes, heads, strategy, said",
  [
    ({"context": 5, "tensor": 1}, 24, "ulysses", "24"),
    ({"context": 4, "tensor": 4}, 24, "ulysses", "24"),
    ({"context": 1, "tensor": 5}, 24, "ring", "24"),
    ({"context": 2, "tensor": 1}, 24, "spiral", "spiral.*ring"),
  ],
)
def test_meshes_that_do_not_divide_the_heads_are_refused(
  sizes, heads, strategy, said
):
  sizes = {"data": 1, "fsdp": 1, **sizes}
  with pytest.raises(ValueError, match=said):
    context.check(sizes, heads, strategy)


def test_meshes_that_divide_the_heads_are_accepted():
  sizes = {"data": 1, "fsdp": 1, "context": 4, "tensor": 2}
  context.check(sizes, 24, "ulysses")
  context.check({**sizes, "context": 5}, 24, "ring")


def test_ring_is_refused_in_training_where_ulysses_divides_the_heads():
  with pytest.raises(ValueError, match="24 heads .* tensor 1 x context 2; set"):
    context.check_training({"fsdp": 4, "context": 2}, 24, "ring")
  context.check_training({"context": 5}, 24, "ring")
  context.check_training({"context": 2}, 24, "ulysses")
  context.check_training({"fsdp": 8}, 24, "ring")
