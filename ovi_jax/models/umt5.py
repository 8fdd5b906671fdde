"""UMT5 encoder: token ids in, prompt embeddings out.

A T5 encoder with a table of relative positions in every layer and no scaling
of the attention logits (`modules/t5.py` of the original). float32: the
residual stream, norms, attention logits with their position bias, softmax.
Matrix products and GELU follow the compute dtype.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ovi_jax.models import block_params
from ovi_jax.models import layers

EPS = 1e-6

# Key of the release's configuration -> ours; None for what we do not build.
_RELEASE_KEYS = {
  "vocab_size": "vocab_size",
  "dim": "dim",
  "dim_attn": "dim_attn",
  "dim_ffn": "dim_ffn",
  "num_heads": "num_heads",
  "encoder_layers": "num_layers",
  "decoder_layers": None,
  "num_buckets": "num_buckets",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMT5Config:
  """Sizes of the encoder; the defaults are UMT5-XXL.

  Attributes:
    vocab_size: rows of the embedding table.
    dim: width D of the tokens, and E of the embeddings that come out.
    dim_attn: width of queries, keys and values, all heads together.
    dim_ffn: width F of the feed-forward layer.
    num_heads: attention heads N.
    num_layers: blocks.
    num_buckets: relative positions told apart, both directions together.
    max_distance: tokens from which on all distances share a bucket.
  """

  vocab_size: int = 256_384
  dim: int = 4096
  dim_attn: int = 4096
  dim_ffn: int = 10_240
  num_heads: int = 64
  num_layers: int = 24
  num_buckets: int = 32
  max_distance: int = 128

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if self.dim_attn % self.num_heads:
      raise ValueError(
        f"dim_attn must be a multiple of num_heads ({self.num_heads}),"
        f" got {self.dim_attn}"
      )
    if self.num_buckets % 4:
      raise ValueError(
        f"num_buckets must be a multiple of 4 (two directions, near and far),"
        f" got {self.num_buckets}"
      )
    if self.max_distance <= self.num_buckets // 4:
      raise ValueError(
        f"max_distance must exceed num_buckets / 4 = {self.num_buckets // 4},"
        f" got {self.max_distance}"
      )

  @classmethod
  def from_release(cls, sizes: Mapping[str, Any]) -> "UMT5Config":
    """The configuration from the release's names for the sizes.

    Raises:
      ValueError: a key is unknown; the message names every such key.
    """
    unknown = sorted(sizes.keys() - _RELEASE_KEYS.keys())
    if unknown:
      raise ValueError(
        f"unknown sizes of the text encoder: {', '.join(unknown)};"
        f" known are {', '.join(_RELEASE_KEYS)}"
      )
    ours = {_RELEASE_KEYS[key]: value for key, value in sizes.items()}
    # The release counts the decoder's layers, but holds no decoder.
    ours.pop(None, None)
    return cls(**ours)


def position_buckets(
  length: int, buckets: int, max_distance: int
) -> np.ndarray:
  """Bucket of every pair of positions.

  A quarter of the buckets is one distance each, the next quarter grows
  logarithmically up to `max_distance`, for keys before the query; the other
  half serves keys after it.

  Args:
    length: tokens.
    buckets: number of buckets.
    max_distance: distance that the last bucket begins with, or before.

  Returns:
    int32 array [query, key] of bucket indices.
  """
  position = np.arange(length)
  offset_LS = position[None, :] - position[:, None]
  half, near = buckets // 2, buckets // 4
  distance_LS = np.abs(offset_LS)
  # float32 and truncation, as the weights were trained: 16 and 32 tokens lie
  # exactly between two buckets.
  ratio = np.maximum(distance_LS, 1).astype(np.float32) / np.float32(near)
  growth = np.float32(math.log(max_distance / near))
  far_LS = near + (np.log(ratio) / growth * np.float32(half - near)).astype(int)
  far_LS = np.minimum(far_LS, half - 1)
  bucket_LS = np.where(distance_LS < near, distance_LS, far_LS)
  return (bucket_LS + half * (offset_LS > 0)).astype(np.int32)


class Attention(nn.Module):
  """Self-attention with a learned bias for each relative position."""

  config: UMT5Config
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array, mask_BS: jax.Array) -> jax.Array:
    config = self.config
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    q_BLNK, k_BSNK, v_BSNK = (
      einops.rearrange(
        dense(config.dim_attn, name=name)(x_BLD),
        "B L (N K) -> B L N K",
        N=config.num_heads,
      )
      for name in ("q", "k", "v")
    )
    table = self.param(
      "position",
      nn.initializers.normal(1.0),
      (config.num_buckets, config.num_heads),
    )
    buckets_LS = position_buckets(
      x_BLD.shape[1], config.num_buckets, config.max_distance
    )
    bias_LSN = table.astype(jnp.float32)[buckets_LS]
    bias_BNLS = einops.rearrange(bias_LSN, "L S N -> 1 N L S")
    logits_BNLS = jnp.einsum(
      "BLNK,BSNK->BNLS", q_BLNK, k_BSNK, preferred_element_type=jnp.float32
    )
    logits_BNLS = jnp.where(
      mask_BS[:, None, None, :] > 0,
      logits_BNLS + bias_BNLS,
      jnp.finfo(jnp.float32).min,
    )
    weights_BNLS = jax.nn.softmax(logits_BNLS, axis=-1).astype(self.dtype)
    mixed_BLNK = jnp.einsum("BNLS,BSNK->BLNK", weights_BNLS, v_BSNK)
    mixed = einops.rearrange(mixed_BLNK, "B L N K -> B L (N K)")
    return dense(config.dim, name="out")(mixed)


class FeedForward(nn.Module):
  """Two linear layers, the first gated through a GELU (tanh form)."""

  config: UMT5Config
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    gate_BLF = dense(self.config.dim_ffn, name="gate")(x_BLD)
    up_BLF = dense(self.config.dim_ffn, name="up")(x_BLD)
    hidden_BLF = jax.nn.gelu(gate_BLF, approximate=True) * up_BLF
    return dense(self.config.dim, name="down")(hidden_BLF)


class Block(nn.Module):
  """Self-attention, then feed-forward, each normalised before and added."""

  config: UMT5Config
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, mask_BS: jax.Array
  ) -> tuple[jax.Array, None]:
    """Return (tokens in float32, None): a carry and output of a scan."""
    norm = functools.partial(layers.RMSNorm, EPS, self.dtype)
    attention = Attention(self.config, self.dtype, name="attention")
    feed_forward = FeedForward(self.config, self.dtype, name="feed_forward")
    branch_BLD = attention(norm(name="attention_norm")(x_BLD), mask_BS)
    x_BLD = x_BLD + branch_BLD.astype(jnp.float32)
    branch_BLD = feed_forward(norm(name="feed_forward_norm")(x_BLD))
    return x_BLD + branch_BLD.astype(jnp.float32), None


class UMT5Encoder(nn.Module):
  """The whole encoder; parameters of its blocks are stacked on axis 0."""

  config: UMT5Config
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids_BS: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """Embed prompts.

    Args:
      ids_BS: token ids, padded; int.
      mask_BS: 1 for the prompt's own tokens, 0 for padding, which is not
        attended to.

    Returns:
      text_BSE in the compute dtype; rows beyond a prompt hold no information.
    """
    config = self.config
    table = self.param(
      "embedding", nn.initializers.normal(1.0), (config.vocab_size, config.dim)
    )
    x_BLD = jnp.take(table, ids_BS, axis=0).astype(jnp.float32)
    params = self.variables.get("params", {}).get("blocks")
    blocks = nn.scan(
      block_params.lift(Block, params, self.dtype),
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,  # type: ignore[arg-type]
      length=config.num_layers,
    )
    x_BLD, _ = blocks(config, self.dtype, name="blocks")(x_BLD, mask_BS)
    return layers.RMSNorm(EPS, self.dtype, name="norm")(x_BLD)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def embed(
  config: UMT5Config,
  params: Mapping[str, Any],
  ids_BS: jax.Array,
  mask_BS: jax.Array,
  dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
  """Embed prompts as the diffusion transformer reads them.

  Args:
    config: sizes of the encoder.
    params: its parameters, in any floating dtype.
    ids_BS: token ids, from `tokenizer.Tokenizer.encode`.
    mask_BS: 1 for the prompt's own tokens, 0 for padding.
    dtype: compute dtype.

  Returns:
    text_BSE in `dtype`, zero beyond each prompt's own length.
  """
  text_BSE: Any = UMT5Encoder(config, dtype).apply(
    {"params": params}, ids_BS, mask_BS
  )
  return jnp.where(mask_BS[:, :, None] > 0, text_BSE, 0)
