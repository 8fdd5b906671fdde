"""Attention in XLA's own operations, a block of queries after the other.

Memory grows with the number of queries, not with its square. Heads lead here:
[B, N, L, K], logits and softmax float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint

# Queries of a block: at most this many, and fewer for very many keys, so that
# a block's logits stay below 32 MiB a head.
QUERY_BLOCK = 512
LOGITS_BLOCK = 2**23
# Name of what a backward pass needs, so that it need not attend again.
KEPT = "attention"
MASKED = -1e30  # logit of a key that does not count
_FLOAT32 = {"preferred_element_type": jnp.float32}


def attend(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  pad_count: int,
  length: Any,
  *,
  one_head: bool,
) -> jax.Array:
  """Attention in blocks of queries; arguments as in `attention.attention`.

  Args:
    q_BLNK: queries.
    k_BSNK: keys.
    v_BSNK: values.
    pad_count: number of equal keys and values that the last ones stand for.
    length: number of keys that are attended to; `None` for all.
    one_head: compute one head at a time.

  Returns:
    [B, L, N, K] in the dtype of q.
  """
  if isinstance(length, int):
    k_BSNK, v_BSNK, length = k_BSNK[:, :length], v_BSNK[:, :length], None
  q, k, v = (_heads_first(x) for x in (scaled(q_BLNK), k_BSNK, v_BSNK))
  if one_head:
    batch, heads = q.shape[:2]
    flat = [x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v)]
    length_N = None if length is None else jnp.repeat(length, heads)

    def of_head(head):
      q, k, v, length = head
      return _by_query_block(q, k, v, pad_count, length)[0]

    out = jax.lax.map(of_head, (*flat, length_N)).reshape(q.shape)
  else:
    out, _ = _by_query_block(q, k, v, pad_count, _over_heads(length))
  return kept(_heads_first(out))


def attend_part(
  q_BLNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, length_B: Any
) -> tuple[jax.Array, jax.Array]:
  """Attend to a part of the keys.

  Args:
    q_BLNK: queries.
    k_BSNK: keys of this part.
    v_BSNK: values of this part.
    length_B: number of these keys that are attended to, 0 or more; `None` for
      all.

  Returns:
    The attention output over this part alone, [B, L, N, K], and its
    log-sum-exp of logits, [B, L, N] float32, at most `MASKED` where no key is
    attended to.
  """
  q, k, v = (_heads_first(x) for x in (scaled(q_BLNK), k_BSNK, v_BSNK))
  out, lse_BNL1 = _by_query_block(q, k, v, 1, _over_heads(length_B))
  return _heads_first(out), _heads_first(lse_BNL1)[..., 0]


def part_gradients(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  length_B: Any,
  lse_BLN: jax.Array,
  out_BLNK: jax.Array,
  g_BLNK: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """This part's contribution to the gradients of attention to all keys.

  Args:
    q_BLNK: queries.
    k_BSNK: keys of this part.
    v_BSNK: values of this part.
    length_B: number of these keys that are attended to; `None` for all.
    lse_BLN: log-sum-exp of logits over all keys.
    out_BLNK: output of attention to all keys.
    g_BLNK: gradient of that output.

  Returns:
    The part's contribution to the gradient of q, and the gradients of its k
    and v, float32 (Dao et al. 2022, arXiv 2205.14135, appendix B.2).
  """
  scale = q_BLNK.shape[-1] ** -0.5
  q, k, v, g = (
    _heads_first(x) for x in (scaled(q_BLNK), k_BSNK, v_BSNK, g_BLNK)
  )
  lse = _heads_first(lse_BLN[..., None])
  products = out_BLNK.astype(jnp.float32) * g_BLNK.astype(jnp.float32)
  delta = _heads_first(products.sum(-1, keepdims=True))
  length = _over_heads(length_B)

  def one(carry, block):
    q, g, lse, delta = block
    logits = masked(jnp.einsum("...LK,...SK->...LS", q, k, **_FLOAT32), length)
    weights = jnp.exp(logits - lse)
    dP = jnp.einsum("...LK,...SK->...LS", g, v, **_FLOAT32)
    dS = (weights * (dP - delta)).astype(q.dtype)
    weights = weights.astype(q.dtype)
    dk = jnp.einsum("...LS,...LK->...SK", dS, q, **_FLOAT32)
    dv = jnp.einsum("...LS,...LK->...SK", weights, g, **_FLOAT32)
    dq = scale * jnp.einsum("...LS,...SK->...LK", dS, k, **_FLOAT32)
    return (carry[0] + dk, carry[1] + dv), dq

  queries = q.shape[-2]
  # Sums of queries beyond the end are large, so that their weights are 0.
  rows = [_blocks_of(x, k.shape[-2]) for x in (q, g, delta)]
  rows.insert(2, _blocks_of(lse, k.shape[-2], fill=-MASKED))
  zeros = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  (dk, dv), dq = jax.lax.scan(one, zeros, tuple(rows))
  dq = _merged(dq, queries)
  return _heads_first(dq), _heads_first(dk), _heads_first(dv)


def kept(x: jax.Array) -> jax.Array:
  """Name an array `KEPT` for rematerialization policies.

  Returns:
    The same array.
  """
  return ad_checkpoint.checkpoint_name(x, KEPT)


def scaled(q_BLNK: jax.Array) -> jax.Array:
  """Queries over the square root of the head size."""
  return q_BLNK * jnp.asarray(q_BLNK.shape[-1] ** -0.5, q_BLNK.dtype)


def repeat_last(x_BSNK: jax.Array, pad_count: int) -> jax.Array:
  """Write the last row out `pad_count` times, for kernels that cannot weigh
  it."""
  rest = jnp.repeat(x_BSNK[:, -1:], pad_count - 1, axis=1)
  return jnp.concatenate([x_BSNK, rest], 1)


def _heads_first(x: jax.Array) -> jax.Array:
  """[B, L, N, K] -> [B, N, L, K], and back."""
  return jnp.swapaxes(x, 1, 2)


def _over_heads(length_B: Any) -> Any:
  return None if length_B is None else length_B[:, None]


def masked(logits: jax.Array, length: Any) -> jax.Array:
  """Mask the logits of keys beyond a length.

  Args:
    logits: [..., L, S].
    length: number of keys, of the shape of the leading axes; `None` for all.

  Returns:
    The logits, `MASKED` where a key is not attended to.
  """
  if length is None:
    return logits
  places = jnp.arange(logits.shape[-1]).reshape(
    (1,) * (logits.ndim - 1) + (-1,)
  )
  return jnp.where(places < length[..., None, None], logits, MASKED)


def masked_lse(lse_BLN: jax.Array, length_B: Any) -> jax.Array:
  """Mask log-sum-exps of examples without valid keys, see `attend_part`."""
  if length_B is None:
    return lse_BLN
  return jnp.where((length_B > 0)[:, None, None], lse_BLN, MASKED)


def _attend(
  q: jax.Array, k: jax.Array, v: jax.Array, pad_count: int, length: Any
) -> tuple[jax.Array, jax.Array]:
  """Attention of [..., L, K] over [..., S, K], normalised after the sum.

  Also the logarithm of the sum of exponentials, [..., L, 1].
  """
  logits = jnp.einsum("...LK,...SK->...LS", q, k, **_FLOAT32)
  if pad_count > 1:
    weight_S = np.zeros(logits.shape[-1], np.float32)
    weight_S[-1] = math.log(pad_count)
    logits = logits + weight_S.reshape((1,) * (q.ndim - 1) + (-1,))
  logits = masked(logits, length)
  highest = logits.max(-1, keepdims=True)
  weights = jnp.exp(logits - highest)
  total = weights.sum(-1, keepdims=True)
  weights = weights.astype(v.dtype)
  values = jnp.einsum("...LS,...SK->...LK", weights, v, **_FLOAT32)
  return (values / total).astype(q.dtype), highest + jnp.log(total)


def _blocks(queries: int, keys: int) -> tuple[int, int]:
  """Number and size of the query blocks."""
  limit = max(1, min(QUERY_BLOCK, LOGITS_BLOCK // keys))
  count = -(-queries // limit)
  return count, -(-queries // count)


def _blocks_of(x: jax.Array, keys: int, fill: float = 0.0) -> jax.Array:
  """[..., L, K] -> [blocks, ..., L of a block, K], filled up."""
  queries = x.shape[-2]
  count, size = _blocks(queries, keys)
  padding = [(0, 0)] * (x.ndim - 2) + [(0, count * size - queries), (0, 0)]
  padded = jnp.pad(x, padding, constant_values=fill)
  split = padded.reshape(*x.shape[:-2], count, size, x.shape[-1])
  return jnp.moveaxis(split, -3, 0)


def _merged(blocks: jax.Array, queries: int) -> jax.Array:
  """The way back from `_blocks_of`."""
  x = jnp.moveaxis(blocks, 0, -3)
  x = x.reshape(*x.shape[:-3], -1, x.shape[-1])
  return x[..., :queries, :]


def _by_query_block(
  q: jax.Array, k: jax.Array, v: jax.Array, pad_count: int, length: Any
) -> tuple[jax.Array, jax.Array]:
  """`_attend` on [..., L, K], a block of queries after the other."""
  queries, keys = q.shape[-2], k.shape[-2]
  if _blocks(queries, keys)[0] == 1:
    return _attend(q, k, v, pad_count, length)
  # Recomputed in the backward pass: weights of one block at a time.
  one = jax.checkpoint(lambda block: _attend(block, k, v, pad_count, length))
  out, lse = jax.lax.map(one, _blocks_of(q, keys))
  return _merged(out, queries), _merged(lse, queries)
