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

from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.models import dit
from ovi_jax.models import layers
from ovi_jax.models import remat
from ovi_jax.models import rope
from ovi_jax.sharding import logical_axes

# Queries, keys or values of a tower that every device has whole, but for heads.
FULL_LETTERS = "BSNK"
REPLICATED_LETTERS = logical_axes.replicated_tokens("BLNK")


class KV(NamedTuple):
  """Keys and values of an attention, [B, S, N, K]."""

  keys: jax.Array
  values: jax.Array


def _projected(layer: nn.Dense, x: jax.Array) -> jax.Array:
  return remat.named(layer(x), remat.PROJECTIONS)


class Attention(nn.Module):
  """Projections of one attention; q and k are normalised over all heads.

  With `fusion`, the same queries and output also serve a second attention,
  over the other tower's tokens, through keys and values of its own.
  """

  config: dit.DiTConfig
  dtype: jnp.dtype
  backend: str
  context_parallelism: str
  fusion: bool = False
  fusion_init: Any = layers.XAVIER

  def setup(self):
    width, eps = self.config.hidden_dim, self.config.eps

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

  def heads(self, x_BLD: jax.Array, letters: str) -> jax.Array:
    """Split [B, L, D] into heads, [B, L, N, K]."""
    heads = self.config.num_heads
    x = einops.rearrange(x_BLD, "B L (N K) -> B L N K", N=heads)
    return logical_axes.constrain(x, letters)

  def queries(self, x_BLD: jax.Array) -> jax.Array:
    """Normalized queries_BLNK."""
    x_BLD = self.query_norm(_projected(self.query, x_BLD))
    return self.heads(x_BLD, self.config.letters)

  def kv(self, x_BSD: jax.Array, letters: str) -> KV:
    """Keys, normalized, and values; `letters` are the axes of the tokens."""
    keys = self.heads(self.key_norm(_projected(self.key, x_BSD)), letters)
    return KV(keys, self.heads(_projected(self.value, x_BSD), letters))

  def fusion_kv(self, other_BSD: jax.Array, rotary: rope.Rotary) -> KV:
    """Keys, rotated by the other tower's positions, and values."""
    letters = (
      "BLNK" if self.config.is_audio else REPLICATED_LETTERS
    )  # the other tower's
    x = self.fusion_norm(other_BSD)
    keys = self.fusion_key_norm(_projected(self.fusion_key, x))
    values = self.heads(_projected(self.fusion_value, x), letters)
    return KV(rope.rotate(self.heads(keys, letters), rotary), values)

  def attend(
    self,
    q_BLNK: jax.Array,
    kv: KV,
    letters: tuple[str, str],
    pad_count: int = 1,
    length: jax.Array | int | None = None,
  ) -> jax.Array:
    """Attend; `letters` of queries and keys, see `attention`."""
    return attention.attention(
      q_BLNK,
      *kv,
      self.backend,
      pad_count,
      length,
      letters=letters,
      strategy=self.context_parallelism,
    )

  def attend_self(self, q_BLNK: jax.Array, kv: KV, length: Any) -> jax.Array:
    own = self.config.letters
    return self.attend(q_BLNK, kv, (own, own), length=length)

  def attend_text(self, q_BLNK: jax.Array, text: KV) -> jax.Array:
    own = self.config.letters
    keys = REPLICATED_LETTERS if self.config.is_audio else FULL_LETTERS
    pad_count = self.config.padding(text.keys.shape[1])
    return self.attend(q_BLNK, text, (own, keys), pad_count)

  def attend_other_modality(
    self, q_BLNK: jax.Array, other: KV, length: Any
  ) -> jax.Array:
    letters = (
      (FULL_LETTERS, "BLNK") if self.config.is_audio else ("BLNK", FULL_LETTERS)
    )
    return self.attend(q_BLNK, other, letters, length=length)

  def project(self, values_BLNK: jax.Array) -> jax.Array:
    values = logical_axes.constrain(values_BLNK, self.config.letters)
    merged = einops.rearrange(values, "B L N K -> B L (N K)")
    rows = self.config.letters[1]
    return logical_axes.constrain(_projected(self.out, merged), f"B{rows}D")


class Block(nn.Module):
  """One block of one tower, in the three parts that fusion interleaves."""

  config: dit.DiTConfig
  dtype: jnp.dtype
  backend: str
  fusion: bool = False
  fusion_init: Any = layers.XAVIER
  mlp_chunk_size: int | None = None
  context_parallelism: str = context.ULYSSES

  def setup(self):
    config, dtype = self.config, self.dtype
    self.modulation = self.param(
      "modulation",
      nn.initializers.normal(config.hidden_dim**-0.5),
      (6, config.hidden_dim),
    )
    shared = config, dtype, self.backend, self.context_parallelism
    self.self_attention = Attention(*shared)
    self.cross_norm = layers.LayerNorm(config.eps, dtype)
    self.cross_attention = Attention(*shared, self.fusion, self.fusion_init)
    self.feed_forward = layers.MLP(
      config.mlp_dim, config.hidden_dim, layers.gelu, layers.XAVIER, dtype
    )

  def modulations(
    self, times: dit.TimeEmbeddings
  ) -> tuple[layers.Modulation, layers.Modulation]:
    """Modulations of self-attention and of the feed-forward layer."""
    table_PD = self.modulation.astype(jnp.float32)[None, None]
    parts = table_PD + times.parts_BTPD

    def of(begin: int) -> layers.Modulation:
      shift, scale, gate = (parts[:, :, begin + i] for i in range(3))
      return layers.Modulation(shift, scale, gate, times.given_BL)

    return of(0), of(3)

  def text_kv(self, context_BSD: jax.Array) -> KV:
    return self.cross_attention.kv(context_BSD, REPLICATED_LETTERS)

  def attend_self(
    self,
    x_BLD: jax.Array,
    modulation: layers.Modulation,
    rotary: rope.Rotary,
    length: jax.Array | int | None = None,
  ) -> jax.Array:
    """Self-attention with its residual."""
    shift, scale, gate, given_BL = modulation
    y = layers.modulate(x_BLD, shift, scale, given_BL, self.config.eps)
    y = y.astype(self.dtype)
    own = self.self_attention
    q = rope.rotate(own.queries(y), rotary)
    keys, values = own.kv(y, self.config.letters)
    kv = KV(rope.rotate(keys, rotary), values)
    y = own.project(own.attend_self(q, kv, length))
    return layers.gated_residual(x_BLD, y, gate, given_BL)

  def cross_attend(
    self,
    x_BLD: jax.Array,
    text: KV,
    rotary: rope.Rotary,
    other_BSD: jax.Array | None = None,
    other_rotary: rope.Rotary | None = None,
    other_length: jax.Array | int | None = None,
    probs: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Cross-attention with its residual: the text, and the other tower.

    Returns:
      tokens_BLD, and with `probs` the attention over the other tower's tokens,
      [B, N, L, S].
    """
    cross = self.cross_attention
    q = cross.queries(self.cross_norm(x_BLD))
    y, map_BNLS = cross.attend_text(q, text), None
    if other_BSD is not None and other_rotary is not None:
      other = cross.fusion_kv(other_BSD, other_rotary)
      turned = rope.rotate(q, rotary)
      y = y + cross.attend_other_modality(turned, other, other_length)
      if probs:
        map_BNLS = attention.attention_probs(turned, other.keys, other_length)
    return x_BLD + cross.project(y), map_BNLS

  def mlp(self, x_BLD: jax.Array, modulation: layers.Modulation) -> jax.Array:
    """Feed-forward with its residual."""
    shift, scale, gate, given_BL = modulation
    y = layers.modulate(x_BLD, shift, scale, given_BL, self.config.eps)
    limit = self.mlp_chunk_size
    if limit is not None:
      limit = max(1, limit // self.config.mlp_dim)
    y = layers.chunked_apply(self.feed_forward, y.astype(self.dtype), limit)
    return layers.gated_residual(x_BLD, y, gate, given_BL)
