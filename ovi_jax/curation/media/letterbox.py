"""Detects letterbox and pillarbox bars.

From frames of a clip to the box within the bars. A bar is flat along its length
and constant over time. A dark bar may be on one side only; a bar of another
colour, which could be sky, must be on two opposite sides.
"""

import dataclasses

import einops
import numpy as np

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage

_DARK = 24.0  # maximum grey level of a dark bar, with compression noise
_FLAT = 4.0  # maximum std along a bar and over time, in levels
_MAX_DIFFERENCE = 6.0  # between opposite bars, in levels
_BLEED = 2  # rows blurred into a bar by resizing or encoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
  """A part of a frame, in pixels."""

  top: int
  left: int
  height: int
  width: int

  def crop(self, frames_THWC: np.ndarray) -> np.ndarray:
    """Crop frames; a view."""
    rows = slice(self.top, self.top + self.height)
    columns = slice(self.left, self.left + self.width)
    return frames_THWC[:, rows, columns]


def crop_box(clip: clips.Clip, media: stage.Media) -> Box:
  """The crop box of the stage `motion`; the whole frame without it."""
  if "motion" not in clip.facts:
    rows, columns = media.video_THWC.shape[1:3]
    return Box(top=0, left=0, height=rows, width=columns)
  top, left, height, width = clip.facts["motion"]["crop_box"]
  return Box(top=top, left=left, height=height, width=width)


def detect(frames_THWC: np.ndarray) -> Box:
  """The box within the bars.

  Args:
    frames_THWC: uint8 RGB; frames of a clip, preferably far apart.

  Returns:
    The whole frame if there are no bars, or only bars.
  """
  grey_THW = frames_THWC.astype(np.float32).mean(-1)
  rows, columns = grey_THW.shape[1:]
  top, bottom = _bars(grey_THW)
  within_THW = grey_THW[:, top : rows - bottom]
  if not within_THW.shape[1]:
    return Box(top=0, left=0, height=rows, width=columns)
  left, right = _bars(einops.rearrange(within_THW, "T H W -> T W H"))
  if left + right >= columns:
    return Box(top=0, left=0, height=rows, width=columns)
  return Box(
    top=top,
    left=left,
    height=rows - top - bottom,
    width=columns - left - right,
  )


def _bars(grey_THW: np.ndarray) -> tuple[int, int]:
  """Heights of the top and bottom bars."""
  level_TH, spread_TH = grey_THW.mean(-1), grey_THW.std(-1)
  level_H = level_TH.mean(0)
  flat_H = (spread_TH.max(0) <= _FLAT) & (level_TH.std(0) <= _FLAT)
  dark_H = flat_H & (level_H <= _DARK)
  above = _leading_true(
    flat_H & (np.abs(level_H - level_H[0]) <= _MAX_DIFFERENCE)
  )
  below = _leading_true(
    (flat_H & (np.abs(level_H - level_H[-1]) <= _MAX_DIFFERENCE))[::-1]
  )
  alike = abs(level_H[0] - level_H[-1]) <= _MAX_DIFFERENCE
  if not (alike and above and below):
    above, below = _leading_true(dark_H), _leading_true(dark_H[::-1])
  bleed = [bar + _BLEED if bar else 0 for bar in (above, below)]
  return (
    (bleed[0], bleed[1]) if sum(bleed) < len(level_H) else (len(level_H), 0)
  )


def _leading_true(flags_H: np.ndarray) -> int:
  """Number of leading true values."""
  return len(flags_H) if flags_H.all() else int(np.argmin(flags_H))
