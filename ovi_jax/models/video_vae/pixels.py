"""What goes into the video autoencoder and comes out: pixels, checked.

They are RGB in [-1, 1], float32; the network sees patches of them as channels.
Source: Wan2.2 `vae2_2.py` (`patchify`, `unpatchify`).
"""

from typing import Any

import einops
import jax
import jax.numpy as jnp

from ovi_jax.models.video_vae import config as config_lib

Config = config_lib.VideoVAEConfig


def patches(config: Config, frames_BTHWC: jax.Array) -> jax.Array:
  """Patches of pixels in [-1, 1], floating point or uint8 pixels given."""
  if frames_BTHWC.dtype == jnp.uint8:
    frames_BTHWC = frames_BTHWC.astype(jnp.float32) / 127.5 - 1
  return einops.rearrange(
    frames_BTHWC,
    "b t (h q) (w r) c -> b t h w (c r q)",
    q=config.patch,
    r=config.patch,
  )


def unpatched(config: Config, x_BTHWC: Any) -> jax.Array:
  """Undo `patches`, in float32."""
  frames_BTHWC = einops.rearrange(
    x_BTHWC,
    "b t h w (c r q) -> b t (h q) (w r) c",
    q=config.patch,
    r=config.patch,
  )
  return frames_BTHWC.astype(jnp.float32)


def check_frames(config: Config, frames_BTHWC: Any) -> tuple[int, ...]:
  """The sizes B, T, H, W of a clip, if it is one that can be encoded."""
  shape, stride = tuple(frames_BTHWC.shape), config.temporal_stride
  problems = []
  if len(shape) != 5 or shape[-1] != config_lib.COLOURS:
    raise ValueError(
      f"frames have shape {shape}, expected (batch, frames, height, width,"
      f" {config_lib.COLOURS})"
    )
  if shape[1] % stride != 1 % stride:
    problems.append(
      f"{shape[1]} frames, expected 1 + a multiple of {stride}; cut the clip"
    )
  side = config.spatial_stride
  if shape[2] % side or shape[3] % side:
    problems.append(
      f"{shape[2]} x {shape[3]} pixels, expected multiples of {side}; crop or"
      " resize the frames"
    )
  dtype = frames_BTHWC.dtype
  if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
    problems.append(
      f"pixels are {dtype}, expected floating point in [-1, 1], or uint8"
    )
  if problems:
    raise ValueError("cannot encode the clip: " + "; ".join(problems))
  return shape[:4]


def check_latents(config: Config, latents_BTHWC: Any) -> None:
  """Refuse what is no clip of latents."""
  shape = tuple(latents_BTHWC.shape)
  if len(shape) != 5 or shape[-1] != config.z_dim or not shape[1]:
    raise ValueError(
      f"latents have shape {shape}, expected (batch, latent frames,"
      f" rows, columns, {config.z_dim}) with one latent frame or more"
    )
