"""The legend of shape letters, and where each letter lives on the mesh.

Array names end in their axes: `video_BTHWC`, `q_BLNK`. The same letters serve
einsum, einops and sharding, so this table is read by the models (activations)
and by `parallel.partition` (parameters), and by nobody else.

  B batch            T latent frames, audio steps   H W rows, columns
  C channels         L tokens of the stream         S context tokens
  D width            F feed-forward                 N heads
  K head size        E text width                   P modulation parts
  M mel bins         A waveform samples             G scanned block
"""

from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec as P

# Letters without an entry are never split.
MESH_AXES: Mapping[str, str] = {
    "B": "data",
    "L": "context",
    "D": "fsdp",
    "F": "tensor",
    "N": "tensor",
}


def spec(letters: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> P:
  """The partition of an array over a mesh.

  Args:
    letters: one letter an axis, from the legend above; `-` for never split.
    shape: the array's shape.
    sizes: devices along each mesh axis, by name.

  Returns:
    A `PartitionSpec`. An axis that its mesh axis does not divide stays whole,
    and no mesh axis is used twice (the first letter that asks gets it).
  """
  if len(letters) != len(shape):
    raise ValueError(f"letters {letters!r} do not name the axes of {shape}")
  parts: list[str | None] = []
  for letter, size in zip(letters, shape, strict=True):
    axis = MESH_AXES.get(letter)
    count = sizes.get(axis, 1) if axis else 1
    fits = count > 1 and size % count == 0 and axis not in parts
    parts.append(axis if fits else None)
  return P(*parts)


def constrain(array: jax.Array, letters: str) -> jax.Array:
  """Ask XLA to lay `array` out as its letters say on the ambient mesh.

  Without a mesh (`jax.set_mesh`), or on one device, the array is returned.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  partition = spec(letters, array.shape, dict(mesh.shape))
  return jax.lax.with_sharding_constraint(array, partition)
