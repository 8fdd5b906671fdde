"""The audio VAE: a log-mel spectrogram to latents at half its rate, and back.

One-dimensional convolutions over time, mel bins as channels, in blocks that
keep the magnitude of their signal: filters of norm one, normalised inputs,
weighted sums divided by the length of their weights. Filters are kept with
that norm already in them, so no weight is normalised at run time.

Numbers: convolutions and products follow the compute dtype; the statistics of
the mel bins, the norms over channels, softmax and the latents are float32.

Source: MMAudio (arXiv 2412.15322), section 3.2 and its 16 kHz VAE; the
magnitude-preserving layers are those of EDM2 (arXiv 2312.02696, appendix B).
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

from ovi_jax import config as config_lib

# Added to a root mean square before dividing by it, for filters and signals.
EPSILON = 1e-4
# Activations are held within this after every block.
_LIMIT = 256.0
# Share of the new signal where two are summed.
_SHARE = 0.3

# Mean and deviation of every mel bin over MMAudio's training data.
# fmt: off
MEL_MEAN = (
  -1.6058, -1.3676, -1.2520, -1.2453, -1.2078, -1.2224, -1.2419, -1.2439,
  -1.2922, -1.2927, -1.3170, -1.3543, -1.3401, -1.3836, -1.3907, -1.3912,
  -1.4313, -1.4152, -1.4527, -1.4728, -1.4568, -1.5101, -1.5051, -1.5172,
  -1.5623, -1.5373, -1.5746, -1.5687, -1.6032, -1.6131, -1.6081, -1.6331,
  -1.6489, -1.6489, -1.6700, -1.6738, -1.6953, -1.6969, -1.7048, -1.7280,
  -1.7361, -1.7495, -1.7658, -1.7814, -1.7889, -1.8064, -1.8221, -1.8377,
  -1.8417, -1.8643, -1.8857, -1.8929, -1.9173, -1.9379, -1.9531, -1.9673,
  -1.9824, -2.0042, -2.0215, -2.0436, -2.0766, -2.1064, -2.1418, -2.1855,
  -2.2319, -2.2767, -2.3161, -2.3572, -2.3954, -2.4282, -2.4659, -2.5072,
  -2.5552, -2.6074, -2.6584, -2.7107, -2.7634, -2.8266, -2.8981, -2.9673,
)
MEL_STD = (
  1.0291, 1.0411, 1.0043, 0.9820, 0.9677, 0.9543, 0.9450, 0.9392,
  0.9343, 0.9297, 0.9276, 0.9263, 0.9242, 0.9254, 0.9232, 0.9281,
  0.9263, 0.9315, 0.9274, 0.9247, 0.9277, 0.9199, 0.9188, 0.9194,
  0.9160, 0.9161, 0.9146, 0.9161, 0.9100, 0.9095, 0.9145, 0.9076,
  0.9066, 0.9095, 0.9032, 0.9043, 0.9038, 0.9011, 0.9019, 0.9010,
  0.8984, 0.8983, 0.8986, 0.8961, 0.8962, 0.8978, 0.8962, 0.8973,
  0.8993, 0.8976, 0.8995, 0.9016, 0.8982, 0.8972, 0.8974, 0.8949,
  0.8940, 0.8947, 0.8936, 0.8939, 0.8951, 0.8956, 0.9017, 0.9167,
  0.9436, 0.9690, 1.0003, 1.0225, 1.0381, 1.0491, 1.0545, 1.0604,
  1.0761, 1.0929, 1.1089, 1.1196, 1.1176, 1.1156, 1.1117, 1.1070,
)
# fmt: on


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioVAEConfig:
  """Sizes of the audio VAE.

  Attributes:
    data_dim: mel bins.
    embed_dim: channels of a latent.
    hidden_dim: width at the first level.
    channel_multipliers: width of each level over `hidden_dim`.
    res_blocks: residual blocks a level in the encoder; the decoder has one
      more.
    down_layers: levels after which the encoder halves the rate.
    mel_mean: mean of every mel bin, log10 magnitude.
    mel_std: standard deviation of every mel bin.
  """

  data_dim: int = 80
  embed_dim: int = 20
  hidden_dim: int = 384
  channel_multipliers: tuple[int, ...] = (1, 2, 4)
  res_blocks: int = 2
  down_layers: tuple[int, ...] = (0,)
  mel_mean: tuple[float, ...] = MEL_MEAN
  mel_std: tuple[float, ...] = MEL_STD

  def __post_init__(self):
    for name in ("mel_mean", "mel_std"):
      if (count := len(getattr(self, name))) != self.data_dim:
        raise ValueError(
          f"audio VAE: expected a {name} for each of {self.data_dim} mel bins,"
          f" got {count}; set mel_mean and mel_std with data_dim"
        )
    # The decoder doubles the rate on entering a level, so not at the last.
    levels = range(len(self.channel_multipliers) - 1)
    if not set(self.down_layers) <= set(levels):
      raise ValueError(
        f"audio VAE: expected down_layers among {list(levels)}, got"
        f" {list(self.down_layers)}"
      )

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of each level."""
    return tuple(self.hidden_dim * m for m in self.channel_multipliers)

  @property
  def frames_per_latent(self) -> int:
    """Mel frames that become one latent."""
    return 2 ** len(self.down_layers)

  @classmethod
  def from_release(cls, sizes: Mapping[str, Any]) -> "AudioVAEConfig":
    """Build the config from the `audio_vae` sizes of a release.

    Args:
      sizes: values of attributes by name; lists stand for tuples.

    Returns:
      The config; attributes that are not given keep their defaults.

    Raises:
      ValueError: a key is not an attribute.
    """
    return config_lib.from_sizes(cls, sizes, "the audio VAE")


def _unit_filters(key, shape, dtype=jnp.float32):
  """Initial filters: Gaussian, each (last axis) of norm one."""
  filters = jax.random.normal(key, shape, dtype)
  square = jnp.square(filters).sum(tuple(range(len(shape) - 1)), keepdims=True)
  return filters / (jnp.sqrt(square) + EPSILON * math.prod(shape[:-1]) ** 0.5)


_Conv = functools.partial(
  nn.Conv, kernel_size=(3,), use_bias=False, kernel_init=_unit_filters
)
_Dense = functools.partial(
  nn.DenseGeneral, use_bias=False, kernel_init=_unit_filters
)


def _normalized(x, dtype: jnp.dtype):
  """x over the root mean square of its last axis, computed in float32.

  Where that is zero no gradient reaches x: it would be 1 / EPSILON, which
  overflows over a few layers, each as silent as the one before.
  """
  x = x.astype(jnp.float32)
  square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
  silent = square == 0
  root = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, square)))
  x = jnp.where(silent, jax.lax.stop_gradient(x), x)
  return (x / (root + EPSILON)).astype(dtype)


def _silu(x):
  """SiLU over the deviation it gives a unit Gaussian."""
  return nn.silu(x) / 0.596


def _blend(x, h):
  """Weighted sum of two unit signals that is a unit signal."""
  return ((1 - _SHARE) * x + _SHARE * h) / math.hypot(1 - _SHARE, _SHARE)


def _clip(x):
  return jnp.clip(x, -_LIMIT, _LIMIT)


class ResidualBlock(nn.Module):
  """Two convolutions beside a shortcut, over a normalised input."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    x_BTC = _normalized(x_BTC, self.dtype)
    conv = functools.partial(_Conv, self.width, dtype=self.dtype)
    h_BTC = conv(name="conv_in")(_silu(x_BTC))
    h_BTC = conv(name="conv_out")(_silu(h_BTC))
    if x_BTC.shape[-1] != self.width:
      x_BTC = _Dense(self.width, dtype=self.dtype, name="shortcut")(x_BTC)
    return _blend(x_BTC, h_BTC)


class Attention(nn.Module):
  """One head of attention over all time steps; cosine-like queries and keys."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    width = x_BTC.shape[-1]
    qkv = _Dense((3, width), dtype=self.dtype, name="qkv")(x_BTC)
    q, k, v = jnp.unstack(_normalized(qkv, self.dtype), axis=-2)
    logits = jnp.einsum(
      "btc,bsc->bts", q, k, preferred_element_type=jnp.float32
    )
    weights = nn.softmax(logits / width**0.5).astype(self.dtype)
    h_BTC = jnp.einsum("bts,bsc->btc", weights, v)
    h_BTC = _Dense(width, dtype=self.dtype, name="out")(h_BTC)
    return _blend(x_BTC, h_BTC)


class MidBlock(nn.Module):
  """Residual block, attention, residual block."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    width = x_BTC.shape[-1]
    x_BTC = ResidualBlock(width, self.dtype, name="block_0")(x_BTC)
    x_BTC = Attention(self.dtype, name="attention")(x_BTC)
    x_BTC = ResidualBlock(width, self.dtype, name="block_1")(x_BTC)
    return _clip(x_BTC)


class Downsample(nn.Module):
  """The mean of every two steps, between two products over channels."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    dense = functools.partial(_Dense, x_BTC.shape[-1], dtype=self.dtype)
    x_BTC = dense(name="in")(x_BTC)
    x_BTC = einops.reduce(x_BTC, "b (t two) c -> b t c", "mean", two=2)
    return dense(name="out")(x_BTC)


class Upsample(nn.Module):
  """Every step twice, then a convolution."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    x_BTC = jnp.repeat(x_BTC, 2, axis=1)
    return _Conv(x_BTC.shape[-1], dtype=self.dtype, name="conv")(x_BTC)


class Head(nn.Module):
  """SiLU and the last convolution, times one plus a learned gain; float32."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
    conv = _Conv(self.width, dtype=self.dtype, name="conv")
    return conv(_silu(x_BTC)).astype(jnp.float32) * (1 + gain)


class Encoder(nn.Module):
  """Standardised mel frames to mean and log-variance, side by side."""

  config: AudioVAEConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    config = self.config
    x_BTC = _Conv(config.hidden_dim, dtype=self.dtype, name="conv_in")(x_BTC)
    for level, width in enumerate(config.widths):
      for i in range(config.res_blocks):
        name = f"level_{level}_block_{i}"
        x_BTC = _clip(ResidualBlock(width, self.dtype, name=name)(x_BTC))
      if level in config.down_layers:
        x_BTC = Downsample(self.dtype, name=f"level_{level}_halve")(x_BTC)
    x_BTC = MidBlock(self.dtype, name="middle")(x_BTC)
    return Head(2 * config.embed_dim, self.dtype, name="head")(x_BTC)


class Decoder(nn.Module):
  """Latents to standardised mel frames."""

  config: AudioVAEConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    config = self.config
    x_BTC = _Conv(config.widths[-1], dtype=self.dtype, name="conv_in")(x_BTC)
    x_BTC = MidBlock(self.dtype, name="middle")(x_BTC)
    for level, width in reversed(list(enumerate(config.widths))):
      for i in range(config.res_blocks + 1):
        name = f"level_{level}_block_{i}"
        x_BTC = _clip(ResidualBlock(width, self.dtype, name=name)(x_BTC))
      if level - 1 in config.down_layers:
        x_BTC = Upsample(self.dtype, name=f"level_{level}_double")(x_BTC)
    return Head(config.data_dim, self.dtype, name="head")(x_BTC)


class AudioVAE(nn.Module):
  """Encoder and decoder; their parameters lie under these two names.

  Attributes:
    config: sizes.
    dtype: compute dtype.
  """

  config: AudioVAEConfig
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.encoder = Encoder(self.config, self.dtype)
    self.decoder = Decoder(self.config, self.dtype)

  def __call__(self, mel_BTM):
    """Encode and decode the mean: touches every parameter, for `init`."""
    return self.decode(self.encode(mel_BTM)[0])

  def encode(self, mel_BTM):
    """Encode a spectrogram.

    Args:
      mel_BTM: log10 mel magnitudes, as `mel.log_mel` gives them.

    Returns:
      mean_BTC and logvar_BTC of the latents, float32, half as many steps.

    Raises:
      ValueError: the number of bins or frames does not fit.
    """
    self._check("mel_BTM", mel_BTM, self.config.data_dim)
    frames, whole = mel_BTM.shape[1], self.config.frames_per_latent
    if frames % whole or not frames:
      raise ValueError(
        f"audio VAE: expected mel_BTM with a multiple of {whole} frames, which"
        f" become one latent, got {frames}; cut or pad the waveform"
      )
    mean_M, std_M = self._statistics()
    moments_BTC = self.encoder((mel_BTM - mean_M) / std_M)
    mean_BTC, logvar_BTC = jnp.split(moments_BTC, 2, axis=-1)
    return mean_BTC, jnp.clip(logvar_BTC, -30.0, 20.0)

  def decode(self, latents_BTC):
    """Decode latents.

    Args:
      latents_BTC: a sample, or the mean, of what `encode` describes.

    Returns:
      mel_BTM, float32, twice as many frames as there are latents.

    Raises:
      ValueError: the number of channels does not fit.
    """
    self._check("latents_BTC", latents_BTC, self.config.embed_dim)
    mean_M, std_M = self._statistics()
    return self.decoder(latents_BTC) * std_M + mean_M

  def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the mel bins, [1, 1, M]."""
    config = self.config
    mean_M = np.array(config.mel_mean, np.float32)
    std_M = np.array(config.mel_std, np.float32)
    return mean_M[None, None], std_M[None, None]

  def _check(self, name: str, x_BTC, width: int) -> None:
    if x_BTC.ndim != 3 or x_BTC.shape[-1] != width:
      raise ValueError(
        f"audio VAE: expected {name} with three axes, the last of {width}, got"
        f" {x_BTC.shape}"
      )
