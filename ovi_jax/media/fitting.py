"""Fits pictures of any size to frames: crop, pad or keep the aspect.

Nothing is stretched: rows and columns are scaled alike, but for rounding to
whole pixels.
"""

import dataclasses

import numpy as np

from ovi_jax import geometry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """Sizes on the way from a picture to a frame.

  Attributes:
    resized: rows and columns that the whole picture is scaled to.
    height: of the frame; rows beyond it are cut, missing ones are black.
    width: likewise.
    scale: by which the picture is enlarged; below 1 it is made smaller.
  """

  resized: tuple[int, int]
  height: int
  width: int
  scale: float

  def apply(self, frame_HWC: np.ndarray) -> np.ndarray:
    """The frame of a picture of the size `resized`."""
    for axis, wanted in enumerate((self.height, self.width)):
      spare = frame_HWC.shape[axis] - wanted
      if spare > 0:
        kept = slice(spare // 2, spare // 2 + wanted)
        frame_HWC = frame_HWC[kept] if axis == 0 else frame_HWC[:, kept]
      elif spare < 0:
        padding = [(0, 0)] * 3
        padding[axis] = (-spare // 2, -spare - -spare // 2)
        frame_HWC = np.pad(frame_HWC, padding)
    return frame_HWC


def crop(rows: int, columns: int, height: int, width: int) -> Fit:
  """The middle of a picture, as large as it can be."""
  scale = max(height / rows, width / columns)
  return Fit(
    resized=(
      max(height, round(rows * scale)),
      max(width, round(columns * scale)),
    ),
    height=height,
    width=width,
    scale=scale,
  )


def pad(rows: int, columns: int, height: int, width: int) -> Fit:
  """All of a picture, between black bars."""
  scale = min(height / rows, width / columns)
  return Fit(
    resized=(
      min(height, max(1, round(rows * scale))),
      min(width, max(1, round(columns * scale))),
    ),
    height=height,
    width=width,
    scale=scale,
  )


def keep(rows: int, columns: int, area: int) -> Fit:
  """A frame of the picture's aspect and about `area` pixels.

  What sides of multiples of 32 have not room for is cut.
  """
  return crop(rows, columns, *geometry.snap(rows, columns, area))
