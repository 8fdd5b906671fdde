"""Norms, modulation and the MLP shared by both towers.

Norms and modulation compute in float32 and return the compute dtype they are
told (Ovi rounds to bfloat16 inside them; the released weights do not need it).
"""

import math
from typing import Any
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.models import remat

XAVIER = nn.initializers.xavier_uniform()
SMALL = nn.initializers.normal(0.02)


class Modulation(NamedTuple):
  """Shift, scale and gate of one branch, from the time embedding.

  Arrays are [B, T, D] float32. T = 1 applies to all tokens; T = 2 to given
  tokens, where `given_BL` is true, and to generated ones.
  """

  shift: jax.Array
  scale: jax.Array
  gate: jax.Array
  given_BL: jax.Array | None


def normalize(x: jax.Array, eps: float) -> jax.Array:
  """Zero mean and unit variance over the last axis, float32."""
  x = x.astype(jnp.float32)
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  return centred * jax.lax.rsqrt(variance + eps)


def broadcast_per_token(
  x_BTD: jax.Array, given_BL: jax.Array | None
) -> jax.Array:
  """Broadcast values of given and generated tokens to all tokens.

  Args:
    x_BTD: T = 1 for all tokens, or T = 2 for given and generated tokens.
    given_BL: bool, whether a token is given; `None` with T = 1.

  Returns:
    [B, 1, D] or [B, L, D].
  """
  if given_BL is None:
    return x_BTD
  return jnp.where(given_BL[..., None], x_BTD[:, :1], x_BTD[:, 1:])


def modulate(
  x_BLD: jax.Array,
  shift_BTD: jax.Array,
  scale_BTD: jax.Array,
  given_BL: jax.Array | None,
  eps: float,
) -> jax.Array:
  """Normalize tokens, then scale and shift them, see `Modulation`.

  Returns:
    normalize(x) (1 + scale) + shift, [B, L, D] float32.
  """
  shift, scale = (
    broadcast_per_token(x, given_BL) for x in (shift_BTD, scale_BTD)
  )
  return normalize(x_BLD, eps) * (1.0 + scale) + shift


def gated_residual(
  x_BLD: jax.Array,
  branch_BLD: jax.Array,
  gate_BTD: jax.Array,
  given_BL: jax.Array | None,
) -> jax.Array:
  """Add a gated branch to the residual stream, see `Modulation`.

  Returns:
    x + gate branch, [B, L, D] in the dtype of x; the sum is float32.
  """
  gate = broadcast_per_token(gate_BTD, given_BL)
  gated = branch_BLD.astype(jnp.float32) * gate
  return (x_BLD.astype(jnp.float32) + gated).astype(x_BLD.dtype)


def _over_last(module: nn.Module, name: str, init: Any, x: jax.Array) -> Any:
  """A parameter over the last axis of x, float32, in the rank of x."""
  parameter: Any = module.param(name, init, x.shape[-1:])
  shape = (1,) * (x.ndim - 1) + x.shape[-1:]
  return parameter.astype(jnp.float32).reshape(shape)


class RMSNorm(nn.Module):
  """Root-mean-square norm with a scale over the last axis."""

  eps: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = _over_last(self, "scale", nn.initializers.ones, x)
    x = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
    return (x * inverse * scale).astype(self.dtype)


class LayerNorm(nn.Module):
  """Layer norm with scale and bias over the last axis."""

  eps: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = _over_last(self, "scale", nn.initializers.ones, x)
    bias = _over_last(self, "bias", nn.initializers.zeros, x)
    return (normalize(x, self.eps) * scale + bias).astype(self.dtype)


class MLP(nn.Module):
  """Two dense layers with an activation between them."""

  hidden: int
  out: int
  activation: Any
  kernel_init: Any
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = {"kernel_init": self.kernel_init, "dtype": self.dtype}
    x = remat.named(nn.Dense(self.hidden, name="in", **dense)(x), remat.MLP)
    return nn.Dense(self.out, name="out", **dense)(self.activation(x))


def chunked_apply(
  module: nn.Module, x_BLD: jax.Array, limit: int | None
) -> jax.Array:
  """Apply a token-wise module to chunks of tokens, to limit memory.

  Args:
    module: called with [tokens, D], or with all of `x_BLD`.
    x_BLD: tokens.
    limit: maximum number of tokens in a chunk; `None` for all.

  Returns:
    [B, L, features of the module].
  """
  batch, length, _ = x_BLD.shape
  tokens = batch * length
  if limit is None or tokens <= limit or module.is_initializing():
    return module(x_BLD)
  count = -(-tokens // limit)
  size = -(-tokens // count)
  x = einops.rearrange(x_BLD, "B L D -> (B L) D")
  x = jnp.pad(x, ((0, count * size - tokens), (0, 0)))
  _, y = nn.scan(
    lambda self, carry, part: (carry, self(part)),
    variable_broadcast="params",
    split_rngs={"params": False},
  )(module, None, einops.rearrange(x, "(N S) D -> N S D", N=count))
  y = einops.rearrange(y, "N S D -> (N S) D")[:tokens]
  return einops.rearrange(y, "(B L) D -> B L D", B=batch)


def gelu(x: jax.Array) -> jax.Array:
  """GELU in its tanh form, computed in float32; dtype is kept.

  Written with exp, x / (1 + e^-2u), which XLA computes faster on a CPU than
  tanh. The cap keeps the gradient finite where the value is zero anyway.
  """
  wide = x.astype(jnp.float32)
  u = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
  return (wide / (1 + jnp.exp(jnp.minimum(-2 * u, 40.0)))).astype(x.dtype)
