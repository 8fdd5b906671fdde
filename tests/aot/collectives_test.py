"""Collective times, on meshes whose busiest link is known."""

import numpy as np
import pytest

from ovi_jax import hardware
from ovi_jax.aot import collectives

LINK = 90e9  # of v5p and v6e
V5P, V6E = hardware.CHIPS["TPU v5p"], hardware.CHIPS["TPU v6e"]


def grid(*sizes: int) -> np.ndarray:
  return np.indices(sizes).reshape(len(sizes), -1).T


def seconds(kind, group, machine, chip=V5P):
  return collectives.transfer_seconds(kind, LINK, group, machine, chip)


def test_two_neighbours_share_a_link():
  machine = grid(2, 2, 1)
  pair = machine[[0, 2]]
  for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert seconds(kind, pair, machine) == pytest.approx(1)


@pytest.mark.parametrize(
  ("kind", "shape", "chip", "expected"),
  [
    # Eight links of a line, of which an end has one; of a ring, two.
    ("all-gather", (1, 8), V6E, 1),
    ("all-gather", (1, 16), V6E, 1 / 2),
    ("all-gather", (4, 4), V6E, 1 / 2),
    ("all-gather", (16, 16), V6E, 1 / 4),
    ("all-gather", (4, 4, 4), V5P, 1 / 6),
    ("all-gather", (2, 4, 4), V5P, 1 / 3),
    # Four chips send 4/7 of what they have over the middle link.
    ("all-to-all", (1, 8), V6E, 16 / 7),
    # Eight of 16 chips send 8/15 over four links.
    ("all-to-all", (4, 4), V6E, 64 / 15 / 4),
    ("all-to-all", (4, 4, 4), V5P, 32 * 32 / 63 / 32),
  ],
)
def test_whole_slices_are_tori(kind, shape, chip, expected):
  machine = grid(*shape)
  assert seconds(kind, machine, machine, chip) == pytest.approx(expected)


def test_a_part_of_a_ring_is_a_line():
  machine = grid(16, 16)
  half = machine[(machine[:, 0] == 3) & (machine[:, 1] < 8)]
  assert seconds("all-gather", half, machine, V6E) == pytest.approx(1)


def test_devices_without_places():
  assert collectives.coordinates([object()]) is None
