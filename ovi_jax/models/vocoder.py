"""BigVGAN v1: a log-mel spectrogram becomes a waveform.

Six stages lengthen the mel frames 256 times, each by a transposed convolution
followed by three residual blocks whose results are averaged. Inside a block
every convolution is preceded by a Snake activation applied at twice the rate,
between an interpolating and a decimating low-pass filter, so that the
harmonics it adds do not alias.

Numbers: the convolutions follow the compute dtype; the residual sums, Snake,
its low-pass filters and the final tanh are float32.

Source: arXiv 2206.04658, sections 3.2 and 3.3, in the sizes of MMAudio's
16 kHz vocoder.
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
from jax import lax

from ovi_jax import config as config_lib

# One half of the 12 taps, the other is its mirror image: a Kaiser window (beta
# 4.6638) over a sinc cut off at a quarter of the doubled rate. Written out
# because the files hold these very figures and float64 formulas round others.
_HALF_LOW_PASS = (
  0.0020289646927267313,
  0.009389465674757957,
  -0.0255434587597847,
  -0.057657383382320404,
  0.12857258319854736,
  0.44320979714393616,
)
LOW_PASS = np.array(_HALF_LOW_PASS + _HALF_LOW_PASS[::-1], np.float32)
# Its even and odd taps, and those doubled, which make up for inserted zeros.
_EVEN, _ODD = (tuple(map(float, LOW_PASS[i::2])) for i in (0, 1))
_EVEN_2, _ODD_2 = (tuple(2 * t for t in taps) for taps in (_EVEN, _ODD))

# sin²(πr) = r² · P(r²) for |r| ≤ 1/2, to 2e-8 (Chebyshev fit of degree 5).
_SINE_SQUARED = (
  9.869604311819986,
  -32.46967117895077,
  42.72719645930741,
  -30.10146660576858,
  13.050100545306043,
  -3.356592901355558,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderConfig:
  """Sizes of a BigVGAN v1, under the names its own configuration uses.

  Attributes:
    mel_bins: bins of the spectrogram.
    upsample_initial_channel: width before the first stage; each halves it.
    upsample_rates: how many times each stage lengthens its input.
    upsample_kernel_sizes: taps of each stage's transposed convolution.
    resblock_kernel_sizes: taps of the convolutions of each of a stage's blocks.
    resblock_dilation_sizes: dilations inside each of those blocks.
    activation: must be "snakebeta".
    snake_logscale: must be True: frequency and magnitude are logarithms.
  """

  mel_bins: int = 80
  upsample_initial_channel: int = 1536
  upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
  upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
  resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
  resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
  activation: str = "snakebeta"
  snake_logscale: bool = True

  def __post_init__(self):
    problems = []
    stages, sizes = self.upsample_rates, self.upsample_kernel_sizes
    if len(stages) != len(sizes):
      problems.append(
        f"upsample_kernel_sizes: expected one a rate, {len(stages)}, got"
        f" {len(sizes)}"
      )
    for rate, size in zip(stages, sizes):
      if size % rate or (size - rate) % 2:
        problems.append(
          f"upsample_kernel_sizes: expected a multiple of rate {rate} that"
          f" differs from it by an even number, got {size}"
        )
    if self.upsample_initial_channel % 2 ** len(stages):
      problems.append(
        f"upsample_initial_channel: expected a multiple of 2^{len(stages)},"
        f" got {self.upsample_initial_channel}"
      )
    if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
      problems.append(
        "resblock_dilation_sizes: expected one group a kernel size,"
        f" {len(self.resblock_kernel_sizes)}, got"
        f" {len(self.resblock_dilation_sizes)}"
      )
    if even := [s for s in self.resblock_kernel_sizes if s % 2 == 0]:
      problems.append(f"resblock_kernel_sizes: expected odd sizes, got {even}")
    if (self.activation, self.snake_logscale) != ("snakebeta", True):
      problems.append(
        "activation: expected snakebeta with snake_logscale True, got"
        f" {self.activation} with {self.snake_logscale}"
      )
    config_lib.check(problems, "vocoder configuration: ")

  @classmethod
  def from_release(cls, sizes: Mapping[str, Any]) -> "VocoderConfig":
    """Build the config from the `vocoder` sizes of a release.

    Args:
      sizes: values of attributes by name; lists stand for tuples.

    Returns:
      The config; attributes that are not given keep their defaults.

    Raises:
      ValueError: a key is not an attribute, or a size is not supported.
    """
    return config_lib.from_sizes(cls, sizes, "the vocoder")


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _filtered(x_BTC, taps: tuple[float, ...]):
  """Sum over j of taps[j] · x[t + j], for every t for which all are there.

  All channels share the taps: a few shifted slices fuse into one pass over
  memory, where a depthwise convolution is many times slower in XLA. Its
  gradient is such a sum too; XLA's own, of padded arrays, takes twice as long.
  """
  length = x_BTC.shape[1] - len(taps) + 1
  return sum(tap * x_BTC[:, j : j + length] for j, tap in enumerate(taps))


def _filtered_forward(x_BTC, taps):
  return _filtered(x_BTC, taps), None


def _filtered_backward(taps, _, gradient_BTC):
  ends = ((0, 0), (len(taps) - 1,) * 2, (0, 0))
  gradient_BTC = lax.optimization_barrier(jnp.pad(gradient_BTC, ends))
  return (_filtered(gradient_BTC, taps[::-1]),)


_filtered.defvjp(_filtered_forward, _filtered_backward)


def _snake(x_BTC, log_alpha_C, log_beta_C):
  """x + sin²(alpha·x)/beta (SnakeBeta), sin² by a polynomial of the phase.

  sin² repeats every half turn, so adds and multiplies are enough, and these
  vectorise on every backend (a call to sin costs ten times as much on CPU).
  """
  half_turns_C = jnp.exp(log_alpha_C) / math.pi
  phase_BTC = x_BTC * half_turns_C[None, None]
  phase_BTC = phase_BTC - jnp.round(phase_BTC)
  square_BTC = phase_BTC * phase_BTC
  series_BTC = _SINE_SQUARED[-1] * square_BTC
  for coefficient in _SINE_SQUARED[-2:0:-1]:
    series_BTC = (series_BTC + coefficient) * square_BTC
  sine_squared_BTC = (series_BTC + _SINE_SQUARED[0]) * square_BTC
  magnitude_C = 1 / (jnp.exp(log_beta_C) + 1e-9)
  return x_BTC + magnitude_C[None, None] * sine_squared_BTC


class AliasFreeSnake(nn.Module):
  """Snake at twice the sampling rate between two low-pass filters; float32.

  The doubled signal is never interleaved: its even and odd samples are two
  arrays, each six taps away from the input and from the output. The barriers
  keep the padded arrays in memory; without them XLA recomputes all
  of Snake for each tap (measured: twice as long for the whole vocoder).
  """

  @nn.compact
  def __call__(self, x_BTC):
    width = x_BTC.shape[-1]
    zeros = nn.initializers.zeros
    log_alpha_C = self.param("log_alpha", zeros, (width,), jnp.float32)
    log_beta_C = self.param("log_beta", zeros, (width,), jnp.float32)
    x_BTC = x_BTC.astype(jnp.float32)
    x_BTC = jnp.pad(x_BTC, ((0, 0), (3, 3), (0, 0)), mode="edge")
    x_BTC = lax.optimization_barrier(x_BTC)
    even_BTC = _filtered(x_BTC[:, :-1], _EVEN_2)
    odd_BTC = _filtered(x_BTC[:, 1:], _ODD_2)
    even_BTC = _snake(even_BTC, log_alpha_C, log_beta_C)
    odd_BTC = _snake(odd_BTC, log_alpha_C, log_beta_C)
    # The doubled signal is held at its ends: it begins even and ends odd.
    first, last = even_BTC[:, :1], odd_BTC[:, -1:]
    even_BTC = jnp.concatenate([first] * 2 + [even_BTC] + [last] * 3, axis=1)
    odd_BTC = jnp.concatenate([first] * 3 + [odd_BTC] + [last] * 2, axis=1)
    even_BTC, odd_BTC = lax.optimization_barrier((even_BTC, odd_BTC))
    from_even_BTC: Any = _filtered(even_BTC, _ODD)
    return from_even_BTC + _filtered(odd_BTC, _EVEN)


class AMPBlock(nn.Module):
  """Residual pairs of a dilated and a plain convolution, Snake before each."""

  kernel_size: int
  dilations: tuple[int, ...]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    conv = functools.partial(
      nn.Conv, x_BTC.shape[-1], (self.kernel_size,), dtype=self.dtype
    )
    for n, dilation in enumerate(self.dilations):
      h_BTC = AliasFreeSnake(name=f"dilated_snake_{n}")(x_BTC)
      h_BTC = conv(kernel_dilation=dilation, name=f"dilated_{n}")(h_BTC)
      h_BTC = AliasFreeSnake(name=f"plain_snake_{n}")(h_BTC)
      h_BTC = conv(name=f"plain_{n}")(h_BTC)
      x_BTC = x_BTC + h_BTC.astype(jnp.float32)
    return x_BTC


class Upsample(nn.Module):
  """A transposed convolution that makes its input `rate` times as long.

  Computed as an ordinary convolution whose channels are the `rate` output
  samples of each position, so no inserted zeros are multiplied. The kernel is
  kept in that form, `JIQO`: tap `j · rate + q` of the transposed convolution is
  [j, :, q].
  """

  width: int
  rate: int
  kernel_size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x_BTC):
    taps = self.kernel_size // self.rate
    shape = (taps, x_BTC.shape[-1], self.rate, self.width)
    init = nn.initializers.lecun_normal(in_axis=(0, 1), batch_axis=(2,))
    kernel_JIQO = self.param("kernel", init, shape, jnp.float32)
    bias_C = self.param(
      "bias", nn.initializers.zeros, (self.width,), jnp.float32
    )
    # A convolution here is a correlation: the last tap meets the first input.
    kernel = einops.rearrange(kernel_JIQO[::-1], "j i q o -> j i (q o)")
    samples = lax.conv_general_dilated(
      x_BTC.astype(self.dtype),
      kernel.astype(self.dtype),
      window_strides=(1,),
      padding=[(taps - 1, taps - 1)],
      dimension_numbers=("NWC", "WIO", "NWC"),
    )
    samples = einops.rearrange(samples, "b t (q c) -> b (t q) c", q=self.rate)
    start = (self.kernel_size - self.rate) // 2
    samples = samples[:, start : start + x_BTC.shape[1] * self.rate]
    return samples.astype(jnp.float32) + bias_C[None, None]


class BigVGAN(nn.Module):
  """The vocoder.

  Attributes:
    config: sizes.
    dtype: compute dtype of the convolutions.
  """

  config: VocoderConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, mel_BTM):
    """Turn a spectrogram into sound.

    Args:
      mel_BTM: log10 mel magnitudes, as `mel.log_mel` gives them.

    Returns:
      wave_BA, float32 in [-1, 1], as many samples a frame as the product of the
      rates (256).

    Raises:
      ValueError: the spectrogram has another number of bins than `config`.
    """
    config = self.config
    if mel_BTM.shape[-1] != config.mel_bins:
      raise ValueError(
        f"vocoder: expected mel_BTM with {config.mel_bins} bins last, got"
        f" {mel_BTM.shape}"
      )
    conv = functools.partial(nn.Conv, kernel_size=(7,), dtype=self.dtype)
    width = config.upsample_initial_channel
    x_BTC = conv(width, name="conv_in")(mel_BTM)
    rates = zip(config.upsample_rates, config.upsample_kernel_sizes)
    for i, (rate, kernel_size) in enumerate(rates):
      width //= 2
      upsample = Upsample(
        width, rate, kernel_size, self.dtype, name=f"upsample_{i}"
      )
      x_BTC = self._blocks(i, upsample(x_BTC))
    x_BTC = AliasFreeSnake(name="snake_out")(x_BTC)
    wave_BAC = conv(1, name="conv_out")(x_BTC)
    return jnp.tanh(wave_BAC.astype(jnp.float32))[..., 0]

  def _blocks(self, i: int, x_BTC):
    """The mean of stage i's blocks, which differ in their field of view."""
    sizes = self.config.resblock_kernel_sizes
    results = [
      AMPBlock(size, dilations, self.dtype, name=f"block_{i}_{j}")(x_BTC)
      for j, (size, dilations) in enumerate(
        zip(sizes, self.config.resblock_dilation_sizes)
      )
    ]
    return sum(results) / len(results)
