"""Where a codec's arrays lie: rows and columns of pixels are split.

A convolution then asks its neighbours for a row or two, which XLA sees to. The
few frames that come out are whole on every device.
"""

from typing import Any

import jax
import jax.core

from ovi_jax.sharding import logical_axes

FRAME = "BHWC"
CLIP = "BTHWC"


def whole(params: Any) -> jax.sharding.Sharding | None:
  """Where results go: unsplit, to the devices of the parameters.

  Said outright, lest the first step's cache be placed unlike the others' and
  the step compiled twice. None (no matter where) for parameters on the host
  and inside another jitted function.
  """
  leaf = jax.tree.leaves(params)[0]
  if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
    return None
  if isinstance(leaf.sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(leaf.sharding.mesh, jax.P())
  return leaf.sharding


def split(cache: Any, place: jax.sharding.Sharding | None) -> Any:
  """Where a cache's frames go, if `place` is of several devices."""

  def one(leaf: Any) -> jax.sharding.Sharding | None:
    if not isinstance(place, jax.sharding.NamedSharding):
      return place
    sizes = dict(place.mesh.shape)
    spec = logical_axes.spec(FRAME, leaf.shape, sizes, logical_axes.ACTIVATIONS)
    return jax.sharding.NamedSharding(place.mesh, spec)

  return jax.tree.map(one, cache)


def constrain(x: jax.Array) -> jax.Array:
  """A frame, or a clip, split on the ambient mesh."""
  return logical_axes.constrain(x, FRAME if x.ndim == len(FRAME) else CLIP)
