"""The device mesh: axes data, fsdp, context, tensor.

  data     examples; in sampling, the two passes of guidance
  fsdp     examples, and weights, which are all-gathered block by block
  context  video tokens; weights of the video tower as on fsdp; heads and hidden
           units of audio and text layers, see `logical_axes`
  tensor   heads and hidden units

On a TPU, neighbours along a mesh axis are neighbours in the torus. With several
slices, connected by DCN only, `data` must be a multiple of their number.
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
    A mesh with all axes of `AXES`. With several TPU slices, only the axis data
    crosses slices.

  Raises:
    ValueError: an axis is unknown, the product of the sizes is not the number
      of devices, or the axis data is not a multiple of the number of slices.
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
  """The devices in the shape of a mesh."""
  slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
  if slices > 1:
    if shape[0] % slices:
      raise ValueError(
        f"mesh axis data has {shape[0]} parts, which cannot be divided among"
        f" {slices} slices; use a multiple of {slices}"
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
    sizes: devices along each axis; 0 for the remaining ones. If several axes
      are 0, fsdp takes them, or the first if fsdp is not 0; the others become
      1.
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
    devices: all devices; if their number is even, the positive and the negative
      pass of guidance get one half each (axis data).
    heads: number of attention heads.

  Returns:
    A mesh. Within a half, the size of the axis context is the greatest common
    divisor of the number of devices and heads; fsdp takes the rest.
  """
  data = 2 if len(devices) % 2 == 0 else 1
  rest = len(devices) // data
  context = math.gcd(rest, heads)
  return make(devices, data=data, fsdp=rest // context, context=context)
