"""Embedding and head of a tower: latents to tokens, tokens to velocities.

Video and audio towers are the same modules under one `DiTConfig`; they differ
in how latents become tokens (a 2x2 patch, or a stack of 1-D convolutions) and
in the scale of their rotary positions. Source: Ovi, modules/model.py; paper,
section 3.1.

Numbers: norms, modulation, sinusoids, rotary and softmax are float32; products
and the stream of tokens follow the compute dtype.
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

from ovi_jax.models import layers
from ovi_jax.sharding import logical_axes

STEM_KERNEL = 7  # steps an audio stem convolution sees
HIDDEN_MULTIPLE = 256  # the audio stem's hidden width is rounded up to it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiTConfig:
  """Sizes of one tower.

  Attributes:
    channels: latent channels in and out.
    patch: latent cells of a token, (frames, rows, columns); (1,) for audio.
    rope_scale: factor on the temporal rotary frequencies.
    num_layers: number of transformer blocks, the same in both towers.
    hidden_dim: width D of tokens.
    mlp_dim: hidden width of the feed-forward layers.
    num_heads: attention heads; hidden_dim / num_heads is the same in both
      towers.
    freq_dim: width of the sinusoidal time embedding.
    text_dim: width E of prompt embeddings.
    max_text_len: tokens of a prompt; shorter prompts are padded with zeros,
      which are attended to.
    eps: added to variances in norms.
  """

  channels: int = 48
  patch: tuple[int, ...] = (1, 2, 2)
  rope_scale: float = 1.0
  num_layers: int = 30
  hidden_dim: int = 3072
  mlp_dim: int = 14336
  num_heads: int = 24
  freq_dim: int = 256
  text_dim: int = 4096
  max_text_len: int = 512
  eps: float = 1e-6

  def __post_init__(self):
    sizes = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.type is int
    }
    if small := [f"{name} {size}" for name, size in sizes.items() if size < 1]:
      raise ValueError(f"sizes must be at least 1, got {', '.join(small)}")
    if self.hidden_dim % self.num_heads or self.head_dim % 2:
      raise ValueError(
        f"hidden_dim {self.hidden_dim} must be an even multiple of num_heads"
        f" {self.num_heads}"
      )
    if self.freq_dim % 2:
      raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
    if len(self.patch) not in (1, 3) or self.patch[0] != 1:
      raise ValueError(
        f"patch must be (1,) or (1, rows, columns): {self.patch}"
      )

  @property
  def head_dim(self) -> int:
    return self.hidden_dim // self.num_heads

  @property
  def is_audio(self) -> bool:
    return len(self.patch) == 1

  @property
  def token_channels(self) -> int:
    """Latent numbers of one token."""
    return math.prod(self.patch) * self.channels

  @property
  def stem_dim(self) -> int:
    """Hidden width of the audio stem: 2/3 of 4 widths, rounded up."""
    return -(-(8 * self.hidden_dim // 3) // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE

  @property
  def letters(self) -> str:
    """Axes of queries, see `sharding.logical_axes`."""
    return logical_axes.replicated_tokens("BLNK") if self.is_audio else "BLNK"

  def padding(self, context_length: int) -> int:
    """The number of padded rows of a prompt that its last row stands for.

    Args:
      context_length: S of context_BSD, see `Tower.text`.
    """
    return self.max_text_len - context_length + 1

  def grid(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens along each axis of latents.

    Args:
      latent_shape: [B, T, H, W, C] of video or [B, T, C] of audio.

    Returns:
      (frames, rows, columns) of video tokens, or (steps,) of audio tokens.

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

    Args:
      sizes: by the original's names.

    Returns:
      The config; absent sizes take the original's defaults.

    Raises:
      ValueError: a key is missing or unknown, or has a value that no released
        model uses.
    """
    sizes = dict(sizes)
    for key, value in _FIXED.items():
      if sizes.pop(key, value) != value:
        raise ValueError(
          f"tower with {key} other than {value} is not supported"
        )
    kind = sizes.pop("model_type", None)
    if kind not in _KINDS:
      raise ValueError(f"model_type must be 'ti2v' or 't2a', got {kind!r}")
    if sizes.get("in_dim") != sizes.pop("out_dim", sizes.get("in_dim")):
      raise ValueError("a tower's in_dim and out_dim must be equal")
    sizes.setdefault("text_dim", cls.text_dim)
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

  def to_release(self) -> dict[str, Any]:
    """The sizes as the original's JSON files name them, see `from_release`."""
    sizes = {key: getattr(self, name) for key, name in _RELEASE_NAMES.items()}
    return _FIXED | {
      **sizes,
      "patch_size": list(self.patch),
      "model_type": _KINDS[self.is_audio],
      "out_dim": self.channels,
    }


_KINDS = ("ti2v", "t2a")  # of a video tower, of an audio tower
_FIXED = {"window_size": [-1, -1], "qk_norm": True, "cross_attn_norm": True}
_RELEASE_NAMES = {
  "in_dim": "channels",
  "patch_size": "patch",
  "temporal_rope_scaling_factor": "rope_scale",
  "num_layers": "num_layers",
  "dim": "hidden_dim",
  "ffn_dim": "mlp_dim",
  "num_heads": "num_heads",
  "freq_dim": "freq_dim",
  "text_dim": "text_dim",
  "text_len": "max_text_len",
  "eps": "eps",
}


class TimeEmbeddings(NamedTuple):
  """Embeddings of noise times, float32; T as in `layers.Modulation`."""

  embedding_BTD: jax.Array  # for the head
  parts_BTPD: jax.Array  # for every block: P = 6
  given_BL: jax.Array | None  # bool: tokens that the first of two times is of


def sinusoid(t_BT: jax.Array, width: int) -> jax.Array:
  """Sinusoidal embedding of noise times: cosines, then sines.

  Exact to float32 rounding, also for traced t. An angle t f reaches 1000, where
  float32 is 3e-5 apart, so the multiple of a quarter turn is subtracted before
  anything is rounded: t is split into a multiple of 1/16 (14 bits) and a rest,
  f into parts of 10 bits, and their products have no more than 24 bits. Exact
  products stay the same where a compiler fuses them with the sum that follows.

  Args:
    t_BT: times in [0, 1000].
    width: even; half of it is the number of frequencies.

  Returns:
    [B, T, width] float32.
  """
  half = width // 2
  # In quarter turns for a unit of t.
  rest = 10_000.0 ** -(np.arange(half) / half) * (2 / np.pi)
  whole = rest.astype(np.float32)[None, None]
  parts = []
  for bits in (10, 20, 30):
    part = np.round(rest * 2.0**bits) / 2.0**bits
    parts.append(part.astype(np.float32)[None, None])
    rest = rest - part
  parts.append(rest.astype(np.float32)[None, None])
  t = t_BT.astype(jnp.float32)[..., None]
  coarse = jnp.round(t * 16) / 16
  first, second, *small = (coarse * part for part in parts)
  turns = jnp.round(first)
  angle = (first - turns) + second
  more = jnp.round(angle)
  angle = (angle - more) + (sum(small) + (t - coarse) * whole)
  quarter = (turns + more).astype(jnp.int32) & 3
  # |angle| is at most 0.53 quarter turns.
  cos, sin = jnp.cos(angle * (np.pi / 2)), jnp.sin(angle * (np.pi / 2))
  swapped = quarter % 2 == 1
  of_cos, of_sin = jnp.where(swapped, sin, cos), jnp.where(swapped, cos, sin)
  of_cos = jnp.where((quarter == 1) | (quarter == 2), -of_cos, of_cos)
  of_sin = jnp.where(quarter >= 2, -of_sin, of_sin)
  return jnp.concatenate([of_cos, of_sin], -1)


class AudioStem(nn.Module):
  """Latents to tokens: convolution, SiLU, gated convolutional MLP."""

  config: DiTConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(
    self, latents_BTC: jax.Array, length_B: jax.Array | None = None
  ) -> jax.Array:
    """Embed audio latents.

    Args:
      latents_BTC: audio latents.
      length_B: number of valid steps of each example; `None` for all.

    Returns:
      tokens_BLD with L = T, in the compute dtype.
    """

    def conv(name: str, features: int, bias: bool = False) -> nn.Conv:
      return nn.Conv(
        features, (STEM_KERNEL,), use_bias=bias, dtype=self.dtype, name=name
      )

    def cut(x_BTC: jax.Array) -> jax.Array:
      """Zeros beyond the length, as convolutions find beyond the end."""
      if length_B is None:
        return x_BTC
      counts_BT = jnp.arange(x_BTC.shape[1])[None] < length_B[:, None]
      return jnp.where(counts_BT[..., None], x_BTC, 0)

    width, hidden = self.config.hidden_dim, self.config.stem_dim
    x = cut(nn.silu(conv("in", width, bias=True)(cut(latents_BTC))))
    gated = nn.silu(conv("gate", hidden)(x)) * conv("up", hidden)(x)
    return conv("down", width)(cut(gated))


class Tower(nn.Module):
  """The layers of a tower before and after its blocks."""

  config: DiTConfig
  dtype: jnp.dtype

  def setup(self):
    config, dtype = self.config, self.dtype
    if config.is_audio:
      self.patch_embedding = AudioStem(config, dtype)
    else:
      self.patch_embedding = nn.Dense(
        config.hidden_dim, kernel_init=layers.XAVIER, dtype=dtype
      )
    mlp = {"kernel_init": layers.SMALL, "dtype": dtype}
    width = config.hidden_dim
    self.text_embedding = layers.MLP(width, width, layers.gelu, **mlp)
    self.time_embedding = layers.MLP(width, width, nn.silu, **mlp)
    self.time_projection = nn.Dense(
      6 * width, kernel_init=layers.XAVIER, dtype=dtype
    )
    self.head_modulation = self.param(
      "head_modulation", nn.initializers.normal(width**-0.5), (2, width)
    )
    self.head = nn.Dense(
      config.token_channels, kernel_init=nn.initializers.zeros, dtype=dtype
    )

  def tokens(
    self, latents: jax.Array, length_B: jax.Array | None = None
  ) -> jax.Array:
    """Embed latents as tokens.

    Video tokens are padded to a number that the mesh splits evenly.

    Args:
      latents: [B, T, H, W, C] of video or [B, T, C] of audio.
      length_B: number of valid latents in time; `None` for all.

    Returns:
      tokens_BLD in the compute dtype.
    """
    if isinstance(self.patch_embedding, AudioStem):
      tokens = self.patch_embedding(latents, length_B)
      return logical_axes.constrain(tokens, "BSD")
    _, rows, columns = self.config.patch
    patches = einops.rearrange(
      latents,
      "B T (H p) (W q) C -> B (T H W) (p q C)",
      p=rows,
      q=columns,
    )
    missing = logical_axes.fill(patches.shape[1]) - patches.shape[1]
    patches = jnp.pad(patches, ((0, 0), (0, missing), (0, 0)))
    patches = logical_axes.constrain(patches, "BL-")
    return logical_axes.constrain(self.patch_embedding(patches), "BLD")

  def text(self, text_BSE: jax.Array) -> jax.Array:
    """Embed prompts.

    Embeddings shorter than `max_text_len` are padded by one row of zeros, which
    stands for all padded rows, see `DiTConfig.padding`.

    Args:
      text_BSE: prompt embeddings.

    Returns:
      context_BSD in the compute dtype, with S + 1 rows if padded.

    Raises:
      ValueError: embeddings longer than `max_text_len`.
    """
    length, limit = text_BSE.shape[1], self.config.max_text_len
    if length > limit:
      raise ValueError(f"{length} text embeddings; the tower reads {limit}")
    rest = int(length < limit)
    return self.text_embedding(jnp.pad(text_BSE, ((0, 0), (0, rest), (0, 0))))

  def times(
    self,
    t_BT: jax.Array,
    grid: tuple[int, ...],
    given_BT: jax.Array | None = None,
  ) -> TimeEmbeddings:
    """Embed noise times.

    With given latents, two times are embedded, 0 and t; the mask selects one of
    them for each token.

    Args:
      t_BT: times in [0, 1000], 1000 = noise, T = 1: of all generated latents.
      grid: of the tokens, see `DiTConfig.grid`.
      given_BT: bool, whether a latent in time is given, at time 0; `None` if
        all are generated.

    Returns:
      Embeddings for the blocks and the head, float32.

    Raises:
      ValueError: more than one time, or a mask of another length than the
        latents.
    """
    given_BL = None
    if t_BT.shape[1] != 1:
      raise ValueError(f"times must be [B, 1], got {t_BT.shape}")
    if given_BT is not None:
      if given_BT.shape[1] != grid[0]:
        raise ValueError(
          f"a mask of given latents must be [B, {grid[0]}], got"
          f" {given_BT.shape}"
        )
      t_BT = jnp.concatenate([jnp.zeros_like(t_BT), t_BT], 1)
      given_BL = jnp.repeat(given_BT, math.prod(grid[1:]), axis=1)
      if not self.config.is_audio:
        # As the tokens are padded, see `tokens`.
        missing = logical_axes.fill(given_BL.shape[1]) - given_BL.shape[1]
        given_BL = jnp.pad(given_BL, ((0, 0), (0, missing)))
      given_BL = logical_axes.constrain(given_BL, self.config.letters[:2])
    embedding = self.time_embedding(sinusoid(t_BT, self.config.freq_dim))
    parts = self.time_projection(nn.silu(embedding)).astype(jnp.float32)
    parts = einops.rearrange(parts, "B T (P D) -> B T P D", P=6)
    return TimeEmbeddings(embedding.astype(jnp.float32), parts, given_BL)

  def velocity(
    self, tokens_BLD: jax.Array, times: TimeEmbeddings, grid: tuple[int, ...]
  ) -> jax.Array:
    """The head: tokens to velocities.

    Args:
      tokens_BLD: output of the last block.
      times: of the same latents.
      grid: of the tokens, see `DiTConfig.grid`.

    Returns:
      Velocity [B, T, H, W, C] of video or [B, T, C] of audio, float32.
    """
    table = self.head_modulation.astype(jnp.float32)[:, None, None]
    shift, scale = table + times.embedding_BTD[None]
    eps = self.config.eps
    x = layers.modulate(tokens_BLD, shift, scale, times.given_BL, eps)
    x = self.head(x.astype(self.dtype)).astype(jnp.float32)
    # Whole before what filled the tokens up is cut off, see `tokens`.
    x = logical_axes.constrain(x, "B--")[:, : math.prod(grid)]
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
