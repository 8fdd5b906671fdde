"""Attention backends agree; the choice of backend is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import attention


@pytest.mark.parametrize("backend", ["xla", "xla_head"])
@pytest.mark.parametrize("length", [5, 1100])
def test_backends_are_softmax_attention(backend, length):
  random = np.random.default_rng(0)
  q = random.standard_normal((2, length, 3, 8), np.float32)
  k, v = random.standard_normal((2, 2, 37, 3, 8), np.float32)
  out = jax.jit(attention.attention, static_argnums=3)(q, k, v, backend)
  logits = np.einsum("BLNK,BSNK->BNLS", q, k).astype(np.float64) / 8**0.5
  weights = np.exp(logits)
  weights /= weights.sum(-1, keepdims=True)
  expected = np.einsum("BNLS,BSNK->BLNK", weights, v)
  np.testing.assert_allclose(out, expected, atol=2e-6)


def test_large_logits_do_not_overflow():
  q = jnp.full((1, 3, 1, 4), 1e3)
  out = attention.attention(q, q, q, "xla")
  np.testing.assert_allclose(out, q)


def test_memory_does_not_grow_with_the_square_of_the_length():
  def temporary(length: int) -> int:
    x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
    call = jax.jit(attention.attention, static_argnums=3)
    analysis = call.lower(x, x, x, "xla").compile().memory_analysis()
    return analysis.temp_size_in_bytes

  assert temporary(8192) < 2.5 * temporary(4096)


def test_choice_of_backend():
  bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
  assert attention.resolve("auto", "cpu", float32) == "xla_head"
  assert attention.resolve("auto", "cuda", bfloat16) == "cudnn"
  assert attention.resolve("auto", "cuda", float32) == "xla"
  assert attention.resolve("auto", "tpu", bfloat16) == "xla"
  assert attention.resolve("auto", "rocm", bfloat16) == "xla"
  assert attention.resolve("xla", "cuda", bfloat16) == "xla"
  with pytest.raises(ValueError, match="'flesh' is unknown; choose from auto"):
    attention.resolve("flesh", "cpu", float32)
