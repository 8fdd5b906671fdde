"""Flash attention for NVIDIA GPUs: cuDNN's, through JAX; 16-bit only."""

from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax.attention import blockwise

# JAX's primitives whose results, the output and the statistics of the softmax,
# the backward pass needs. JAX gives the latter no name of its own.
FORWARD_PRIMITIVES = (
  "dot_product_attention_fwd",
  "dot_product_attention_fwd_wrapper",
)


def attend(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  pad_count: int,
  length: Any,
) -> jax.Array:
  """cuDNN's flash attention; arguments as in `attention.attention`.

  Returns:
    [B, L, N, K] in the dtype of q.
  """
  k, v = (blockwise.repeat_last(x, pad_count) for x in (k_BSNK, v_BSNK))
  length_B = None
  if length is not None:
    length_B = jnp.broadcast_to(jnp.int32(length), q_BLNK.shape[:1])
  return jax.nn.dot_product_attention(
    q_BLNK, k, v, key_value_seq_lengths=length_B, implementation="cudnn"
  )


def attend_part(
  q_BLNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, length_B: Any
) -> tuple[jax.Array, jax.Array]:
  """See `blockwise.attend_part`; without a gradient of its own."""
  lengths = None if length_B is None else jnp.maximum(length_B, 1)
  out, lse_BLN = jax.nn.dot_product_attention(
    q_BLNK,
    k_BSNK,
    v_BSNK,
    key_value_seq_lengths=lengths,
    implementation="cudnn",
    return_residual=True,
  )
  return out, blockwise.masked_lse(lse_BLN, length_B)
