"""Collectives: which devices they join, and lower bounds of their times.

Chips lie on a grid with an inter-chip link (ICI) to each neighbour. An axis of
the whole slice that is long enough is closed to a ring
(`hardware.Chip.ici_wraparound`), any other is a line (Austin et al. 2025, "How
to Scale Your Model", chapter 2). A time is what the most loaded link needs at
least.
"""

import math
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import hardware


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


def coordinates(devices: Iterable[Any]) -> np.ndarray | None:
  """Grid coordinates [devices, axes]; `None` if they are unknown."""
  places = [getattr(device, "coords", None) for device in devices]
  return None if None in places else np.array(places)


def transfer_seconds(
  kind: str,
  size: float,
  group: np.ndarray,
  machine: np.ndarray,
  chip: hardware.Chip,
) -> float:
  """Lower bound of the seconds of a collective.

  Args:
    kind: of collective, such as "all-gather".
    size: bytes that each device sends.
    group: coordinates of the participating devices, [devices, axes].
    machine: coordinates of all devices.
    chip: their kind.
  """
  if not chip.ici_bandwidth:
    return 0.0
  rate = chip.ici_bandwidth * 1e9
  if kind == "collective-permute":
    return size / rate
  sizes = _extents(group)
  closed = (sizes == _extents(machine)) & _rings(machine, chip)
  # Links of a chip along each axis that are of use within the group.
  ways = np.where(sizes < 2, 0, 1 + closed)
  if kind not in ("all-to-all", "ragged-all-to-all"):
    # A chip at an end of a line has one link to get everything by.
    return size / (rate * ways.sum())
  # What half of the devices sends to the other half, cut across an axis.
  count = len(group)
  across = size * (count / 2) ** 2 / (count - 1)
  cut = min(w * count / s for w, s in zip(ways, sizes) if s > 1)
  return across / (cut * rate)


def _extents(places: np.ndarray) -> np.ndarray:
  """Different places along each axis."""
  return np.array([len(set(axis)) for axis in places.T.tolist()])


def _rings(machine: np.ndarray, chip: hardware.Chip) -> np.ndarray:
  """Which axes of the machine are closed.

  Cubes of four chips a side are closed on all axes, and so is what they are
  put together to; machines of two axes where one is as long as it gets.
  """
  sizes = _extents(machine)[: chip.ici_axes]
  closed = sizes % chip.ici_wraparound == 0
  if chip.ici_axes == 3:
    closed = np.full_like(closed, closed.all())
  return np.pad(closed, (0, machine.shape[1] - chip.ici_axes))
