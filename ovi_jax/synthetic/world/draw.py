"""Shapes with soft edges on a square picture, all frames of a clip at once.

Places and lengths are shares of the picture's side; any of them may be an
array with one value a frame, [T, 1, 1].
"""

from typing import Any
from typing import NamedTuple

import numpy as np

Number = float | np.ndarray
Colour = tuple[float, float, float]


class Cover(NamedTuple):
  """How far a shape covers the pixels of a part of the picture.

  Attributes:
    rows: of the part.
    columns: of the part.
    share: [T or 1, rows, columns] in [0, 1].
  """

  rows: slice
  columns: slice
  share: np.ndarray

  def above(self, canvas: "Canvas", row: float) -> "Cover":
    """What of the shape is above a row."""
    y = canvas.centres[self.rows][None, :, None]
    part = np.clip((row - y) * canvas.size + 0.5, 0, 1)
    return self._replace(share=self.share * part)


class Canvas:
  """Frames that are painted on; one frame until something moves.

  Attributes:
    size: rows and columns.
    centres: of the pixels along a side.
  """

  def __init__(self, frames: int, size: int, colour: Colour):
    self.size = size
    self.centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    self._count = frames
    self._THWC = np.empty((1, size, size, 3), np.float32)
    self._THWC[:] = colour

  def paint(self, cover: Cover, colour: Colour, opacity: Number = 1.0) -> None:
    """Lay a colour over what is covered."""
    alpha = np.asarray(cover.share * opacity, np.float32)[..., None]
    if len(alpha) > len(self._THWC):
      self._THWC = np.repeat(self._THWC, self._count, axis=0)
    part = self._THWC[:, cover.rows, cover.columns]
    part += alpha * (np.asarray(colour, np.float32) - part)

  def ellipse(
    self, row: Number, column: Number, height: Number, width: Number
  ) -> Cover:
    """An ellipse of half axes `height` and `width`."""
    thin = np.minimum(_f(height), _f(width))
    reach = 1 + 0.5 / (thin * self.size)  # its soft edge included
    rows, y = self._along(row, height * reach)
    columns, x = self._along(column, width * reach)
    y, x = y[None, :, None], x[None, None, :]
    radius = np.hypot((y - _f(row)) / _f(height), (x - _f(column)) / _f(width))
    # Pixels to the edge, about.
    inside = (1 - radius) * thin * self.size
    return Cover(rows, columns, np.clip(inside + 0.5, 0, 1))

  def box(self, top: float, left: float, bottom: float, right: float) -> Cover:
    """A box."""
    sides = []
    for low, high in ((top, bottom), (left, right)):
      near = np.clip((self.centres - low) * self.size + 0.5, 0, 1)
      sides.append(
        near * np.clip((high - self.centres) * self.size + 0.5, 0, 1)
      )
    share = sides[0][None, :, None] * sides[1][None, None, :]
    return Cover(slice(None), slice(None), share)

  def glow(self, row: Number, column: Number, radius: float) -> Cover:
    """A light, which fades from its centre."""
    y, x = self.centres[None, :, None], self.centres[None, None, :]
    far = (y - _f(row)) ** 2 + (x - _f(column)) ** 2
    return Cover(slice(None), slice(None), np.exp(-far / radius**2))

  def pixels(self) -> np.ndarray:
    """The frames, uint8."""
    pixels = np.clip(np.rint(self._THWC), 0, 255).astype(np.uint8)
    shape = (self._count, *pixels.shape[1:])
    return np.ascontiguousarray(np.broadcast_to(pixels, shape))

  def _along(self, place: Number, half: Number) -> tuple[slice, np.ndarray]:
    """The pixels along a side that a shape may touch, and their centres."""
    low, high = (_f(place) - _f(half)).min(), (_f(place) + _f(half)).max()
    first = max(0, int(np.floor(low * self.size)) - 1)
    last = max(first, int(np.ceil(high * self.size)) + 1)
    return slice(first, last), self.centres[first:last]


def shaded(colour: Colour, share: float) -> Colour:
  """A darker colour."""
  return colour[0] * share, colour[1] * share, colour[2] * share


def _f(value: Any) -> np.ndarray:
  return np.asarray(value, np.float32)
