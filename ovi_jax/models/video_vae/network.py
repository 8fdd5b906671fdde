"""Encoder and decoder of the video VAE: frame by frame, or a whole clip.

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

The encoder's moments and the decoder's patches are in the compute dtype.
Frames are split over devices by rows and columns; a convolution then fetches
the border rows of its neighbours, which XLA inserts.

Source: Wan2.2 `vae2_2.py` (`CausalConv3d`, `RMS_norm`, `Resample`,
`ResidualBlock`, `AttentionBlock`, `AvgDown3D`, `DupUp3D`, `Encoder3d`,
`Decoder3d`, `Down_ResidualBlock`, `Up_ResidualBlock`, `conv1`, `conv2`).
"""

import math
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.models.video_vae import config as config_lib
from ovi_jax.sharding import logical_axes

# Frames a causal convolution sees: the new one and the two before it.
WINDOW = 3
# Logical axes of a frame and of a clip.
FRAME = "BHWC"
CLIP = "BTHWC"


def constrain(x: jax.Array) -> jax.Array:
  """A frame, or a clip, split on the ambient mesh."""
  return logical_axes.constrain(x, FRAME if x.ndim == len(FRAME) else CLIP)


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


class _Stage(nn.Module):
  """A stage of the encoder or the decoder.

  Attributes:
    features: channels that come out.
    blocks: number of residual blocks.
    time: 2 to halve or double the frame rate, 1 to keep it.
    space: 2 to halve or double rows and columns, 1 to keep them.
    dtype: compute dtype.
  """

  features: int
  blocks: int
  time: int
  space: int
  dtype: jnp.dtype = jnp.float32


class DownStage(_Stage):
  """Residual blocks, then half the rows, columns and maybe frames."""

  def setup(self):
    self.block = [
      ResidualBlock(self.features, self.dtype) for _ in range(self.blocks)
    ]
    if self.space == 2:
      self.down = nn.Conv(
        self.features,
        kernel_size=(3, 3),
        strides=(2, 2),
        padding=((0, 1), (0, 1)),
        dtype=self.dtype,
      )
    if self.time == 2:
      self.time_down = TimeDown(self.dtype)

  def frame(self, x: jax.Array) -> jax.Array:
    """What happens at the frames' rate."""
    for block in self.block:
      x = block(x)
    return self.down(x) if self.space == 2 else x

  def __call__(
    self, x_BTHWC: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    height, width = (n // self.space for n in x_BTHWC.shape[2:4])
    shape_THWC = (1, height, width, self.features)
    y_BTHWC = over_frames(self, DownStage.frame, x_BTHWC, is_first, shape_THWC)
    if self.time == 2:
      y_BTHWC = self.time_down(y_BTHWC, is_first)
    return y_BTHWC + average_down(x_BTHWC, self.features, self.time, self.space)


class Encoder(nn.Module):
  """Patched video frames of one step -> mean and log variance of one latent.

  Attributes:
    config: sizes.
    dtype: compute dtype.
  """

  config: config_lib.VideoVAEConfig
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    config = self.config
    widths = [config.dim * m for m in config.dim_mult]
    self.stem = CausalConv(widths[0], dtype=self.dtype)
    self.stages = [
      DownStage(
        features=width,
        blocks=config.num_res_blocks,
        time=2 if i < last and config.temporal_downsample[i] else 1,
        space=2 if i < last else 1,
        dtype=self.dtype,
      )
      for last in [len(widths) - 1]
      for i, width in enumerate(widths)
    ]
    self.middle = Middle(widths[-1], self.dtype)
    self.head = Head(2 * config.z_dim, self.dtype)
    self.moments = nn.Dense(2 * config.z_dim, dtype=self.dtype)

  def __call__(
    self, x_BTHWC: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    """Encode the frames of one latent, or of a whole clip.

    Args:
      x_BTHWC: `temporal_stride` frames of patches, `patch_channels` channels.
        Of a whole clip 1 + n · `temporal_stride`.
      is_first: boolean scalar; when true only the last frame counts. `None` for
        a whole clip.

    Returns:
      moments_BHWC, of a whole clip moments_BTHWC: `z_dim` means, not
      normalised, then as many logarithms of variances.
    """
    shape_THWC = (1, *x_BTHWC.shape[2:4], self.stem.features)
    x_BTHWC = over_frames(
      self,
      lambda module, x: module.stem(x),
      x_BTHWC.astype(self.dtype),
      is_first,
      shape_THWC,
    )
    for stage in self.stages:
      x_BTHWC = stage(x_BTHWC, is_first)
    x = x_BTHWC if is_first is None else x_BTHWC[:, 0]
    return self.moments(self.head(self.middle(x)))


class UpStage(_Stage):
  """Residual blocks, then maybe twice the frames, rows and columns."""

  @nn.compact
  def __call__(self, x: jax.Array, is_first: jax.Array | None) -> jax.Array:
    y = x
    for i in range(self.blocks):
      y = ResidualBlock(self.features, self.dtype, name=f"block_{i}")(y)
    if self.time == 2:
      y = TimeUp(self.dtype, name="time_up")(y, is_first)
    y_BTHWC = as_clip(y)
    if self.space == 1:
      return y_BTHWC
    y_BTHWC = einops.repeat(y_BTHWC, "b t h w c -> b t (h p) (w q) c", p=2, q=2)
    conv = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="up")
    return conv(y_BTHWC) + duplicate_up(x, self.features, self.time, self.space)


class Decoder(nn.Module):
  """One latent frame -> patched video frames of one step.

  Where a stage doubles the frames, each of the two goes all the way to pixels
  before the other one starts: what is held is large for one frame only.

  Attributes:
    config: sizes.
    dtype: compute dtype.
  """

  config: config_lib.VideoVAEConfig
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    config = self.config
    widths = [config.dec_dim * m for m in reversed(config.dim_mult)]
    times = [1 + up for up in reversed(config.temporal_downsample)]
    self.latent = nn.Dense(config.z_dim, dtype=self.dtype)
    self.stem = CausalConv(widths[0], dtype=self.dtype)
    self.middle = Middle(widths[0], self.dtype)
    self.stages = [
      UpStage(width, config.num_res_blocks + 1, time, space, self.dtype)
      for width, time, space in zip(
        widths, [*times, 1], [2] * len(times) + [1], strict=True
      )
    ]
    self.head = Head(config.patch_channels, self.dtype)

  def __call__(
    self, latent: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    """Decode one latent, or those of a whole clip.

    Args:
      latent: latent_BHWC, of a whole clip latents_BTHWC; not normalised.
      is_first: boolean scalar; when true only the last frame returned counts.
        `None` for a whole clip.

    Returns:
      x_BTHWC, `temporal_stride` frames of patches with `patch_channels`; of a
      whole clip's first latent one frame.
    """
    latent = constrain(self.latent(latent))
    x = self.middle(self.stem(latent))
    return self._from_stage(0, x, is_first)

  def _from_stage(
    self, index: int, x: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    """Send one frame through stage `index`, all after it and the head."""
    x = constrain(x)
    if index == len(self.stages):
      return self.head(x)
    y_BTHWC = self.stages[index](x, is_first)
    after = self.stages[index + 1 :]
    scale = math.prod(stage.space for stage in after)
    height, width = (n * scale for n in y_BTHWC.shape[2:4])
    times = math.prod(stage.time for stage in after)
    return over_frames(
      self,
      lambda module, y: module._from_stage(index + 1, y, is_first),
      y_BTHWC,
      is_first,
      (times, height, width, self.config.patch_channels),
    )
