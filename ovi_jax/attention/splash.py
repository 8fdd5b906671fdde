"""Flash attention for TPUs: JAX's splash kernel, fitted to our lengths.

Queries and keys are filled up to whole blocks; what is not to be attended to
has another segment number. Sizes of blocks come from a table, by kind of chip
and number of keys (`splash_blocks.json`; `benchmarks/splash_blocks.py`
searches). On a CPU the kernel is interpreted, which is for tests.
"""

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from ovi_jax import cli
from ovi_jax.attention import blockwise

LANES = 128  # sizes of blocks are multiples
TABLE = "splash_blocks.json"
ANY = "any"  # chip of the rows for those that have none
SIZES = ("queries", "keys", "keys_at_once")  # limits of a row
_OUT, _IN = 0, 1  # segments


def attend(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  pad_count: int,
  length: Any,
) -> jax.Array:
  """JAX's splash attention for TPUs; arguments as in `attention.attention`.

  Returns:
    [B, L, N, K] in the dtype of q.
  """
  k, v = (blockwise.repeat_last(x, pad_count) for x in (k_BSNK, v_BSNK))
  return _run(q_BLNK, k, v, length, lse=False)


def attend_part(
  q_BLNK: jax.Array, k_BSNK: jax.Array, v_BSNK: jax.Array, length_B: Any
) -> tuple[jax.Array, jax.Array]:
  """See `blockwise.attend_part`; without a gradient of its own."""
  out, lse_BNL = _run(q_BLNK, k_BSNK, v_BSNK, length_B, lse=True)
  return out, blockwise.masked_lse(jnp.swapaxes(lse_BNL, 1, 2), length_B)


def _run(q_BLNK, k_BSNK, v_BSNK, length: Any, lse: bool) -> Any:
  queries, keys = q_BLNK.shape[1], k_BSNK.shape[1]
  kernel, (rows, columns) = _kernel(
    cli.target(), queries, keys, q_BLNK.shape[2], lse
  )
  q = blockwise.scaled(q_BLNK)

  def filled(x_BLNK: jax.Array, size: int) -> jax.Array:
    heads_first = jnp.swapaxes(x_BLNK, 1, 2)
    missing = size - heads_first.shape[2]
    return jnp.pad(heads_first, ((0, 0), (0, 0), (0, missing), (0, 0)))

  length = keys if length is None else length
  length_B = jnp.broadcast_to(length, q.shape[:1])
  in_BS = jnp.arange(columns)[None] < length_B[:, None]
  segments = kernels.SegmentIds(
    q=jnp.full((q.shape[0], rows), _IN, jnp.int32),
    kv=jnp.where(in_BS, _IN, _OUT).astype(jnp.int32),
  )
  arrays = filled(q, rows), filled(k_BSNK, columns), filled(v_BSNK, columns)
  found = jax.vmap(kernel)(*arrays, segments)
  # With the log-sum-exp: the output, and a tuple of what else is kept.
  out = found[0] if lse else found
  out_BLNK = jnp.swapaxes(out[:, :, :queries], 1, 2)
  return (out_BLNK, found[1][0][:, :, :queries]) if lse else out_BLNK


def _kernel(
  target: str, queries: int, keys: int, heads: int, lse: bool
) -> tuple[Any, tuple[int, int]]:
  """The kernel, and the lengths that queries and keys are filled up to."""
  (block_q, rows), (block_kv, columns) = blocks(target, queries, keys)
  compute = _divisor(block_kv, limits_of(target, keys)["keys_at_once"])
  sizes = kernels.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_kv_compute=compute,
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_kv_dkv_compute=compute,
    use_fused_bwd_kernel=True,
  )
  mask = masks.MultiHeadMask([masks.FullMask((rows, columns))] * heads)
  kernel = kernels.make_splash_mha(
    mask,
    block_sizes=sizes,
    save_residuals=lse,
    residual_checkpoint_name=blockwise.KEPT,
    head_shards=1,
    q_seq_shards=1,
    interpret=target == "cpu",
  )
  return kernel, (rows, columns)


def blocks(
  target: str, queries: int, keys: int
) -> tuple[tuple[int, int], tuple[int, int]]:
  """For a kind of chip: `block` of the queries, and of the keys."""
  limits = limits_of(target, keys)
  return block(queries, limits["queries"]), block(keys, limits["keys"])


def blocks_of_filled(target: str, queries: int, keys: int) -> tuple[int, int]:
  """The blocks that `blocks` chose, from the lengths that it filled up to.

  A larger block that divides the filled length would have been taken.
  """
  limits = limits_of(target, keys)
  return _divisor(queries, limits["queries"]), _divisor(keys, limits["keys"])


def block(length: int, limit: int) -> tuple[int, int]:
  """The block for a length: least filling first, then the largest block.

  Args:
    length: of the sequence.
    limit: the largest block, a multiple of `LANES`.

  Returns:
    The block, and the length filled up to whole blocks. Up to 2 % of filling
    more than needed is taken for larger blocks.
  """
  sizes = np.arange(LANES, limit + 1, LANES)
  filled = -(-length // sizes) * sizes
  good = filled <= 1.02 * filled.min()
  size = int(sizes[good].max())
  return size, -(-length // size) * size


def _divisor(size: int, limit: int) -> int:
  """The largest multiple of `LANES` up to the limit that divides a block."""
  return max(
    n for n in range(LANES, min(size, limit) + 1, LANES) if size % n == 0
  )


def limits_of(target: str, keys: int) -> Mapping[str, int]:
  """The largest blocks, see `SIZES`.

  Args:
    target: kind of chip, as `device_kind` names it.
    keys: how many there are. A row of the table holds up to a number of keys,
      the last one of a chip for all.
  """
  rows = [row for row in table() if row["chip"] == target]
  rows = rows or [row for row in table() if row["chip"] == ANY]
  row = next(r for r in rows if r["up_to"] is None or keys <= r["up_to"])
  return {name: row[name] for name in SIZES}


@functools.cache
def table() -> list[dict[str, Any]]:
  """The rows of the table, of one chip from few keys to many."""
  file = importlib.resources.files("ovi_jax.attention") / TABLE
  return json.loads(file.read_text("utf-8"))
