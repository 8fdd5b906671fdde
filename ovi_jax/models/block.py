"""One block of one tower, in the three parts that fusion interleaves.

Self-attention; cross-attention, to the text and to the other tower; feed-
forward. Source: Ovi, modules/model.py and modules/fusion.py; paper, section
3.1. Numbers: see `dit`.
"""

from typing import Any
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import ad_checkpoint

from ovi_jax import axes
from ovi_jax.models import attention
from ovi_jax.models import dit
from ovi_jax.models import layers
from ovi_jax.models import rope

# Collection of how tokens attend to the other tower's, see `Block`.
MAPS = "maps"


class KeysValues(NamedTuple):
  """Keys and values of one attention, [B, S, N, K]."""

  keys: jax.Array
  values: jax.Array


class Attention(nn.Module):
  """Projections of one attention; q and k are normalised over all heads.

  With `fusion`, the same queries and output also serve a second attention,
  over the other tower's tokens, through keys and values of its own.
  """

  config: dit.DiTConfig
  dtype: jnp.dtype
  backend: str
  fusion: bool = False
  fusion_init: Any = layers.XAVIER

  def setup(self):
    width, eps = self.config.width, self.config.eps

    def dense(init=layers.XAVIER) -> nn.Dense:
      return nn.Dense(width, kernel_init=init, dtype=self.dtype)

    self.query, self.key, self.value, self.out = (dense() for _ in range(4))
    self.query_norm = layers.RMSNorm(eps, self.dtype)
    self.key_norm = layers.RMSNorm(eps, self.dtype)
    if self.fusion:
      self.fusion_norm = layers.LayerNorm(eps, self.dtype)
      self.fusion_key = dense(self.fusion_init)
      self.fusion_value = dense(self.fusion_init)
      self.fusion_key_norm = layers.RMSNorm(eps, self.dtype)

  def heads(self, x_BLD: jax.Array) -> jax.Array:
    heads = self.config.heads
    x = einops.rearrange(x_BLD, "B L (N K) -> B L N K", N=heads)
    return axes.constrain(x, "BLNK")

  def queries(self, x_BLD: jax.Array) -> jax.Array:
    return self.heads(self.query_norm(self.query(x_BLD)))

  def keys_values(self, x_BSD: jax.Array) -> KeysValues:
    keys = self.heads(self.key_norm(self.key(x_BSD)))
    return KeysValues(keys, self.heads(self.value(x_BSD)))

  def fusion_keys_values(
    self, other_BSD: jax.Array, rotary: rope.Rotary
  ) -> KeysValues:
    """Keys, turned by the other tower's positions, and values."""
    x = self.fusion_norm(other_BSD)
    keys = self.heads(self.fusion_key_norm(self.fusion_key(x)))
    return KeysValues(
      rope.rotate(keys, rotary), self.heads(self.fusion_value(x))
    )

  def attend(
    self,
    q_BLNK: jax.Array,
    keys_values: KeysValues,
    last: int = 1,
    length_B: jax.Array | None = None,
  ) -> jax.Array:
    values = attention.attention(
      q_BLNK, *keys_values, self.backend, last, length_B
    )
    return ad_checkpoint.checkpoint_name(values, "attention")

  def project(self, values_BLNK: jax.Array) -> jax.Array:
    merged = einops.rearrange(values_BLNK, "B L N K -> B L (N K)")
    return axes.constrain(self.out(merged), "BLD")


class Block(nn.Module):
  """One block of one tower, in the three parts that fusion interleaves.

  Where the collection `MAPS` is mutable, `other` there becomes the mean of all
  heads' attention over the other tower's tokens, [B, L, S] float32.
  """

  config: dit.DiTConfig
  dtype: jnp.dtype
  backend: str
  fusion: bool = False
  fusion_init: Any = layers.XAVIER
  hidden_limit: int | None = None

  def setup(self):
    config, dtype = self.config, self.dtype
    self.modulation = self.param(
      "modulation",
      nn.initializers.normal(config.width**-0.5),
      (6, config.width),
    )
    self.self_attention = Attention(config, dtype, self.backend)
    self.cross_norm = layers.LayerNorm(config.eps, dtype)
    self.cross_attention = Attention(
      config, dtype, self.backend, self.fusion, self.fusion_init
    )
    self.feed_forward = layers.MLP(
      config.feed_forward, config.width, layers.gelu, layers.XAVIER, dtype
    )

  def modulations(
    self, times: dit.Times
  ) -> tuple[layers.Modulation, layers.Modulation]:
    """Of self-attention and of feed-forward."""
    table_PD = self.modulation.astype(jnp.float32)[None, None]
    parts = table_PD + times.parts_BTPD
    parts = [parts[:, :, i] for i in range(6)]
    return layers.Modulation(*parts[:3]), layers.Modulation(*parts[3:])

  def text_keys_values(self, context_BSD: jax.Array) -> KeysValues:
    return self.cross_attention.keys_values(context_BSD)

  def attend_self(
    self,
    x_BLD: jax.Array,
    modulation: layers.Modulation,
    rotary: rope.Rotary,
    length_B: jax.Array | None = None,
  ) -> jax.Array:
    """Self-attention with its residual."""
    shift, scale, gate = modulation
    y = layers.modulate(x_BLD, shift, scale, self.config.eps)
    y = y.astype(self.dtype)
    q = rope.rotate(self.self_attention.queries(y), rotary)
    keys, values = self.self_attention.keys_values(y)
    keys_values = KeysValues(rope.rotate(keys, rotary), values)
    y = self.self_attention.attend(q, keys_values, length_B=length_B)
    y = self.self_attention.project(y)
    return layers.add_gated(x_BLD, y, gate)

  def attend_others(
    self,
    x_BLD: jax.Array,
    text: KeysValues,
    rotary: rope.Rotary,
    other_BSD: jax.Array | None = None,
    other_rotary: rope.Rotary | None = None,
    other_length_B: jax.Array | None = None,
  ) -> jax.Array:
    """Cross-attention with its residual: the text, and the other tower."""
    cross = self.cross_attention
    q = cross.queries(self.cross_norm(x_BLD))
    y = cross.attend(q, text, self.config.padding(text.keys.shape[1]))
    if other_BSD is not None and other_rotary is not None:
      other = cross.fusion_keys_values(other_BSD, other_rotary)
      turned = rope.rotate(q, rotary)
      y = y + cross.attend(turned, other, length_B=other_length_B)
      watched = self.is_mutable_collection(MAPS)
      if watched and not self.is_initializing():
        map_BLS = attention.weights(turned, other.keys, other_length_B)
        self.put_variable(MAPS, "other", map_BLS)
    return x_BLD + cross.project(y)

  def feed(self, x_BLD: jax.Array, modulation: layers.Modulation) -> jax.Array:
    """Feed-forward with its residual."""
    shift, scale, gate = modulation
    y = layers.modulate(x_BLD, shift, scale, self.config.eps)
    limit = self.hidden_limit
    if limit is not None:
      limit = max(1, limit // self.config.feed_forward)
    y = layers.by_tokens(self.feed_forward, y.astype(self.dtype), limit)
    return layers.add_gated(x_BLD, y, gate)
