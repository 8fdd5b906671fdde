"""Logical axes of arrays, one letter each, and the mesh axes that shard them.

Array names end in their axes: `video_BTHWC`, `q_BLNK`. Einsum, einops and
sharding use the same letters, so the tables here are used by the models (for
activations) and by `sharding.sharding_rules` (for parameters).

  B batch            T latent frames, audio steps   H W rows, columns
  C channels         L tokens of the stream         S context tokens
  D width            F feed-forward                 N heads
  K head size        E text width                   P modulation parts
  M mel bins         A waveform samples             G scanned block

Video has a hundred times as many tokens as audio or text. For video, the mesh
axis `context` shards tokens, and weights are sharded and all-gathered as on
`fsdp`; for audio and text it shards weights by heads and hidden units, and
tokens are replicated. Lower-case letters (d, f, n) stand
for the second case; `replicated_tokens` translates.
"""

import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec as P

Table = Mapping[str, tuple[str, ...]]

# Mesh axes that shard a letter; letters without an entry are not sharded.
ACTIVATIONS: Table = {
  "B": ("data", "fsdp"),
  "L": ("context",),
  "H": ("context",),
  "W": ("data",),
  "F": ("tensor",),
  "N": ("tensor",),
  "f": ("tensor", "context"),
  "n": ("tensor", "context"),
}
PARAMETERS: Table = {
  "D": ("fsdp", "context"),
  "F": ("tensor",),
  "N": ("tensor",),
  "d": ("fsdp",),
  "f": ("tensor", "context"),
  "n": ("tensor", "context"),
}
_REPLICATED = str.maketrans("LDFN", "Sdfn")


def replicated_tokens(letters: str) -> str:
  """Translate letters for arrays and weights of audio and text."""
  return letters.translate(_REPLICATED)


def spec(
  letters: str, shape: tuple[int, ...], sizes: Mapping[str, int], table: Table
) -> P:
  """The partition of an array over a mesh.

  Args:
    letters: one letter per axis, see above; `-` for an axis that is not
      sharded.
    shape: shape of the array.
    sizes: devices along each mesh axis, by name.
    table: `ACTIVATIONS` or `PARAMETERS`.

  Returns:
    A `PartitionSpec`. A mesh axis is skipped if it does not divide the array
    axis, and is used only once, by the first letter that names it.

  Raises:
    ValueError: the number of letters is not the number of axes.
  """
  if len(letters) != len(shape):
    raise ValueError(f"letters {letters!r} do not name the axes of {shape}")
  used: set[str] = set()
  parts: list[tuple[str, ...] | None] = []
  for letter, size in zip(letters, shape, strict=True):
    mine: tuple[str, ...] = ()
    for axis in table.get(letter, ()):
      count = sizes.get(axis, 1)
      if count > 1 and axis not in used and size % count == 0:
        mine, size = (*mine, axis), size // count
    used.update(mine)
    parts.append(mine or None)
  return P(*parts)


def fill(length: int, letter: str = "L") -> int:
  """Round a length up to a multiple of its shards on the ambient mesh."""
  sizes = dict(jax.sharding.get_abstract_mesh().shape)
  parts = math.prod(sizes.get(axis, 1) for axis in ACTIVATIONS[letter])
  return -(-length // parts) * parts


def constrain(array: jax.Array, letters: str) -> jax.Array:
  """Constrain the sharding of an activation on the ambient mesh.

  Args:
    array: the activation.
    letters: one letter per axis, see `spec`.

  Returns:
    The array; unchanged without a mesh (`jax.set_mesh`) or on one device.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return array
  partition = spec(letters, array.shape, dict(mesh.shape), ACTIVATIONS)
  return jax.lax.with_sharding_constraint(array, partition)
