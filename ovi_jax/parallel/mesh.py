"""The device mesh: axes data, fsdp, context, tensor."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

AXES = ("data", "fsdp", "context", "tensor")


def make(devices: Sequence[Any], **sizes: int) -> jax.sharding.Mesh:
  """A mesh over `devices`, e.g. `make(jax.devices(), fsdp=2, context=4)`.

  Args:
    devices: all devices of the mesh, in order.
    **sizes: devices along each axis; an axis that is not named has one.

  Raises:
    ValueError: an unknown axis, or sizes that do not multiply to the devices.
  """
  unknown = sizes.keys() - set(AXES)
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  if unknown or int(np.prod(shape)) != len(devices):
    raise ValueError(
      f"mesh {sizes} must name axes of {AXES} and multiply to"
      f" {len(devices)} devices"
    )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(np.reshape(devices, shape), AXES, axis_types=auto)


def for_sampling(devices: Sequence[Any], heads: int) -> jax.sharding.Mesh:
  """One clip at a time: heads are split as far as they go, weights further.

  Heads divide more often than tokens do, and no attention kernel minds. What
  the heads leave over splits weights, and the two guidance passes if it is 2.
  """
  tensor = math.gcd(len(devices), heads)
  return make(devices, fsdp=len(devices) // tensor, tensor=tensor)
