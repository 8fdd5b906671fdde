"""Flash attention for TPUs: JAX's splash kernel, fitted to our lengths.

Queries and keys are padded to whole blocks. Padded and masked keys have another
segment id; without either, no segment ids are passed. The largest blocks come
from a table, by kind of chip and number of keys (`splash_blocks.json`;
`benchmarks/splash_blocks.py` searches), the blocks of a length from
`block_sizes`. On a CPU the kernel is interpreted, which is for tests.
"""

import functools
import importlib.resources
import json
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
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
# Limits of a row of the table, as `kernels.BlockSizes` names them: queries and
# keys in VMEM, and keys of one matmul, of the forward and the backward kernel.
SIZES = (
  "block_q",
  "block_kv",
  "block_kv_compute",
  "block_q_dkv",
  "block_kv_dkv",
  "block_kv_dkv_compute",
)
# Fewest keys of one matmul, where there are more than `LANES`. With 128, the
# forward kernel takes 1.6 to 2 times as many instructions for a key as with
# 1024 (lab notebook, "Block sizes of the TPU kernel").
MIN_COMPUTE = 256
# What each matmul, and each block in VMEM, costs beyond its own size, in keys
# (or queries): rescaling of partial sums; reloads, and the partial gradients of
# queries, of which the backward kernel writes one for each block of keys. The
# numbers fit the compiled kernels' instructions (the same section).
_COMPUTE_OVERHEAD, _BLOCK_OVERHEAD = 192, 64
_OUT, _IN = 0, 1  # segments


class Blocks(NamedTuple):
  """Blocks of both kernels, and the padded lengths that they divide."""

  sizes: kernels.BlockSizes
  queries: int
  keys: int


class _Axis(NamedTuple):
  """Blocks of one axis: the estimated cost first, for comparison."""

  cost: float
  length: int
  sizes: tuple[tuple[str, int], ...]


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
  batch, queries, heads, _ = q_BLNK.shape
  target, keys = cli.target(), k_BSNK.shape[1]
  blocks = block_sizes(target, queries, keys, q_BLNK.dtype.itemsize)
  kernel = _kernel(target, blocks, heads, lse)

  def padded(x_BLNK: jax.Array, size: int) -> jax.Array:
    heads_first = jnp.swapaxes(x_BLNK, 1, 2)
    missing = size - heads_first.shape[2]
    return jnp.pad(heads_first, ((0, 0), (0, 0), (0, missing), (0, 0)))

  q = padded(blockwise.scaled(q_BLNK), blocks.queries)
  k, v = (padded(x, blocks.keys) for x in (k_BSNK, v_BSNK))
  segments = _segments(batch, blocks, keys if length is None else length)
  found = jax.vmap(kernel)(q, k, v, segments)
  # With the log-sum-exp: the output, and a tuple of what else is kept.
  out = found[0] if lse else found
  out_BLNK = jnp.swapaxes(out[:, :, :queries], 1, 2)
  return (out_BLNK, found[1][0][:, :, :queries]) if lse else out_BLNK


def _segments(batch: int, blocks: Blocks, length: Any) -> Any:
  """Segment ids that mask keys beyond a length; `None` if all are attended."""
  if isinstance(length, int) and length >= blocks.keys:
    return None
  length_B = jnp.broadcast_to(length, (batch,))
  in_BS = jnp.arange(blocks.keys)[None] < length_B[:, None]
  return kernels.SegmentIds(
    q=jnp.full((batch, blocks.queries), _IN, jnp.int32),
    kv=jnp.where(in_BS, _IN, _OUT).astype(jnp.int32),
  )


def _kernel(target: str, blocks: Blocks, heads: int, lse: bool) -> Any:
  mask = masks.FullMask((blocks.queries, blocks.keys))
  return kernels.make_splash_mha(
    masks.MultiHeadMask([mask] * heads),
    block_sizes=blocks.sizes,
    save_residuals=lse,
    residual_checkpoint_name=blockwise.KEPT,
    head_shards=1,
    q_seq_shards=1,
    interpret=target == "cpu",
  )


def block_sizes(
  target: str, queries: int, keys: int, itemsize: int = 2
) -> Blocks:
  """Choose blocks by estimated cost: padding against the cost of small blocks.

  Args:
    target: kind of chip, as `device_kind` names it.
    queries: number of queries of a device.
    keys: number of keys of a device.
    itemsize: bytes of a number of them; the limits of the table are for 2, and
      halved for more.

  Returns:
    Blocks within the limits; of `MIN_COMPUTE` keys at least for one matmul, if
    there are more keys than `LANES`.
  """
  limits = {
    name: limit if itemsize <= 2 else limit // 2
    for name, limit in limits_of(target, keys).items()
  }
  return _block_sizes(tuple(limits.items()), queries, keys)


@functools.lru_cache
def _block_sizes(
  limits: tuple[tuple[str, int], ...], queries: int, keys: int
) -> Blocks:
  sizes = dict(limits)
  rows = min(_query_blocks(sizes, n) for n in _lengths(sizes, queries))
  columns = min(
    found
    for length in _lengths(sizes, keys)
    for found in _key_blocks(sizes, length)
  )
  chosen: dict[str, Any] = dict(rows.sizes + columns.sizes)
  return Blocks(
    kernels.BlockSizes(**chosen, use_fused_bwd_kernel=True),
    rows.length,
    columns.length,
  )


def _lengths(limits: Mapping[str, int], length: int) -> Iterator[int]:
  """Padded lengths: from the least to the next multiple of every limit."""
  least = -(-length // LANES) * LANES
  return iter(range(least, least + max(limits.values()), LANES))


def _query_blocks(limits: Mapping[str, int], length: int) -> _Axis:
  sizes = {
    name: max(_divisors(length, limits[name]))
    for name in ("block_q", "block_q_dkv")
  }
  each = [1 + _BLOCK_OVERHEAD / size for size in sizes.values()]
  return _Axis(length * sum(each), length, tuple(sizes.items()))


def _key_blocks(limits: Mapping[str, int], length: int) -> Iterator[_Axis]:
  """Blocks of a padded number of keys; none if all matmuls were too small."""
  cost, sizes = 0.0, {}
  for name in ("block_kv", "block_kv_dkv"):
    compute_name = f"{name}_compute"
    found = [
      (_COMPUTE_OVERHEAD / compute + _BLOCK_OVERHEAD / block, block, compute)
      for block in _divisors(length, limits[name])
      for compute in _divisors(block, limits[compute_name])
      if compute >= min(MIN_COMPUTE, length)
    ]
    if not found:
      return
    overhead, block, compute = min(found)
    cost += length * (1 + overhead)
    sizes |= {name: block, compute_name: compute}
  yield _Axis(cost, length, tuple(sizes.items()))


def _divisors(size: int, limit: int) -> list[int]:
  """Multiples of `LANES` up to the limit that divide a size."""
  return [n for n in range(LANES, min(size, limit) + 1, LANES) if size % n == 0]


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
