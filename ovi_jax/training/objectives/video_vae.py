"""The video VAE's objective: reconstruction of clips.

Losses are float32; the network follows the compute dtype. Short crops are
processed whole (`codec.encode_whole`), and the first frame of a crop is
processed like the first frame of a clip. (Ovi and Wan2.2 publish no training
of their VAE; terms and weights are ours.)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax.data import schema
from ovi_jax.models.video_vae import codec
from ovi_jax.models.video_vae import config as video_vae

_LOGVAR = (-30.0, 20.0)  # limits of the logarithm of a latent's variance
_STILL = 0.005  # mean change of a pixel that is taken for none


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoVAEObjective:
  """Terms: error of all pixels, error of moving pixels, and KL divergence.

  Attributes:
    config: sizes.
    dtype: compute dtype.
    recon_weight: weight of the mean error of all pixels, which are in [-1, 1].
    motion_weight: weight of the mean error of pixels, weighted by their
      distance from their temporal mean over the crop, so that small moving
      objects count.
    kl_weight: weight of the mean KL divergence of a latent from a unit
      Gaussian, in nats.
    smoothness_weight: scale of the pseudo-Huber error: smaller errors count
      quadratically, larger ones linearly.
  """

  config: video_vae.VideoVAEConfig
  dtype: jnp.dtype = dataclasses.field(default_factory=lambda: jnp.dtype("f4"))
  recon_weight: float = 1.0
  motion_weight: float = 0.5
  kl_weight: float = 1e-4
  smoothness_weight: float = 0.05

  def __post_init__(self):
    weights = self.recon_weight, self.motion_weight, self.kl_weight
    if (
      min(weights) < 0
      or self.recon_weight + self.motion_weight == 0
      or self.smoothness_weight <= 0
    ):
      raise ValueError(
        "objective: weights must not be negative, recon_weight or"
        " motion_weight positive, and smoothness_weight positive; got"
        f" recon_weight {self.recon_weight}, motion_weight"
        f" {self.motion_weight}, kl_weight {self.kl_weight} and"
        f" smoothness_weight {self.smoothness_weight}"
      )

  def sample_noise(self, key: jax.Array, example: schema.Batch) -> jax.Array:
    """noise_THWC of the latents of a clip."""
    frames, height, width, _ = example.latents.video.shape
    time, side = self.config.temporal_stride, self.config.spatial_stride
    shape_THW = 1 + (frames - 1) // time, height // side, width // side
    return jax.random.normal(key, (*shape_THW, self.config.z_dim))

  def example_weights(
    self, batch: schema.Batch, sample: Any
  ) -> Mapping[str, jax.Array]:
    del sample
    seen_B = (batch.lengths.video > 0).astype(jnp.float32)
    share_B = seen_B / jnp.maximum(seen_B.sum(), 1.0)
    scales = {
      "recon": self.recon_weight,
      "motion": self.motion_weight,
      "kl": self.kl_weight,
    }
    return {name: scale * share_B for name, scale in scales.items()}

  def loss_terms(
    self,
    params: Any,
    batch: schema.Batch,
    sample: jax.Array,
    null_SE: jax.Array,
  ) -> Mapping[str, jax.Array]:
    del null_SE
    frames_BTHWC = batch.latents.video
    mean, logvar = codec.encode_whole(
      self.config, params, frames_BTHWC, self.dtype
    )
    logvar = jnp.clip(logvar, *_LOGVAR)
    latents = mean + jnp.exp(logvar / 2) * sample
    made = codec.decode_whole(self.config, params, latents, self.dtype)
    target = frames_BTHWC.astype(jnp.float32) / 127.5 - 1
    error = (
      jnp.sqrt(jnp.square(made - target) + self.smoothness_weight**2)
      - self.smoothness_weight
    )
    change = jnp.abs(target - target.mean(1, keepdims=True))
    axes = (1, 2, 3, 4)
    divergence = (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar) / 2
    found = {
      "recon": error.mean(axes),
      # Nothing moves: no change, and no division by it.
      "motion": (change * error).mean(axes) / (change.mean(axes) + _STILL),
      "kl": divergence.mean(axes),
    }
    seen_B = batch.lengths.video > 0
    return {name: jnp.where(seen_B, x, 0.0) for name, x in found.items()}
