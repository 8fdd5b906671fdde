"""Softmax attention behind one function, with a backend for each platform.

Every backend takes q_BLNK, k_BSNK, v_BSNK and returns the weighted values in
the dtype of q, scaled by 1/sqrt(K). Logits and softmax are float32. The last
key and value may stand for several equal ones: the padding of a prompt is
attended to (Ovi does not mask it), but it is all the same. Keys beyond an
example's length, where one is given, are not attended to.

  xla       query blocks, so memory grows with L, not L²; any platform
  xla_head  the same, one head at a time: blocks stay in a CPU's cache
  cudnn     flash attention of cuDNN through JAX; NVIDIA GPUs, 16-bit only
"""

import functools
import math
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import axes

# Queries of a block: at most this many, and fewer for very many keys, so that
# a block's logits stay below 32 MiB a head.
QUERY_BLOCK = 512
LOGITS_BLOCK = 2**23
MASKED = -1e30  # logit of a key that does not count

# The choice of "auto". A flash kernel for TPU registers itself in BACKENDS.
PLATFORM_BACKEND: Mapping[str, str] = {
  "cpu": "xla_head",
  "cuda": "cudnn",
}


def resolve(
  backend: str, platform: str, dtype: jnp.dtype, head_size: int
) -> str:
  """The backend that `backend` ("auto" or a name) means.

  Args:
    backend: "auto" or a key of `BACKENDS`.
    platform: see `runtime.platform`.
    dtype: compute dtype.
    head_size: of every attention.

  Raises:
    ValueError: no backend of that name, or it cannot run this.
  """
  if backend != "auto" and backend not in BACKENDS:
    known = ", ".join(["auto", *BACKENDS])
    raise ValueError(f"attention {backend!r} is unknown; choose from {known}")
  # cuDNN's flash attention is for 16-bit numbers and heads up to 128.
  fits = dtype.itemsize == 2 and head_size % 8 == 0 and head_size <= 128
  if backend == "cudnn" and not (platform == "cuda" and fits):
    raise ValueError(
      "attention cudnn needs an NVIDIA GPU (Ampere or newer), bfloat16 and"
      f" heads up to 128, got {platform}, {dtype}, {head_size}; choose auto"
    )
  if backend != "auto":
    return backend
  choice = PLATFORM_BACKEND.get(platform, "xla")
  return "xla" if choice == "cudnn" and not fits else choice


def attention(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  backend: str,
  last: int = 1,
  length_B: jax.Array | None = None,
) -> jax.Array:
  """Attend.

  Args:
    q_BLNK: queries.
    k_BSNK: keys.
    v_BSNK: values.
    backend: a key of `BACKENDS`.
    last: how many equal keys and values the last ones stand for.
    length_B: how many keys of each example count, integers; `None` for all.
      Not together with `last`.

  Returns:
    [B, L, N, K] in the dtype of q; 0 where no key counts.
  """
  # Alike, heads and all: kernels refuse q, k and v that are split differently.
  q = axes.constrain(q_BLNK, "BLNK")
  k, v = (axes.constrain(x, "BSNK") for x in (k_BSNK, v_BSNK))
  if length_B is None:
    return BACKENDS[backend](q, k, v, last, None)
  if last > 1:
    raise ValueError("attention takes `last` or `length_B`, not both")
  out = BACKENDS[backend](q, k, v, 1, jnp.maximum(length_B, 1))
  return jnp.where(length_B[:, None, None, None] > 0, out, 0)


def weights(
  q_BLNK: jax.Array, k_BSNK: jax.Array, length_B: jax.Array | None = None
) -> jax.Array:
  """What `attention` weighs the values with, averaged over the heads.

  Args:
    q_BLNK: queries.
    k_BSNK: keys.
    length_B: how many keys of each example count; `None` for all.

  Returns:
    [B, L, S] float32; each row adds up to 1.
  """
  logits = jnp.einsum(
    "BLNK,BSNK->BNLS",
    q_BLNK * jnp.asarray(q_BLNK.shape[-1] ** -0.5, q_BLNK.dtype),
    k_BSNK,
    preferred_element_type=jnp.float32,
  )
  if length_B is not None:
    places = jnp.arange(logits.shape[-1])[None, None, None]
    logits = jnp.where(places < length_B[:, None, None, None], logits, MASKED)
  return jax.nn.softmax(logits).mean(1)


def _attend(
  q: jax.Array, k: jax.Array, v: jax.Array, last: int, length: Any
) -> jax.Array:
  """Attention of [..., L, K] over [..., S, K], normalised after the sum."""
  float32 = {"preferred_element_type": jnp.float32}
  logits = jnp.einsum("...LK,...SK->...LS", q, k, **float32)
  if last > 1:
    weight_S = np.zeros(logits.shape[-1], np.float32)
    weight_S[-1] = math.log(last)
    logits = logits + weight_S.reshape((1,) * (q.ndim - 1) + (-1,))
  if length is not None:
    places = jnp.arange(logits.shape[-1]).reshape((1,) * (q.ndim - 1) + (-1,))
    logits = jnp.where(places < length[..., None, None], logits, MASKED)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(v.dtype)
  values = jnp.einsum("...LS,...SK->...LK", weights, v, **float32)
  return (values / total).astype(q.dtype)


def _blocks(queries: int, keys: int) -> tuple[int, int]:
  """Number and size of the query blocks."""
  limit = max(1, min(QUERY_BLOCK, LOGITS_BLOCK // keys))
  count = -(-queries // limit)
  return count, -(-queries // count)


def _by_query_block(
  q: jax.Array, k: jax.Array, v: jax.Array, last: int, length: Any
) -> jax.Array:
  """`_attend` on [..., L, K], a block of queries after the other."""
  queries = q.shape[-2]
  count, size = _blocks(queries, k.shape[-2])
  if count == 1:
    return _attend(q, k, v, last, length)
  padding = [(0, 0)] * (q.ndim - 2) + [(0, count * size - queries), (0, 0)]
  padded = jnp.pad(q, padding)
  split = padded.reshape(*q.shape[:-2], count, size, q.shape[-1])
  # Recomputed in the backward pass: weights of one block at a time.
  attend = jax.checkpoint(lambda block: _attend(block, k, v, last, length))
  blocks = jax.lax.map(attend, jnp.moveaxis(split, -3, 0))
  merged = jnp.moveaxis(blocks, 0, -3).reshape(padded.shape)
  return merged[..., :queries, :]


def _xla(
  q_BLNK, k_BSNK, v_BSNK, last: int, length_B: Any, *, one_head: bool
) -> jax.Array:
  scale = jnp.asarray(q_BLNK.shape[-1] ** -0.5, q_BLNK.dtype)
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BLNK * scale, k_BSNK, v_BSNK))
  if one_head:
    batch, heads = q.shape[:2]
    flat = [x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v)]
    length = None if length_B is None else jnp.repeat(length_B, heads)
    out = jax.lax.map(
      lambda head: _by_query_block(*head[:3], last, head[3]), (*flat, length)
    )
    out = out.reshape(q.shape)
  else:
    length = None if length_B is None else length_B[:, None]
    out = _by_query_block(q, k, v, last, length)
  return jnp.swapaxes(out, 1, 2)


def repeat_last(x_BSNK: jax.Array, last: int) -> jax.Array:
  """Write the last row out `last` times, for kernels that cannot weigh it."""
  rest = jnp.repeat(x_BSNK[:, -1:], last - 1, axis=1)
  return jnp.concatenate([x_BSNK, rest], 1)


def _cudnn(q_BLNK, k_BSNK, v_BSNK, last: int, length_B: Any) -> jax.Array:
  k, v = (repeat_last(x, last) for x in (k_BSNK, v_BSNK))
  return jax.nn.dot_product_attention(
    q_BLNK, k, v, key_value_seq_lengths=length_B, implementation="cudnn"
  )


# Backends that do less work for a short prompt; to others it is written out.
WEIGHS_LAST = frozenset(["xla", "xla_head"])
Backend = Callable[[jax.Array, jax.Array, jax.Array, int, Any], jax.Array]
BACKENDS: dict[str, Backend] = {
  "xla": functools.partial(_xla, one_head=False),
  "xla_head": functools.partial(_xla, one_head=True),
  "cudnn": _cudnn,
}
