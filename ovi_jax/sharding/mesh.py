"""The device mesh: axes data, fsdp, context, tensor.

  data     examples; in sampling, the two passes of guidance
  fsdp     examples, and the weights that are gathered for them
  context  tokens of the video; weights of what has few tokens, see `axes`
  tensor   heads and hidden units

On a TPU neighbours on an axis are neighbours in the torus. Of several slices,
linked by a network only, `data` takes as many parts as there are slices.
"""

import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

AXES = ("data", "fsdp", "context", "tensor")


def make(devices: Sequence[Any], **sizes: int) -> jax.sharding.Mesh:
  """Make a mesh, e.g. `make(jax.devices(), fsdp=2, context=4)`.

  Args:
    devices: all devices of the mesh, in order.
    **sizes: devices along each axis of `AXES`; 1 for axes that are not named.

  Returns:
    A mesh with all axes of `AXES`. Over several TPU slices, only the axis data
    crosses slices.

  Raises:
    ValueError: an axis is unknown, the sizes do not multiply to the number of
      devices, or the slices do not divide the axis data.
  """
  unknown = sizes.keys() - set(AXES)
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  if unknown or math.prod(shape) != len(devices) or min(shape) < 1:
    raise ValueError(
      f"mesh {dict(sizes)} must name axes of {AXES} and multiply to"
      f" {len(devices)} devices"
    )
  auto = (jax.sharding.AxisType.Auto,) * len(AXES)
  return jax.sharding.Mesh(_placed(devices, shape), AXES, axis_types=auto)


def _placed(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
  """Devices in a mesh's shape."""
  slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(
        f"mesh axis data has {shape[0]} parts, which cannot be divided among"
        f" {slices} slices; give it a multiple of {slices}"
      )
    inner = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(
      inner,
      (slices, 1, 1, 1),
      devices,
      allow_split_physical_axes=True,
    )
  if devices[0].platform != "tpu":
    return np.reshape(np.asarray(devices), shape)
  return mesh_utils.create_device_mesh(
    shape, devices, allow_split_physical_axes=True
  )


def resolve_sizes(sizes: Mapping[str, int], devices: int) -> dict[str, int]:
  """Replace zeros in mesh sizes: one axis takes the remaining devices.

  Args:
    sizes: devices along each axis, 0 for all that remain. Of several zeros,
      fsdp takes them if it is among them, else the first; the others are 1.
    devices: number of devices.

  Returns:
    Devices along each axis, 1 or more.
  """
  found = {name: size or 1 for name, size in sizes.items()}
  open_axes = [name for name in sizes if sizes[name] == 0]
  if open_axes:
    chosen = "fsdp" if "fsdp" in open_axes else open_axes[0]
    found[chosen] = max(1, devices // math.prod(found.values()))
  return found


def for_sampling(devices: Sequence[Any], heads: int) -> jax.sharding.Mesh:
  """The default mesh for sampling one clip.

  Args:
    devices: all devices; an even number is halved between the positive and the
      negative pass of guidance (axis data).
    heads: number of attention heads.

  Returns:
    A mesh. Within a half, the axis context takes the greatest common divisor of
    devices and heads, fsdp the rest.
  """
  data = 2 if len(devices) % 2 == 0 else 1
  rest = len(devices) // data
  context = math.gcd(rest, heads)
  return make(devices, data=data, fsdp=rest // context, context=context)
