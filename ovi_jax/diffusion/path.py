"""The straight path between data and noise, and the velocity along it.

sigma is in [0, 1] and 1 is noise; the model is told t = 1000 sigma. The
velocity points from data to noise, as the released weights predict it (the
paper writes time the other way round). All of it is float32.
"""

from typing import Any

import jax
import jax.numpy as jnp

TIME_SCALE = 1000.0  # the model's t for sigma = 1


def shift_sigma(sigma: Any, shift: float) -> Any:
  """Move noise levels towards 1 by `shift` (1 = unchanged)."""
  return shift * sigma / (1 + (shift - 1) * sigma)


def interpolate(
  data: jax.Array, noise: jax.Array, sigma_BT: jax.Array
) -> jax.Array:
  """x_t = (1 - sigma) data + sigma noise.

  Args:
    data: latents [B, T, ..., C].
    noise: standard normal, of the same shape.
    sigma_BT: noise level of each latent in time, or T = 1 for all of them.
  """
  sigma = sigma_BT.reshape(*sigma_BT.shape, *(1,) * (data.ndim - 2))
  return (1 - sigma) * data.astype(jnp.float32) + sigma * noise


def velocity(data: jax.Array, noise: jax.Array) -> jax.Array:
  """What the model learns to predict: noise - data, at every time."""
  return noise - data.astype(jnp.float32)
