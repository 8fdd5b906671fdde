"""The encoder: pixels of one step in, one latent frame out; or whole clips.

Source: Wan2.2 `vae2_2.py` (`Encoder3d`, `Down_ResidualBlock`, `conv1`). What is
float32 is said in `layers`; the latent comes out in the compute dtype.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.models.video_vae import config as config_lib
from ovi_jax.models.video_vae import layers


class DownStage(nn.Module):
  """Residual blocks, then half the rows, columns and maybe frames.

  Attributes:
    features: channels that come out.
    blocks: number of residual blocks.
    time: 2 to halve the frame rate, 1 to keep it.
    space: 2 to halve rows and columns, 1 to keep them.
    dtype: compute dtype.
  """

  features: int
  blocks: int
  time: int
  space: int
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    self.block = [
      layers.ResidualBlock(self.features, self.dtype)
      for _ in range(self.blocks)
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
      self.time_down = layers.TimeDown(self.dtype)

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
    y_BTHWC = layers.over_frames(
      self, DownStage.frame, x_BTHWC, is_first, shape_THWC
    )
    if self.time == 2:
      y_BTHWC = self.time_down(y_BTHWC, is_first)
    return y_BTHWC + layers.average_down(
      x_BTHWC, self.features, self.time, self.space
    )


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
    self.stem = layers.CausalConv(widths[0], dtype=self.dtype)
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
    self.middle = layers.Middle(widths[-1], self.dtype)
    self.head = layers.Head(2 * config.z_dim, self.dtype)
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
    x_BTHWC = layers.over_frames(
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
