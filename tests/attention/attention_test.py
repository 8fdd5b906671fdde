"""Attention backends agree; choice of the backend."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.attention import attention
from ovi_jax.attention import blockwise


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


@pytest.mark.parametrize("backend", ["xla", "xla_head"])
def test_the_last_key_is_weighted_by_its_pad_count(backend):
  random = np.random.default_rng(0)
  q, k, v = random.standard_normal((3, 2, 9, 3, 8), np.float32)
  written_out = [blockwise.repeat_last(x, 5) for x in (k, v)]
  assert written_out[0].shape == (2, 13, 3, 8)
  out = attention.attention(q, k, v, backend, 5)
  expected = attention.attention(q, *written_out, backend)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  assert np.abs(out - attention.attention(q, k, v, backend)).max() > 0.1


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


@pytest.mark.parametrize(
  ("asked", "platform", "dtype", "head_dim", "chosen"),
  [
    ("auto", "cpu", "float32", 128, "xla_head"),
    ("auto", "cuda", "bfloat16", 128, "cudnn"),
    ("auto", "cuda", "float32", 128, "xla"),
    ("auto", "cuda", "bfloat16", 12, "xla"),
    ("auto", "tpu", "bfloat16", 128, "splash"),
    ("auto", "tpu", "bfloat16", 64, "xla"),
    ("auto", "gpu", "bfloat16", 128, "xla"),
    ("xla", "cuda", "bfloat16", 128, "xla"),
    ("cudnn", "cuda", "bfloat16", 64, "cudnn"),
  ],
)
def test_the_backend_follows_platform_and_dtype(
  asked, platform, dtype, head_dim, chosen
):
  found = attention.resolve(asked, platform, jnp.dtype(dtype), head_dim)
  assert found == chosen


def test_backends_that_cannot_run_are_refused():
  float32 = jnp.dtype("float32")
  with pytest.raises(ValueError, match="'flesh' is unknown; choose from auto"):
    attention.resolve("flesh", "cpu", float32, 128)
  with pytest.raises(ValueError, match="needs an NVIDIA GPU.*got cpu"):
    attention.resolve("cudnn", "cpu", float32, 128)
  with pytest.raises(ValueError, match="bfloat16.*got cuda, float32"):
    attention.resolve("cudnn", "cuda", float32, 128)


@pytest.mark.parametrize("length", [None, (2, 7)])
def test_attention_weights_reproduce_the_output(length):
  random = np.random.default_rng(0)
  q = random.standard_normal((2, 5, 3, 7), np.float32)
  k = random.standard_normal((2, 7, 3, 7), np.float32)
  length_B = None if length is None else jnp.asarray(length)
  # With one-hot values the output is the attention weights.
  one_hot = np.broadcast_to(np.eye(7, dtype=np.float32)[None, :, None], k.shape)
  out = attention.attention(q, k, one_hot, "xla", length=length_B)
  found = attention.attention_probs(q, k, length_B)
  np.testing.assert_allclose(found, out.transpose(0, 2, 1, 3), atol=1e-6)
