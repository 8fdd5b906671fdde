"""Which devices a collective joins, and along which axes of the mesh."""

import math
import re
from collections.abc import Mapping
from collections.abc import Sequence

import numpy as np


def replica_groups(text: str) -> list[list[int]]:
  """The groups of devices of a collective, in any of XLA's three notations.

  Raises:
    ValueError: none of them.
  """
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text)
  if pairs:
    return _chains(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
  listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", text)
  if listed:
    if "{" not in listed[1]:
      raise ValueError("a collective of all devices does not name them")
    return [
      [int(n) for n in group.split(",")]
      for group in re.findall(r"\{([\d,]+)\}", listed[1])
    ]
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
  )
  if iota:
    return _iota(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
  mesh = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]"
    r"(?:T\(([\d,]+)\))?\))? \{([^}]*)\}",
    text,
  )
  if not mesh:
    raise ValueError(f"groups of devices are not understood: {text[:200]}")
  sizes = {
    name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])
  }
  shape = tuple(sizes.values())
  ids = _iota(mesh[2] or str(math.prod(shape)), mesh[3]).reshape(shape)
  along = [list(sizes).index(n) for n in re.findall(r"'(\w+)'", mesh[4])]
  across = [axis for axis in range(len(shape)) if axis not in along]
  size = math.prod(shape[axis] for axis in along)
  return ids.transpose([*across, *along]).reshape(-1, size).tolist()


def _iota(shape: str, order: str | None) -> np.ndarray:
  sizes = _numbers(shape)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(order)) if order else ids


def _numbers(text: str) -> tuple[int, ...]:
  return tuple(int(n) for n in text.split(","))


def _chains(pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
  """Devices that pass on to each other, round after round."""
  following = {int(a): int(b) for a, b in pairs}
  chains: list[list[int]] = []
  seen: set[int] = set()
  for start in following:
    chain = []
    device: int | None = start
    while device is not None and device not in seen:
      seen.add(device)
      chain.append(device)
      device = following.get(device)
    if chain:
      chains.append(chain)
  return chains


def mesh_axes(
  group: Sequence[int], shape: Mapping[str, int]
) -> tuple[str, ...]:
  """The axes of a mesh along which the devices of a group differ.

  Args:
    group: places of devices in the flattened mesh.
    shape: sizes of the mesh's axes, in order.
  """
  places = np.unravel_index(list(group), tuple(shape.values()))
  return tuple(n for n, p in zip(shape, places) if len(set(p.tolist())) > 1)
