"""Attention between tokens that are sharded over the mesh axis `context`.

  ulysses     all-to-all from token to head sharding and back; the size of the
              axis must divide the heads (Jacobs et al. 2023, arXiv 2309.14509)
  ring        keys and values rotate over the devices by collective permute; any
              size of the axis (Liu et al. 2023, arXiv 2310.01889)

These functions run on each device of a `shard_map`.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import config as config_lib
from ovi_jax.attention import blockwise

AXIS = "context"
ULYSSES, RING = "ulysses", "ring"


def ulysses(
  backend: Any, q: jax.Array, k: jax.Array, v: jax.Array, length: Any
) -> jax.Array:
  """All-to-all context parallelism: each device has all tokens of some heads.

  Args:
    backend: implementation on one device, see `attention.Backend`.
    q: this device's queries [B, L, N, K].
    k: its keys [B, S, N, K].
    v: its values [B, S, N, K].
    length: number of keys of all devices that are attended to, see
      `attention.attention`.

  Returns:
    This device's output [B, L, N, K].

  Raises:
    ValueError: the devices of the axis do not divide the heads.
  """
  heads, devices = q.shape[2], jax.lax.axis_size(AXIS)
  if heads % devices:
    raise ValueError(
      f"ulysses cannot shard {heads} heads over {devices} devices of the mesh"
      f" axis {AXIS}: the number of devices must divide the heads; use another"
      " size, or context_parallelism=ring"
    )
  exchange = functools.partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True)
  q, k, v = (exchange(x, split_axis=2, concat_axis=1) for x in (q, k, v))
  out = backend.attend(q, k, v, 1, length)
  return exchange(out, split_axis=1, concat_axis=2)


def ring(
  backend: Any, q: jax.Array, k: jax.Array, v: jax.Array, length: Any
) -> jax.Array:
  """Ring attention: keys and values rotate over the devices.

  Args:
    backend: implementation on one device, see `attention.Backend`.
    q: this device's queries [B, L, N, K].
    k: its keys [B, S, N, K].
    v: its values [B, S, N, K].
    length: number of keys of all devices that are attended to, see
      `attention.attention`.

  Returns:
    This device's output [B, L, N, K].
  """
  if length is not None:
    length = jnp.broadcast_to(jnp.asarray(length, jnp.int32), q.shape[:1])
  return _ring(backend.attend_part, q, k, v, length)


STRATEGIES: Mapping[str, Callable[..., jax.Array]] = {
  ULYSSES: ulysses,
  RING: ring,
}


def check(sizes: Mapping[str, int], heads: int, strategy: str) -> None:
  """Check that a mesh can divide the heads.

  Args:
    sizes: devices along each mesh axis.
    heads: number of heads of every tower.
    strategy: a key of `STRATEGIES`.

  Raises:
    ValueError: the strategy is unknown, or the heads cannot be divided.
  """
  config_lib.check(
    config_lib.invalid_choice("context_parallelism", strategy, STRATEGIES), ""
  )
  tensor, context = sizes.get("tensor", 1), sizes.get(AXIS, 1)
  parts = tensor * (context if strategy == ULYSSES else 1)
  if heads % parts:
    good = [n for n in range(1, heads + 1) if heads % n == 0]
    by = f"tensor {tensor}" + f" x context {context}" * (parts != tensor)
    raise ValueError(
      f"mesh: {heads} heads cannot be divided by {by}; use a divisor of"
      f" {heads} ({', '.join(map(str, good))})"
      + "; or use context_parallelism=ring, which does not shard heads"
      * (parts != tensor and heads % tensor == 0)
    )


def check_training(sizes: Mapping[str, int], heads: int, strategy: str) -> None:
  """Check that training on an accelerator does not use ring without need.

  The backward pass of ring attention is not a flash kernel: it writes the
  logits of each block to HBM.

  Args:
    sizes: devices along each mesh axis.
    heads: number of heads of every tower.
    strategy: a key of `STRATEGIES`.

  Raises:
    ValueError: `ULYSSES` could divide the heads.
  """
  tensor, context = sizes.get("tensor", 1), sizes.get(AXIS, 1)
  if strategy == RING and context > 1 and heads % (tensor * context) == 0:
    raise ValueError(
      "context_parallelism=ring is slower than ulysses in training, since its"
      f" backward pass is not a flash kernel, and {heads} heads can be divided"
      f" by tensor {tensor} x context {context}; set"
      " context_parallelism=ulysses"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(part: Any, q, k, v, length_B: Any) -> jax.Array:
  return _ring_forward(part, q, k, v, length_B)[0]


def _ring_forward(part: Any, q, k, v, length_B: Any) -> Any:
  count = jax.lax.axis_size(AXIS)

  def attend(carry, step):
    (k, v), out, lse = carry
    more, part_lse = part(q, k, v, _valid_keys(length_B, step, k.shape[1]))
    total = jnp.logaddexp(lse, part_lse)
    old, new = (jnp.exp(x - total)[..., None] for x in (lse, part_lse))
    return old * out + new * more.astype(jnp.float32), total

  def visit(carry, step):
    # The next keys are sent while these are attended to.
    following = _pass_on(carry[0])
    return (following, *attend(carry, step)), None

  out = jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32)
  lse = jnp.full(q.shape[:-1], blockwise.MASKED, jnp.float32)
  carry = (k, v), out, lse
  carry, _ = jax.lax.scan(visit, carry, jnp.arange(count - 1))
  out, lse = attend(carry, count - 1)
  out, lse = blockwise.kept(out.astype(q.dtype)), blockwise.kept(lse)
  return out, (q, k, v, length_B, out, lse)


def _ring_backward(part: Any, kept: Any, g: jax.Array) -> Any:
  """The same rotation; gradients of keys and values are sent along."""
  del part  # recomputed block by block, whatever the kernel
  q, k, v, length_B, out, lse = kept
  count = jax.lax.axis_size(AXIS)

  def visit(carry, step):
    (k, v), (dk, dv), dq = carry
    mine_B = _valid_keys(length_B, step, k.shape[1])
    more = blockwise.part_gradients(q, k, v, mine_B, lse, out, g)
    dq = dq + more[0]
    changes = dk + more[1], dv + more[2]
    return (_pass_on((k, v)), _pass_on(changes), dq), None

  zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k, v, q))
  carry, _ = jax.lax.scan(
    visit, ((k, v), zeros[:2], zeros[2]), jnp.arange(count)
  )
  _, (dk, dv), dq = carry
  dq, dk, dv = (x.astype(q.dtype) for x in (dq, dk, dv))
  return dq, dk, dv, None


_ring.defvjp(_ring_forward, _ring_backward)


def _valid_keys(length_B: Any, step: Any, size: int) -> Any:
  """Number of valid keys in the shard that this device holds in a ring step."""
  if length_B is None:
    return None
  source = (jax.lax.axis_index(AXIS) + step) % jax.lax.axis_size(AXIS)
  return jnp.clip(length_B - source * size, 0, size)


def _pass_on(arrays: Any) -> Any:
  """Send arrays to the previous device of the ring; receive from the next."""
  count = jax.lax.axis_size(AXIS)
  circle = [(i, (i - 1) % count) for i in range(count)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, circle), arrays)
