"""Layers of the video autoencoder: one frame at a time, or a whole clip.

Given a frame (four axes), every layer that looks back in time keeps what later
frames will need of the earlier ones in the flax collection `cache`, which
starts as zeros. The network is thus a machine that frames stream through: the
memory it takes does not depend on the length of the clip, and there is no
padding in time.

The first latent frame of a clip stands for one video frame, every other one for
several. In the first step the loops over video frames (`over_frames`) therefore
compute their last frame only, and the layers that change the frame rate are
passed by. What they leave out stays zero.

Given a clip (five axes, `is_first` then `None`), the same layers with the same
parameters see all its frames at once and keep nothing: the same function, for
short clips and for gradients, which are slow through loops. Here the first
frame is simply alone.

Float32: RMSNorm, the SiLU after it, softmax. Everything else, the cache
included, follows the compute dtype.

Source: Wan2.2 `vae2_2.py` (`CausalConv3d`, `RMS_norm`, `Resample`,
`ResidualBlock`, `AttentionBlock`, `AvgDown3D`, `DupUp3D`).
"""

from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

# Frames a causal convolution sees: the new one and the two before it.
WINDOW = 3


def over_frames(
  module: nn.Module,
  apply: Callable[[Any, jax.Array], jax.Array],
  x_BTHWC: jax.Array,
  is_first: jax.Array | None,
  shape_THWC: tuple[int, ...],
) -> jax.Array:
  """Send frames through `apply(module, x_BHWC) -> y` in order.

  Args:
    module: owner of the parameters and of the cache that `apply` uses.
    apply: what one frame becomes: a frame (y_BHWC) or some (y_BTHWC).
    x_BTHWC: the frames.
    is_first: boolean scalar; when true, all frames but the last are left out.
      `None` for a whole clip, which `apply` is given as it is.
    shape_THWC: shape of what one frame becomes, without the batch axis.

  Returns:
    What the frames became, one after the other; zeros for those left out.
  """
  if is_first is None:
    return apply(module, x_BTHWC)
  batch, steps = x_BTHWC.shape[:2]
  if steps == 1:
    return as_clip(apply(module, x_BTHWC[:, 0]))
  if module.is_initializing():
    y_BTHWC = as_clip(apply(module, x_BTHWC[:, -1]))
    return jnp.tile(y_BTHWC, (1, steps, 1, 1, 1))

  def see(module, x_BHWC):
    return as_clip(apply(module, x_BHWC))

  def leave_out(_, x_BHWC):
    return jnp.zeros((batch, *shape_THWC), x_BHWC.dtype)

  def body(module, _, given):
    step, x_BHWC = given
    is_seen = jnp.logical_or(step == steps - 1, jnp.logical_not(is_first))
    return None, nn.cond(is_seen, see, leave_out, module, x_BHWC)

  scan = nn.scan(
    body,
    variable_carry="cache",
    variable_broadcast="params",
    split_rngs={"params": False},
  )
  frames = jnp.moveaxis(x_BTHWC, 1, 0)
  _, y_SBTHWC = scan(module, None, (jnp.arange(steps), frames))
  return einops.rearrange(y_SBTHWC, "s b t h w c -> b (s t) h w c")


def as_clip(x: jax.Array) -> jax.Array:
  """A frame (BHWC) as a clip of one (BTHWC); a clip as it is."""
  return x if x.ndim == 5 else x[:, None]


class RMSNorm(nn.Module):
  """Unit root mean square over channels, times a learned scale; float32."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
    x = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    gain = jnp.reshape(
      scale.astype(jnp.float32) * channels**0.5, (1,) * (x.ndim - 1) + (-1,)
    )
    return x / jnp.maximum(length, 1e-12) * gain


class CausalConv(nn.Module):
  """Convolution over the new frame and the two before it, and over its pixels.

  A frame is seen by three outputs: its own and the next two. All three parts
  are computed when it comes, by one 2-D convolution with three times the
  channels; the cache holds the sums that later frames will complete. That is
  the 3-D convolution's sum in another order. It takes less memory than to keep
  the inputs, and does without XLA's 3-D convolution, which is slow on a CPU. In
  a whole clip the parts of all frames come from one convolution.

  Attributes:
    features: channels that come out.
    size: rows and columns of the kernel; the frame is padded to keep its size.
    dtype: compute dtype.
  """

  features: int
  size: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Convolve a frame (BHWC) or a whole clip (BTHWC)."""
    kernel_THWIO = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (WINDOW, self.size, self.size, x.shape[-1], self.features),
      jnp.float32,
    )
    bias = self.param(
      "bias", nn.initializers.zeros, (self.features,), jnp.float32
    )
    parts = jax.lax.conv_general_dilated(
      x.reshape(-1, *x.shape[-3:]).astype(self.dtype),
      einops.rearrange(
        kernel_THWIO.astype(self.dtype), "t h w i o -> h w i (t o)"
      ),
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    shape = (*x.shape[:-1], self.features)
    in_two, in_one, now = (
      part.reshape(shape) for part in jnp.split(parts, WINDOW, axis=-1)
    )
    if x.ndim == 5:
      y = now + _later(in_one, 1) + _later(in_two, 2)
    else:
      soon = self.variable("cache", "soon", jnp.zeros, shape, self.dtype)
      late = self.variable("cache", "late", jnp.zeros, shape, self.dtype)
      y = soon.value + now
      soon.value = late.value + in_one
      late.value = in_two
    return y + jnp.reshape(bias.astype(self.dtype), (1,) * (x.ndim - 1) + (-1,))


def _later(x_BTHWC: jax.Array, frames: int) -> jax.Array:
  """The clip so many frames later: zeros come first, the end is cut off."""
  before = ((0, 0), (frames, 0), (0, 0), (0, 0), (0, 0))
  return jnp.pad(x_BTHWC, before)[:, : x_BTHWC.shape[1]]


class ResidualBlock(nn.Module):
  """Two causal convolutions, each after norm and SiLU, added to the input."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.silu(RMSNorm(name="norm1")(x))
    y = CausalConv(self.features, dtype=self.dtype, name="conv1")(y)
    y = nn.silu(RMSNorm(name="norm2")(y))
    y = CausalConv(self.features, dtype=self.dtype, name="conv2")(y)
    if x.shape[-1] != self.features:
      x = nn.Dense(self.features, dtype=self.dtype, name="shortcut")(x)
    return x + y


class Attention(nn.Module):
  """One head of self-attention among the positions of each frame."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    y = RMSNorm(name="norm")(x)
    y = nn.Dense(3 * channels, dtype=self.dtype, name="qkv")(y)
    y = einops.rearrange(y, "... h w (qkv k) -> qkv (...) (h w) 1 k", qkv=3)
    y = jax.nn.dot_product_attention(y[0], y[1], y[2]).reshape(x.shape)
    return x + nn.Dense(channels, dtype=self.dtype, name="out")(y)


class Middle(nn.Module):
  """Residual block, attention, residual block at the latents' resolution."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = ResidualBlock(self.features, self.dtype, name="block1")(x)
    x = Attention(self.dtype, name="attention")(x)
    return ResidualBlock(self.features, self.dtype, name="block2")(x)


class Head(nn.Module):
  """Norm, SiLU and a causal convolution to the channels that leave."""

  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = nn.silu(RMSNorm(name="norm")(x))
    return CausalConv(self.features, dtype=self.dtype, name="conv")(y)


class TimeUp(nn.Module):
  """One frame in, two out; in the first step the frame itself, twice.

  Of a whole clip's first frame comes one, which is the frame itself.
  """

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, is_first: jax.Array | None) -> jax.Array:
    conv = CausalConv(2 * x.shape[-1], 1, self.dtype, name="conv")
    # The convolution never sees the first frame of a clip, not even as past.
    if is_first is None:
      y = einops.rearrange(
        conv(x[:, 1:]), "b t h w (f c) -> b (t f) h w c", f=2
      )
      return jnp.concatenate([x[:, :1].astype(self.dtype), y], axis=1)
    y = conv(jnp.where(is_first, jnp.zeros_like(x), x))
    y_BTHWC = einops.rearrange(y, "b h w (t c) -> b t h w c", t=2)
    same_BTHWC = einops.repeat(x, "b h w c -> b t h w c", t=2)
    return jnp.where(is_first, same_BTHWC.astype(self.dtype), y_BTHWC)


class TimeDown(nn.Module):
  """Two frames in, one out; in the first step every second frame as it is."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x_BTHWC: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    batch, frames, height, width, channels = x_BTHWC.shape
    kernel_THWIO = self.param(
      "kernel",
      nn.initializers.lecun_normal(),
      (WINDOW, 1, 1, channels, channels),
      jnp.float32,
    )
    bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
    x_BTHWC = x_BTHWC.astype(self.dtype)
    if is_first is None:
      padded, frames = x_BTHWC, frames - 1
    else:
      shape = (batch, 1, height, width, channels)
      past = self.variable("cache", "past", jnp.zeros, shape, self.dtype)
      padded = jnp.concatenate([past.value, x_BTHWC], axis=1)
      past.value = padded[:, -1:]
    taps = [padded[:, tap : tap + frames : 2] for tap in range(WINDOW)]
    kernel = kernel_THWIO.astype(self.dtype)
    y_BTHWC = jnp.einsum(
      "bthwi,io->bthwo",
      jnp.concatenate(taps, axis=-1),
      einops.rearrange(kernel, "t 1 1 i o -> (t i) o"),
    ) + jnp.reshape(bias.astype(self.dtype), (1, 1, 1, 1, -1))
    if is_first is None:
      return jnp.concatenate([x_BTHWC[:, :1], y_BTHWC], axis=1)
    return jnp.where(is_first, x_BTHWC[:, 1::2], y_BTHWC)


def average_down(
  x_BTHWC: jax.Array, features: int, time: int, space: int
) -> jax.Array:
  """Fold `time` frames and `space`² pixels into channels, average to fewer.

  Where the frames are one too many, the first is folded with zeros.
  """
  missing = -x_BTHWC.shape[1] % time
  x = einops.rearrange(
    jnp.pad(x_BTHWC, ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0))),
    "b (t f) (h p) (w q) c -> b t h w (c f p q)",
    f=time,
    p=space,
    q=space,
  )
  return einops.reduce(x, "b t h w (c n) -> b t h w c", "mean", c=features)


def duplicate_up(
  x: jax.Array, features: int, time: int, space: int
) -> jax.Array:
  """Repeat channels, unfold them to `time` frames and `space`² pixels.

  Of a whole clip's first frame only the last that comes is kept.
  """
  repeats = features * time * space**2 // x.shape[-1]
  y_BTHWC = einops.rearrange(
    einops.repeat(as_clip(x), "b t h w c -> b t h w (c n)", n=repeats),
    "b t h w (c f p q) -> b (t f) (h p) (w q) c",
    f=time,
    p=space,
    q=space,
  )
  return y_BTHWC[:, time - 1 :] if x.ndim == 5 else y_BTHWC
