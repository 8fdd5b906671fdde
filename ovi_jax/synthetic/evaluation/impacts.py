"""When a ball hits the floor: where two arcs of its path meet."""

import numpy as np

_LEAST = 0.02  # sides that a ball rises after an impact, at least
_OF_PATH = 0.06  # share of its whole path that it rises, at least
_LOW = 0.6  # share of the path that an impact is below
_NEAR = 1.5  # frames around an impact in which a ball is squashed
_FAR = 8  # frames of an arc that are used, at most


def times(mass_THW: np.ndarray, size: int, fps: float) -> list[float]:
  """Seconds of a ball's impacts.

  Args:
    mass_THW: how much of the ball each pixel of each frame holds.
    size: rows of the whole picture.
    fps: frames a second.
  """
  row_T = path(mass_THW) / size
  hits = lowest(row_T)
  return [moment / fps for moment in refine(row_T, hits)]


def path(mass_THW: np.ndarray) -> np.ndarray:
  """Row of the ball's centre in each frame, across frames without a ball."""
  mass_TH = mass_THW.sum(axis=2)
  mass_T = mass_TH.sum(axis=1)
  there = mass_T > 0.25 * np.median(mass_T[mass_T > 0])
  rows = np.arange(mass_TH.shape[1]) + 0.5
  centre_T = (mass_TH * rows[None]).sum(axis=1) / np.maximum(mass_T, 1e-6)
  times_T = np.arange(len(mass_T))
  return np.interp(times_T, times_T[there], centre_T[there])


def lowest(row_T: np.ndarray) -> list[int]:
  """Frames in which the ball is lowest between two rises.

  A zigzag: a low point counts when the path has risen to it, and after it, by
  a share of the whole path. Rows grow downwards.
  """
  reach = float(np.ptp(row_T))
  least = max(_LEAST, _OF_PATH * reach)
  level = row_T.min() + _LOW * reach
  found, low, high = [], 0, 0
  falling = False
  for frame, row in enumerate(row_T):
    if falling:
      if row > row_T[low]:
        low = frame
      elif row < row_T[low] - least:
        if row_T[low] > level:
          found.append(low)
        falling, high = False, frame
    elif row < row_T[high]:
      high = frame
    elif row > row_T[high] + least:
      falling, low = True, frame
  return found


def refine(row_T: np.ndarray, hits: list[int]) -> list[float]:
  """Moments of impacts in frames: where the arcs before and after meet.

  Where too little of the arc after is seen, the moment at which the one before
  comes down to where the others met. What does not meet near its lowest frame
  is no bounce of a ball; that frame is all we know of it.
  """
  arcs = _arcs(row_T, hits)
  bends = [np.polyfit(t, row_T[t], 2)[0] for t in arcs if len(t) >= 5]
  bend = float(np.median(bends)) if bends else 0.0
  lines = [
    np.polyfit(t, row_T[t] - bend * t**2, 1) if len(t) >= 2 else None
    for t in arcs
  ]
  pairs = list(zip(hits, lines[::2], lines[1::2]))
  moments = [_meeting(hit, before, after) for hit, before, after in pairs]
  levels = [
    float(np.polyval([bend, *before], moment))
    for moment, (_, before, _) in zip(moments, pairs)
    if moment is not None and before is not None
  ]
  for index, (hit, before, _) in enumerate(pairs):
    if moments[index] is None and before is not None and levels:
      level = float(np.median(levels))
      moments[index] = _landing(hit, np.array([bend, *before]), level)
  return [
    float(hit) if moment is None else moment
    for hit, moment in zip(hits, moments)
  ]


def _meeting(hit: int, before, after) -> float | None:
  """Where two lines cross, if a ball turns there, near its lowest frame."""
  if before is None or after is None or before[0] <= after[0]:
    return None
  moment = float((after[1] - before[1]) / (before[0] - after[0]))
  return moment if abs(moment - hit) <= _NEAR else None


def _landing(hit: int, arc: np.ndarray, level: float) -> float | None:
  """Where an arc comes down to a row, if near its lowest frame."""
  roots = np.roots(arc - np.array([0, 0, level]))
  near = [
    float(root.real)
    for root in roots
    if abs(root.imag) < 1e-6 and abs(root.real - hit) <= _NEAR
  ]
  return max(near, default=None)


def _arcs(row_T: np.ndarray, hits: list[int]) -> list[np.ndarray]:
  """Frames of free flight before and after each hit, pair by pair."""
  ends = [-_NEAR, *hits, len(row_T) - 1 + _NEAR]
  arcs = []
  for earlier, hit, later in zip(ends, hits, ends[2:]):
    first = max(np.ceil(earlier + _NEAR), hit - _FAR)
    arcs.append(np.arange(first, np.floor(hit - _NEAR) + 1, dtype=int))
    last = min(np.floor(later - _NEAR), hit + _FAR)
    arcs.append(np.arange(np.ceil(hit + _NEAR), last + 1, dtype=int))
  return arcs
