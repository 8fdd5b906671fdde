"""Lower bounds of collective times over the inter-chip interconnect (ICI).

Chips lie on a grid with a link to each neighbour. An axis of the whole slice
that is long enough is closed to a ring (`hardware.Chip.ici_wraparound`), any
other is a line (Austin et al. 2025, "How to Scale Your Model", chapter 2). A
time is what the most loaded link needs at least.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ovi_jax import hardware


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
