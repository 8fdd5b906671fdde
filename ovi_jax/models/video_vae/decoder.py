"""The decoder: one latent frame in, pixels of one step out; or whole clips.

Source: Wan2.2 `vae2_2.py` (`Decoder3d`, `Up_ResidualBlock`, `conv2`). What is
float32 is said in `layers`; the patches come out in the compute dtype.
"""

import math

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.models.video_vae import config as config_lib
from ovi_jax.models.video_vae import layers
from ovi_jax.models.video_vae import placement


class UpStage(nn.Module):
  """Residual blocks, then maybe twice the frames, twice the rows and columns.

  Attributes:
    features: channels that come out.
    blocks: number of residual blocks.
    time: 2 to double the frame rate, 1 to keep it.
    space: 2 to double rows and columns, 1 to keep them.
    dtype: compute dtype.
  """

  features: int
  blocks: int
  time: int
  space: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, is_first: jax.Array | None) -> jax.Array:
    y = x
    for i in range(self.blocks):
      y = layers.ResidualBlock(self.features, self.dtype, name=f"block_{i}")(y)
    if self.time == 2:
      y = layers.TimeUp(self.dtype, name="time_up")(y, is_first)
    y_BTHWC = layers.as_clip(y)
    if self.space == 1:
      return y_BTHWC
    y_BTHWC = einops.repeat(y_BTHWC, "b t h w c -> b t (h p) (w q) c", p=2, q=2)
    conv = nn.Conv(self.features, (3, 3), dtype=self.dtype, name="up")
    return conv(y_BTHWC) + layers.duplicate_up(
      x, self.features, self.time, self.space
    )


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
    self.stem = layers.CausalConv(widths[0], dtype=self.dtype)
    self.middle = layers.Middle(widths[0], self.dtype)
    self.stages = [
      UpStage(width, config.num_res_blocks + 1, time, space, self.dtype)
      for width, time, space in zip(
        widths, [*times, 1], [2] * len(times) + [1], strict=True
      )
    ]
    self.head = layers.Head(config.patch_channels, self.dtype)

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
    latent = placement.constrain(self.latent(latent))
    x = self.middle(self.stem(latent))
    return self._from_stage(0, x, is_first)

  def _from_stage(
    self, index: int, x: jax.Array, is_first: jax.Array | None
  ) -> jax.Array:
    """Send one frame through stage `index`, all after it and the head."""
    x = placement.constrain(x)
    if index == len(self.stages):
      return self.head(x)
    y_BTHWC = self.stages[index](x, is_first)
    after = self.stages[index + 1 :]
    scale = math.prod(stage.space for stage in after)
    height, width = (n * scale for n in y_BTHWC.shape[2:4])
    times = math.prod(stage.time for stage in after)
    return layers.over_frames(
      self,
      lambda module, y: module._from_stage(index + 1, y, is_first),
      y_BTHWC,
      is_first,
      (times, height, width, self.config.patch_channels),
    )
