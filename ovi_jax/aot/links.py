"""How long messages between TPU chips take, by the links that they have.

Chips lie on a grid, with a link to each neighbour. An axis of a whole machine
that is long enough is closed to a ring (`chips.Chip.ring`), any other is a
line (Austin et al. 2025, "How to Scale Your Model", chapter 2). Times are what
the most loaded links need at least.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ovi_jax import chips


def places_of(devices: Iterable[Any]) -> np.ndarray | None:
  """Places [devices, axes] on the grid; `None` if they are not known."""
  places = [getattr(device, "coords", None) for device in devices]
  return None if None in places else np.array(places)


def seconds(
  kind: str,
  size: float,
  group: np.ndarray,
  machine: np.ndarray,
  chip: chips.Chip,
) -> float:
  """The least time of a message.

  Args:
    kind: of collective, such as "all-gather".
    size: bytes that each device sends.
    group: places of the devices that take part, [devices, axes].
    machine: places of all devices.
    chip: what they are.
  """
  if not chip.link:
    return 0.0
  rate = chip.link * 1e9
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


def _rings(machine: np.ndarray, chip: chips.Chip) -> np.ndarray:
  """Which axes of the machine are closed.

  Cubes of four chips a side are closed on all axes, and so is what they are
  put together to; machines of two axes where one is as long as it gets.
  """
  sizes = _extents(machine)[: chip.torus]
  closed = sizes % chip.ring == 0
  if chip.torus == 3:
    closed = np.full_like(closed, closed.all())
  return np.pad(closed, (0, machine.shape[1] - chip.torus))
