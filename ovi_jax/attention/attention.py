"""Softmax attention behind one function, with a backend for each platform.

Every backend takes q_BLNK, k_BSNK, v_BSNK and returns the weighted values in
the dtype of q, scaled by 1/sqrt(K). Logits and softmax are float32. The last
key and value may stand for several equal ones: the padding of a prompt is
attended to (Ovi does not mask it), but it is all the same. Keys beyond a
length, where one is given, are not attended to.

  xla       query blocks, so memory grows with L, not L²; any platform
  xla_head  the same, one head at a time: blocks stay in a CPU's cache
  splash    JAX's flash kernel for TPUs; heads in multiples of 128
  cudnn     flash attention of cuDNN through JAX; NVIDIA GPUs, 16-bit only

On a mesh every device runs its backend on what it holds; `context` makes it so
that this is all it needs.
"""

import functools
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ovi_jax import config as config_lib
from ovi_jax.attention import blockwise
from ovi_jax.attention import context
from ovi_jax.attention import cudnn
from ovi_jax.attention import splash
from ovi_jax.sharding import logical_axes

# The choice of "auto".
PLATFORM_BACKEND: Mapping[str, str] = {
  "cpu": "xla_head",
  "cuda": "cudnn",
  "tpu": "splash",
}


class Backend(NamedTuple):
  """Implementation of attention on one device.

  Attributes:
    attend: (q, k, v, pad_count, length) -> values [B, L, N, K]; `length` is
      `None`, a number, or one for each example.
    attend_part: (q, k, v, length_B) -> values and log-sum-exp, see
      `blockwise.attend_part`.
    weights_pad_key: weights the last key by `pad_count`; other backends are
      given the repeated keys.
  """

  attend: Callable[..., jax.Array]
  attend_part: Callable[..., tuple[jax.Array, jax.Array]]
  weights_pad_key: bool = False


_XLA = functools.partial(blockwise.attend, one_head=False)
_XLA_HEAD = functools.partial(blockwise.attend, one_head=True)
BACKENDS: Mapping[str, Backend] = {
  "xla": Backend(_XLA, blockwise.attend_part, True),
  "xla_head": Backend(_XLA_HEAD, blockwise.attend_part, True),
  "splash": Backend(splash.attend, splash.attend_part),
  "cudnn": Backend(cudnn.attend, cudnn.attend_part),
}


def resolve(
  backend: str, platform: str, dtype: jnp.dtype, head_dim: int
) -> str:
  """Resolve the name of a backend for a platform.

  Args:
    backend: "auto" or a key of `BACKENDS`.
    platform: see `cli.platform`.
    dtype: compute dtype.
    head_dim: K of every attention.

  Returns:
    A key of `BACKENDS`. "auto" takes the entry of `PLATFORM_BACKEND`, or "xla"
    where that cannot run.

  Raises:
    ValueError: the name is unknown, or the backend does not support the
      platform, dtype or head size.
  """
  config_lib.check(
    config_lib.invalid_choice("attention", backend, ["auto", *BACKENDS]), ""
  )
  # cuDNN's flash attention is for 16-bit numbers and heads up to 128.
  fits = {
    "cudnn": platform == "cuda"
    and dtype.itemsize == 2
    and head_dim % 8 == 0
    and head_dim <= 128,
    "splash": platform in ("tpu", "cpu") and head_dim % splash.LANES == 0,
  }
  needs = {
    "cudnn": "an NVIDIA GPU (Ampere or newer), bfloat16 and heads up to 128",
    "splash": f"a TPU and heads in multiples of {splash.LANES}",
  }
  if not fits.get(backend, True):
    raise ValueError(
      f"attention {backend} needs {needs[backend]}, got {platform}, {dtype},"
      f" {head_dim}; choose auto"
    )
  if backend != "auto":
    return backend
  choice = PLATFORM_BACKEND.get(platform, "xla")
  return choice if fits.get(choice, True) else "xla"


def attention(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  v_BSNK: jax.Array,
  backend: str,
  pad_count: int = 1,
  length: jax.Array | int | None = None,
  *,
  letters: tuple[str, str] = ("BLNK", "BSNK"),
  strategy: str = context.ULYSSES,
) -> jax.Array:
  """Softmax attention, softmax(q k^T / sqrt(K)) v.

  Args:
    q_BLNK: queries.
    k_BSNK: keys.
    v_BSNK: values.
    backend: a key of `BACKENDS`.
    pad_count: number of equal keys and values that the last ones stand for.
    length: number of keys that are attended to, for all examples or for each;
      `None` for all keys. Cannot be combined with `pad_count`.
    letters: axes of queries, and of keys and values, for sharding on the mesh,
      see `sharding.logical_axes`.
    strategy: context parallelism for tokens that are split over the mesh, a
      key of `context.STRATEGIES`.

  Returns:
    [B, L, N, K] in the dtype of q; 0 where no key is attended to.

  Raises:
    ValueError: both `pad_count` and `length` are given.
  """
  if length is not None and pad_count > 1:
    raise ValueError("attention takes `pad_count` or `length`, not both")
  static = isinstance(length, int | None)
  some = length if static else jnp.maximum(length, 1)
  out = _placed(
    q_BLNK, k_BSNK, v_BSNK, backend, pad_count, some, letters, strategy
  )
  return out if static else jnp.where(length[:, None, None, None] > 0, out, 0)


def _placed(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  backend: str,
  pad_count: int,
  length: Any,
  letters: tuple[str, str],
  strategy: str,
) -> jax.Array:
  """Attend where the arrays are."""
  local = BACKENDS[backend]
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return local.attend(q, k, v, pad_count, length)
  q = logical_axes.constrain(q, letters[0])
  k, v = (logical_axes.constrain(x, letters[1]) for x in (k, v))
  where_q, where_k = (
    logical_axes.spec(axes, x.shape, mesh.shape, logical_axes.ACTIVATIONS)
    for axes, x in zip(letters, (q, k), strict=True)
  )
  if where_k[1] and not where_q[1]:
    # Few queries: partial sums over split keys are little to send, and XLA
    # writes them itself.
    return _XLA(q, k, v, pad_count, length)

  def on_device(q, k, v, length_B):
    count = length if length_B is None else length_B
    if where_k[1]:
      return context.STRATEGIES[strategy](local, q, k, v, count)
    return local.attend(q, k, v, pad_count, count)

  length_B = length if isinstance(length, jax.Array) else None
  return jax.shard_map(
    on_device,
    in_specs=(where_q, where_k, where_k, jax.P(where_q[0])),
    out_specs=where_q,
    check_vma=False,  # kernels do not say what varies
  )(q, k, v, length_B)


def attention_probs(
  q_BLNK: jax.Array,
  k_BSNK: jax.Array,
  length: jax.Array | int | None = None,
) -> jax.Array:
  """The weights that `attention` applies to the values.

  Args:
    q_BLNK: queries.
    k_BSNK: keys.
    length: number of keys that are attended to, for each example or for all
      (then S is this number); `None` for all keys.

  Returns:
    [B, N, L, S] float32; each row sums to 1.
  """
  if isinstance(length, int):
    k_BSNK, length = k_BSNK[:, :length], None
  logits = jnp.einsum(
    "BLNK,BSNK->BNLS",
    blockwise.scaled(q_BLNK),
    k_BSNK,
    preferred_element_type=jnp.float32,
  )
  if length is not None:
    logits = blockwise.masked(logits, length[:, None])
  return jax.nn.softmax(logits)
