"""Synthetic ICC profiles (ICC.1:2010, version 2)."""

import struct
from collections.abc import Mapping

import numpy as np

# Red, green and blue of Display P3, adapted to D50.
DISPLAY_P3 = (
  (0.515102, 0.241196, -0.001053),
  (0.291965, 0.692236, 0.041885),
  (0.157153, 0.066569, 0.784073),
)
SRGB = (
  (0.436066, 0.222488, 0.013916),
  (0.385147, 0.716873, 0.097076),
  (0.143066, 0.060608, 0.714096),
)
_D50 = (0.96420, 1.0, 0.82491)


def rgb(colorants=DISPLAY_P3, kind: bytes = b"mntr") -> bytes:
  """Three colorants and the transfer of sRGB."""
  curve = _srgb_curve()
  tags = {b"wtpt": _xyz(_D50)}
  for name, values in zip((b"r", b"g", b"b"), colorants, strict=True):
    tags[name + b"XYZ"] = _xyz(values)
    tags[name + b"TRC"] = curve
  return _profile(kind, b"RGB ", b"XYZ ", tags)


def grey(gamma: float) -> bytes:
  """Levels to the power of `gamma`."""
  curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
  tags = {b"wtpt": _xyz(_D50), b"kTRC": curve}
  return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def cmyk(colors: Mapping[tuple[int, int, int, int], tuple[int, int, int]]):
  """Lab (L in 0..100, a, b) of some corners of the inks' cube; others white."""
  grid = np.zeros((2, 2, 2, 2, 3), np.uint8)
  grid[:] = (255, 128, 128)
  for inks, (lightness, a, b) in colors.items():
    grid[inks] = (round(lightness * 2.55), a + 128, b + 128)
  ramp = bytes(range(256))
  identity = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
  table = (
    b"mft1"
    + bytes(4)
    + bytes([4, 3, 2, 0])
    + identity
    + ramp * 4
    + grid.tobytes()
    + ramp * 3
  )
  tags = {b"wtpt": _xyz(_D50)} | dict.fromkeys(
    (b"A2B0", b"A2B1", b"A2B2"), table
  )
  return _profile(b"prtr", b"CMYK", b"Lab ", tags)


def _srgb_curve() -> bytes:
  level = np.linspace(0, 1, 1024)
  light = np.where(
    level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4
  )
  values = np.rint(light * 65_535).astype(">u2").tobytes()
  return b"curv" + bytes(4) + struct.pack(">I", 1024) + values


def _xyz(values) -> bytes:
  fixed = (round(value * 65_536) for value in values)
  return b"XYZ " + bytes(4) + struct.pack(">3i", *fixed)


def _profile(
  kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]
) -> bytes:
  title = b"test\0"
  tags = {
    b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + title + bytes(78),
    b"cprt": b"text" + bytes(4) + b"none\0",
    **tags,
  }
  place, table, body = 128 + 4 + 12 * len(tags), b"", b""
  for name, value in tags.items():
    value += bytes(-len(value) % 4)
    table += name + struct.pack(">II", place + len(body), len(value))
    body += value
  head = struct.pack(
    ">I4sI4s4s4s12s4s4sIII8sI",
    place + len(body),
    b"none",
    0x02400000,
    kind,
    space,
    connection,
    bytes(12),
    b"acsp",
    b"none",
    0,
    0,
    0,
    bytes(8),
    1,
  )
  head += struct.pack(">3i", *(round(v * 65_536) for v in _D50)) + bytes(48)
  return head + struct.pack(">I", len(tags)) + table + body
