"""Sizes of the video autoencoder.

The defaults are those of the released `Wan2.2_VAE.pth`; the latent statistics
are published beside it, in the code of Wan2.2 (`vae2_2.py`).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ovi_jax import config as config_lib

# One figure a latent channel, measured by the authors on their data.
# fmt: off
LATENT_MEAN = (
  -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
  -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825,
  -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
  -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230,
  -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748,
  0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)
LATENT_STD = (
  0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013,
  0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
  0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
  0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
  0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
  0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)
# fmt: on

COLOURS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
  """Sizes of the video autoencoder.

  Attributes:
    dim: encoder width at full resolution, before `dim_mult`.
    dec_dim: decoder width at full resolution, before `dim_mult`.
    z_dim: latent channels.
    dim_mult: width of each encoder stage over `dim`; the decoder goes through
      them backwards. All stages but the last halve rows and columns.
    num_res_blocks: residual blocks an encoder stage; the decoder has one more.
    temporal_downsample: for each stage but the last, whether it also halves
      the frame rate.
    latent_mean: what is taken from each latent channel.
    latent_std: what each latent channel is then divided by.
    patch: rows and columns of pixels folded into channels at the very outside.
  """

  dim: int = 160
  dec_dim: int = 256
  z_dim: int = 48
  dim_mult: tuple[int, ...] = (1, 2, 4, 4)
  num_res_blocks: int = 2
  temporal_downsample: tuple[bool, ...] = (False, True, True)
  latent_mean: tuple[float, ...] = LATENT_MEAN
  latent_std: tuple[float, ...] = LATENT_STD
  patch: int = 2

  def __post_init__(self):
    problems = []
    if len(self.temporal_downsample) != len(self.dim_mult) - 1:
      problems.append(
        f"temporal_downsample has {len(self.temporal_downsample)} entries,"
        f" expected {len(self.dim_mult) - 1}: one less than dim_mult"
      )
    for name in ("latent_mean", "latent_std"):
      if len(getattr(self, name)) != self.z_dim:
        problems.append(
          f"{name} has {len(getattr(self, name))} entries, expected z_dim ="
          f" {self.z_dim}"
        )
    for name in ("dim", "dec_dim", "z_dim", "num_res_blocks", "patch"):
      if getattr(self, name) < 1:
        problems.append(f"{name} is {getattr(self, name)}, expected 1 or more")
    config_lib.check(problems, "VideoVAEConfig: ")

  @classmethod
  def from_release(cls, sizes: Mapping[str, Any]) -> "VideoVAEConfig":
    """The config of a release's `video_vae` sizes (lists become tuples).

    Raises:
      ValueError: a key is not a field of this config; the message names it.
    """
    return config_lib.from_sizes(cls, sizes, "the video VAE")

  @property
  def spatial_stride(self) -> int:
    """Pixels a latent along rows and columns."""
    return self.patch * 2 ** (len(self.dim_mult) - 1)

  @property
  def temporal_stride(self) -> int:
    """Frames a latent, except the first latent, which is one frame."""
    return 2 ** sum(self.temporal_downsample)

  @property
  def patch_channels(self) -> int:
    """Channels of a patch of pixels."""
    return COLOURS * self.patch**2
