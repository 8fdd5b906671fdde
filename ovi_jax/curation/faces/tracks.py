"""Links face detections to tracks.

A box is [top, left, height, width] in pixels. A track has a box for every frame
from its first on: {"start_frame": int, "boxes": [[top, left,
height, width], ...]}.
"""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from ovi_jax.curation.faces import crops

Track = dict[str, Any]
_DIGITS = 1  # of pixels


class Detection(NamedTuple):
  """A detected face.

  Attributes:
    box: [top, left, height, width].
    score: confidence, in [0, 1].
  """

  box: tuple[float, float, float, float]
  score: float


def full_frame(frames: int, height: int, width: int) -> Track:
  """The track of a face that fills the centre square of every frame."""
  side = min(height, width)
  # Invert the margin of `crops.crop`, so that the crop is the whole square.
  around = 1 + crops.SCALE
  # Rounded up to include the last row of pixels.
  size = math.ceil(1000 * side / around) / 1000
  box = [(height - side) / 2, (width - size) / 2, size, size]
  return {"start_frame": 0, "boxes": [box] * frames}


def iou(first: Sequence[float], second: Sequence[float]) -> float:
  """Intersection over union of two boxes."""
  shared = 1.0
  for low, size in ((0, 2), (1, 3)):
    begin = max(first[low], second[low])
    end = min(first[low] + first[size], second[low] + second[size])
    shared *= max(0.0, end - begin)
  either = first[2] * first[3] + second[2] * second[3] - shared
  return shared / either if either > 0 else 0.0


def link_detections(
  frames: Sequence[int],
  detections: Sequence[Sequence[Detection]],
  *,
  min_iou: float,
  max_gap: int,
  min_length: int,
  smoothing_window: int,
) -> list[Track]:
  """Link detections to tracks.

  Args:
    frames: indices of the frames with detection, ascending.
    detections: detections of each frame.
    min_iou: IoU of a detection with the last box of its track.
    max_gap: frames between two detections of one track.
    min_length: minimum frames of a track.
    smoothing_window: frames of the median filter of boxes, odd; 1 for none.

  Returns:
    The tracks, sorted by first frame, then by decreasing area.
  """
  open_: list[list[tuple[int, Detection]]] = []
  done: list[list[tuple[int, Detection]]] = []
  for frame, faces in zip(frames, detections, strict=True):
    over = [t for t in open_ if frame - t[-1][0] > max_gap]
    done += over
    open_ = [t for t in open_ if frame - t[-1][0] <= max_gap]
    for track, face in _match(open_, faces, min_iou):
      if track is None:
        open_.append([(frame, face)])
      else:
        track.append((frame, face))
  made = [
    _interpolate(track, smoothing_window)
    for track in [*done, *open_]
    if track[-1][0] - track[0][0] + 1 >= min_length
  ]
  return sorted(made, key=lambda t: (t["start_frame"], -_area(t), t["boxes"]))


def count_per_frame(tracks: Sequence[Track], frames: int) -> np.ndarray:
  """Number of tracks in each frame, [frames]."""
  seen_T = np.zeros(frames, np.int64)
  for track in tracks:
    seen_T[track["start_frame"] :][: len(track["boxes"])] += 1
  return seen_T


def _match(
  tracks: Sequence[list[tuple[int, Detection]]],
  faces: Sequence[Detection],
  min_iou: float,
) -> list[tuple[list[tuple[int, Detection]] | None, Detection]]:
  """Greedy matching of detections to tracks by decreasing IoU."""
  pairs = sorted(
    (-iou(track[-1][1].box, face.box), t, f)
    for t, track in enumerate(tracks)
    for f, face in enumerate(faces)
  )
  track_of: dict[int, int] = {}
  for negative, t, f in pairs:
    free = f not in track_of and t not in track_of.values()
    if free and -negative >= min_iou:
      track_of[f] = t
  return [
    (tracks[track_of[f]] if f in track_of else None, face)
    for f, face in enumerate(faces)
  ]


def _interpolate(
  track: Sequence[tuple[int, Detection]], smoothing_window: int
) -> Track:
  """Interpolate boxes to every frame and smooth them."""
  numbers = np.array([frame for frame, _ in track])
  boxes = np.array([face.box for _, face in track], np.float64)
  every = np.arange(numbers[0], numbers[-1] + 1)
  top, left, height, width = (
    np.interp(every, numbers, boxes[:, axis]) for axis in range(4)
  )
  row, column, height, width = (
    _median(x, smoothing_window)
    for x in (top + height / 2, left + width / 2, height, width)
  )
  columns = row - height / 2, column - width / 2, height, width
  return {
    "start_frame": int(numbers[0]),
    "boxes": np.round(np.stack(columns, 1), _DIGITS).tolist(),
  }


def _median(values: np.ndarray, length: int) -> np.ndarray:
  """Median filter with edge padding."""
  padded = np.pad(values, length // 2, mode="edge")
  views = np.lib.stride_tricks.sliding_window_view(padded, length)
  return np.median(views, axis=-1)


def _area(track: Track) -> float:
  """Mean area of its boxes."""
  return float(np.mean([box[2] * box[3] for box in track["boxes"]]))
