"""One tower: what turns latents into tokens, its block, and its head.

Video and audio towers are the same modules under one `DiTConfig`; they differ
in how latents become tokens (a 2x2 patch, or a stack of 1-D convolutions) and
in the scale of their rotary positions. Source: Ovi, modules/model.py; paper,
section 3.1.

Numbers: norms, modulation, time embedding, rotary and softmax are float32;
products and the stream of tokens follow the compute dtype.
"""

import dataclasses
import math
from typing import Any
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ovi_jax import axes
from ovi_jax.models import attention
from ovi_jax.models import layers
from ovi_jax.models import rope

STEM_KERNEL = 7  # steps an audio stem convolution sees
HIDDEN_MULTIPLE = 256  # the audio stem's hidden width is rounded up to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
  """Sizes of one tower.

  Attributes:
    channels: latent channels in and out.
    patch: latent cells of a token, (frames, rows, columns); (1,) for audio.
    rope_scale: factor on the temporal rotary frequencies.
    blocks, width, feed_forward, heads: the transformer.
    time_width: width of the sinusoidal time embedding.
    text_width, text_length: of the prompt embeddings; shorter ones are padded
      with zeros, which are attended to.
    eps: added to variances.
  """

  channels: int = 48
  patch: tuple[int, ...] = (1, 2, 2)
  rope_scale: float = 1.0
  blocks: int = 30
  width: int = 3072
  feed_forward: int = 14336
  heads: int = 24
  time_width: int = 256
  text_width: int = 4096
  text_length: int = 512
  eps: float = 1e-6

  def __post_init__(self):
    if self.width % self.heads or self.head_size % 2:
      raise ValueError(
        f"width {self.width} must be an even multiple of heads {self.heads}"
      )
    if self.time_width % 2:
      raise ValueError(f"time_width must be even, got {self.time_width}")
    if len(self.patch) not in (1, 3) or self.patch[0] != 1:
      raise ValueError(
        f"patch must be (1,) or (1, rows, columns): {self.patch}"
      )

  @property
  def head_size(self) -> int:
    return self.width // self.heads

  @property
  def is_audio(self) -> bool:
    return len(self.patch) == 1

  @property
  def token_channels(self) -> int:
    """Latent numbers of one token."""
    return math.prod(self.patch) * self.channels

  @property
  def stem_hidden(self) -> int:
    """Hidden width of the audio stem: 2/3 of 4 widths, rounded up."""
    return -(-(8 * self.width // 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE

  def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens along each axis of latents [B, T, (H, W,) C].

    Raises:
      ValueError: the patch does not divide the latents, or their channels are
        not the tower's.
    """
    sizes, channels = latent_shape[1:-1], latent_shape[-1]
    bad = [s % p for s, p in zip(sizes, self.patch)]
    if len(sizes) != len(self.patch) or any(bad) or channels != self.channels:
      raise ValueError(
        f"latents of shape {latent_shape} do not fit a tower of"
        f" {self.channels} channels and patch {self.patch}"
      )
    return tuple(s // p for s, p in zip(sizes, self.patch, strict=True))

  @classmethod
  def from_release(cls, sizes: dict[str, Any]) -> "DiTConfig":
    """Read the sizes of a tower as the original's JSON files name them.

    Raises:
      ValueError: a key is missing or unknown, or asks for something that no
        released model uses.
    """
    sizes = dict(sizes)
    fixed = {
      "window_size": [-1, -1],
      "qk_norm": True,
      "cross_attn_norm": True,
    }
    for key, value in fixed.items():
      if sizes.pop(key, value) != value:
        raise ValueError(
          f"tower with {key} other than {value} is not supported"
        )
    kind = sizes.pop("model_type", None)
    if kind not in ("ti2v", "t2a"):
      raise ValueError(f"model_type must be 'ti2v' or 't2a', got {kind!r}")
    if sizes.get("in_dim") != sizes.pop("out_dim", sizes.get("in_dim")):
      raise ValueError("a tower's in_dim and out_dim must be equal")
    sizes.setdefault("text_dim", cls.text_width)
    sizes.setdefault("temporal_rope_scaling_factor", 1.0)
    names = _RELEASE_NAMES
    wrong = sizes.keys() ^ names.keys()
    if wrong:
      raise ValueError(
        f"tower sizes must name exactly {sorted(names)}; missing or unknown:"
        f" {sorted(wrong)}"
      )
    sizes["patch_size"] = tuple(sizes["patch_size"])
    return cls(**{names[key]: value for key, value in sizes.items()})


_RELEASE_NAMES = {
  "in_dim": "channels",
  "patch_size": "patch",
  "temporal_rope_scaling_factor": "rope_scale",
  "num_layers": "blocks",
  "dim": "width",
  "ffn_dim": "feed_forward",
  "num_heads": "heads",
  "freq_dim": "time_width",
  "text_dim": "text_width",
  "text_len": "text_length",
  "eps": "eps",
}

XAVIER = nn.initializers.xavier_uniform()
SMALL = nn.initializers.normal(0.02)


class KeysValues(NamedTuple):
  """Keys and values of one attention, [B, S, N, K]."""

  keys: jax.Array
  values: jax.Array


class Times(NamedTuple):
  """What one noise time means to a tower, float32."""

  embedding_BTD: jax.Array  # for the head
  parts_BTPD: jax.Array  # for every block: P = 6


def sinusoid(t_BT: jax.Array, width: int) -> jax.Array:
  """Cosines, then sines, of t in [0, 1000] at `width` / 2 frequencies."""
  half = width // 2
  frequencies = 10_000.0 ** -(np.arange(half) / half)
  frequencies = jnp.asarray(frequencies, jnp.float32)[None, None]
  angles = t_BT.astype(jnp.float32)[..., None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


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
    x = nn.Dense(self.hidden, name="in", **dense)(x)
    return nn.Dense(self.out, name="out", **dense)(self.activation(x))


def gelu(x: jax.Array) -> jax.Array:
  return nn.gelu(x, approximate=True)


class AudioStem(nn.Module):
  """Latents to tokens: convolution, SiLU, gated convolutional MLP."""

  config: DiTConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, latents_BTC: jax.Array) -> jax.Array:
    def conv(name: str, features: int, bias: bool = False) -> nn.Conv:
      return nn.Conv(
        features, (STEM_KERNEL,), use_bias=bias, dtype=self.dtype, name=name
      )

    width, hidden = self.config.width, self.config.stem_hidden
    x = nn.silu(conv("in", width, bias=True)(latents_BTC))
    gated = nn.silu(conv("gate", hidden)(x)) * conv("up", hidden)(x)
    return conv("down", width)(gated)


class Tower(nn.Module):
  """The ends of a tower: embeddings before its blocks, the head after them."""

  config: DiTConfig
  dtype: jnp.dtype

  def setup(self):
    config, dtype = self.config, self.dtype
    if config.is_audio:
      self.patch_embedding = AudioStem(config, dtype)
    else:
      self.patch_embedding = nn.Dense(
        config.width, kernel_init=XAVIER, dtype=dtype
      )
    mlp = {"kernel_init": SMALL, "dtype": dtype}
    width = config.width
    self.text_embedding = MLP(width, width, gelu, **mlp)
    self.time_embedding = MLP(width, width, nn.silu, **mlp)
    self.time_projection = nn.Dense(6 * width, kernel_init=XAVIER, dtype=dtype)
    self.head_modulation = self.param(
      "head_modulation", nn.initializers.normal(width**-0.5), (2, width)
    )
    self.head = nn.Dense(
      config.token_channels, kernel_init=nn.initializers.zeros, dtype=dtype
    )

  def tokens(self, latents: jax.Array) -> jax.Array:
    """Latents [B, T, (H, W,) C] -> tokens_BLD in the compute dtype."""
    if not self.config.is_audio:
      _, rows, columns = self.config.patch
      latents = einops.rearrange(
        latents,
        "B T (H p) (W q) C -> B (T H W) (p q C)",
        p=rows,
        q=columns,
      )
    return axes.constrain(self.patch_embedding(latents), "BLD")

  def text(self, text_BSE: jax.Array) -> jax.Array:
    """Prompt embeddings (S up to the text length) -> context_BSD."""
    missing = self.config.text_length - text_BSE.shape[1]
    return self.text_embedding(
      jnp.pad(text_BSE, ((0, 0), (0, missing), (0, 0)))
    )

  def times(self, t_BT: jax.Array) -> Times:
    """Noise times in [0, 1000] -> their embeddings."""
    embedding = self.time_embedding(sinusoid(t_BT, self.config.time_width))
    parts = self.time_projection(nn.silu(embedding)).astype(jnp.float32)
    parts = einops.rearrange(parts, "B T (P D) -> B T P D", P=6)
    return Times(embedding.astype(jnp.float32), parts)

  def velocity(
    self, tokens_BLD: jax.Array, times: Times, grid: tuple[int, ...]
  ) -> jax.Array:
    """Tokens -> velocity [B, T, (H, W,) C], float32."""
    table = self.head_modulation.astype(jnp.float32)[:, None, None]
    shift, scale = table + times.embedding_BTD[None]
    x = layers.modulate(tokens_BLD, shift, scale, self.config.eps)
    x = self.head(x.astype(self.dtype)).astype(jnp.float32)
    if self.config.is_audio:
      return x
    frames, rows, columns = grid
    _, p, q = self.config.patch
    return einops.rearrange(
      x,
      "B (T H W) (p q C) -> B T (H p) (W q) C",
      T=frames,
      H=rows,
      W=columns,
      p=p,
      q=q,
    )


class Attention(nn.Module):
  """Projections of one attention; q and k are normalised over all heads.

  With `fusion`, the same queries and output also serve a second attention,
  over the other tower's tokens, through keys and values of its own.
  """

  config: DiTConfig
  dtype: jnp.dtype
  backend: str
  fusion: bool = False
  fusion_init: Any = XAVIER

  def setup(self):
    width, eps = self.config.width, self.config.eps

    def dense(init=XAVIER) -> nn.Dense:
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

  def attend(self, q_BLNK: jax.Array, keys_values: KeysValues) -> jax.Array:
    return attention.attention(q_BLNK, *keys_values, self.backend)

  def project(self, values_BLNK: jax.Array) -> jax.Array:
    merged = einops.rearrange(values_BLNK, "B L N K -> B L (N K)")
    return axes.constrain(self.out(merged), "BLD")


class Block(nn.Module):
  """One block of one tower, in the three parts that fusion interleaves."""

  config: DiTConfig
  dtype: jnp.dtype
  backend: str
  fusion: bool = False
  fusion_init: Any = XAVIER

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
    self.feed_forward = MLP(
      config.feed_forward, config.width, gelu, XAVIER, dtype
    )

  def modulations(
    self, times: Times
  ) -> tuple[layers.Modulation, layers.Modulation]:
    """Of self-attention and of feed-forward."""
    table_PD = self.modulation.astype(jnp.float32)[None, None]
    parts = table_PD + times.parts_BTPD
    parts = [parts[:, :, i] for i in range(6)]
    return layers.Modulation(*parts[:3]), layers.Modulation(*parts[3:])

  def text_keys_values(self, context_BSD: jax.Array) -> KeysValues:
    return self.cross_attention.keys_values(context_BSD)

  def attend_self(
    self, x_BLD: jax.Array, modulation: layers.Modulation, rotary: rope.Rotary
  ) -> jax.Array:
    """Self-attention with its residual."""
    shift, scale, gate = modulation
    y = layers.modulate(x_BLD, shift, scale, self.config.eps)
    y = y.astype(self.dtype)
    q = rope.rotate(self.self_attention.queries(y), rotary)
    keys, values = self.self_attention.keys_values(y)
    keys_values = KeysValues(rope.rotate(keys, rotary), values)
    y = self.self_attention.project(self.self_attention.attend(q, keys_values))
    return layers.add_gated(x_BLD, y, gate)

  def attend_others(
    self,
    x_BLD: jax.Array,
    text: KeysValues,
    rotary: rope.Rotary,
    other_BSD: jax.Array | None = None,
    other_rotary: rope.Rotary | None = None,
  ) -> jax.Array:
    """Cross-attention with its residual: the text, and the other tower."""
    cross = self.cross_attention
    q = cross.queries(self.cross_norm(x_BLD))
    y = cross.attend(q, text)
    if other_BSD is not None and other_rotary is not None:
      other = cross.fusion_keys_values(other_BSD, other_rotary)
      y = y + cross.attend(rope.rotate(q, rotary), other)
    return x_BLD + cross.project(y)

  def feed(self, x_BLD: jax.Array, modulation: layers.Modulation) -> jax.Array:
    """Feed-forward with its residual."""
    shift, scale, gate = modulation
    y = layers.modulate(x_BLD, shift, scale, self.config.eps)
    y = self.feed_forward(y.astype(self.dtype))
    return layers.add_gated(x_BLD, y, gate)
