"""Face detection with MTCNN.

Frames of one size are resized to a square of fixed size, and candidates are
processed in batches of fixed size, so each network is compiled once per scale
and batch. Boxes are float64; network inputs are float32. (Zhang et al., 2016;
thresholds and scales as in the package facenet-pytorch.)
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import einops
import jax
import numpy as np

from ovi_jax import cli
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.media import opencv
from ovi_jax.curation.models import mtcnn

_FACTOR = 0.709  # between scales of the pyramid
_MIN_PROBABILITY = {mtcnn.PROPOSE: 0.6, mtcnn.REFINE: 0.7, mtcnn.OUTPUT: 0.7}
_STRIDE, _CELL = 2, 12  # of the first network, in input pixels
_NMS_OVERLAP_PER_SCALE, _NMS_OVERLAP = (
  0.5,
  0.7,
)  # for non-maximum suppression
_BATCH_SIZES = {mtcnn.REFINE: 64, mtcnn.OUTPUT: 16}
Detect = Callable[[np.ndarray], list[list[tracks.Detection]]]
Apply = Mapping[str, Callable[[np.ndarray], Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Detection settings.

  Attributes:
    weights: folder of the three MTCNN files; "" for the installed package.
    input_size: side of the square that frames are resized to, pixels.
    min_face_size: smallest face, in pixels of that square.
    min_score: threshold of the last network.
    batch_size: frames per batch of the first network.
  """

  weights: str = ""
  input_size: int = 448
  min_face_size: int = 32
  min_score: float = 0.9
  batch_size: int = 4

  def __post_init__(self):
    if not 12 <= self.min_face_size <= self.input_size:
      raise ValueError(
        "faces: expected 12 <= min_face_size <= input_size, got"
        f" {self.min_face_size} and {self.input_size}"
      )
    if self.batch_size < 1 or not 0 <= self.min_score < 1:
      raise ValueError(
        "faces: expected batch_size of at least 1 and min_score in [0, 1),"
        f" got {self.batch_size} and {self.min_score}"
      )

  @property
  def scales(self) -> tuple[float, ...]:
    """Scale factors of the image pyramid."""
    scale, found = _CELL / self.min_face_size, []
    while self.input_size * scale >= _CELL:
      found.append(scale)
      scale *= _FACTOR
    return tuple(found)


def load(settings: Settings) -> Detect:
  """The detector.

  Returns:
    A function from frames_THWC, uint8 RGB, to detections per frame, sorted by
    decreasing score. Boxes are in pixels and may exceed the frame.

  Raises:
    ValueError: the weights are missing, or OpenCV is.
  """
  opencv.library()
  cli.setup_jax()
  variables = jax.device_put(mtcnn.load(settings.weights))

  def run(name: str, x: np.ndarray) -> Any:
    return jax.device_get(_compiled(name)(variables[name], x))

  apply = {n: functools.partial(run, n) for n in mtcnn.NETWORKS}
  return lambda frames_THWC: _detect(frames_THWC, apply, settings)


@functools.cache
def _compiled(name: str) -> Any:
  """A compiled network that takes uint8 pixels."""
  network = mtcnn.NETWORKS[name]
  return jax.jit(lambda v, x: network.apply(v, (x - 127.5) / 128))


def _detect(
  frames_THWC: np.ndarray, apply: Apply, settings: Settings
) -> list[list[tracks.Detection]]:
  squares, scale = _pad_to_squares(frames_THWC, settings.input_size)
  found: list[list[tracks.Detection]] = []
  for start in range(0, len(squares), settings.batch_size):
    group = squares[start : start + settings.batch_size]
    proposed = _propose(group, apply[mtcnn.PROPOSE], settings)
    for square_HWC, boxes_N4 in zip(group, proposed, strict=True):
      boxes_N4 = _refine(square_HWC, boxes_N4, apply[mtcnn.REFINE])
      boxes_N4, scores_N = _output(square_HWC, boxes_N4, apply[mtcnn.OUTPUT])
      found.append(
        [
          _detection(box, score, scale)
          for box, score in zip(boxes_N4, scores_N, strict=True)
          if score >= settings.min_score
        ]
      )
  return found


def _pad_to_squares(
  frames_THWC: np.ndarray, side: int
) -> tuple[np.ndarray, float]:
  """Frames resized and padded to squares, and the scale factor."""
  cv2 = opencv.library()
  height, width = frames_THWC.shape[1:3]
  scale = side / max(height, width)
  size = max(1, round(width * scale)), max(1, round(height * scale))
  interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
  squares = np.full((len(frames_THWC), side, side, 3), 128, np.uint8)
  for square_HWC, frame_HWC in zip(squares, frames_THWC, strict=True):
    square_HWC[: size[1], : size[0]] = cv2.resize(
      frame_HWC, size, interpolation=interpolation
    )
  return squares, scale


def _detection(box: np.ndarray, score: float, scale: float) -> tracks.Detection:
  left, top, right, bottom = (float(x) / scale for x in box)
  return tracks.Detection((top, left, bottom - top, right - left), float(score))


def _propose(
  squares_BHWC: np.ndarray, network: Any, settings: Settings
) -> list[np.ndarray]:
  """Candidate boxes [left, top, right, bottom] of each frame."""
  count = len(squares_BHWC)
  found: list[list[np.ndarray]] = [[] for _ in range(count)]
  for scale in settings.scales:
    size = int(settings.input_size * scale) + 1
    pictures = np.stack([_resize_square(s, size) for s in squares_BHWC])
    probability, offsets = network(_pad_batch(pictures, settings.batch_size))
    for picture in range(count):
      boxes_N9 = _grid_boxes(probability[picture], offsets[picture], scale)
      found[picture].append(boxes_N9[_nms(boxes_N9, _NMS_OVERLAP_PER_SCALE)])
  return [_proposals(np.concatenate(parts)) for parts in found]


def _grid_boxes(
  probability_HW: np.ndarray, offsets_HW4: np.ndarray, scale: float
) -> np.ndarray:
  """[left, top, right, bottom, probability, 4 offsets] of candidates."""
  rows, columns = np.nonzero(probability_HW >= _MIN_PROBABILITY[mtcnn.PROPOSE])
  corner = np.stack([columns, rows], 1) * _STRIDE + 1
  return np.concatenate(
    [
      np.floor(corner / scale),
      np.floor((corner + _CELL - 1) / scale),
      probability_HW[rows, columns, None],
      offsets_HW4[rows, columns],
    ],
    axis=1,
  ).astype(np.float64)


def _proposals(boxes_N9: np.ndarray) -> np.ndarray:
  """Suppress overlaps of all scales, regress and square the boxes."""
  kept = boxes_N9[_nms(boxes_N9, _NMS_OVERLAP)]
  sizes = kept[:, 2:4] - kept[:, :2]
  return _square(kept[:, :4] + kept[:, 5:] * np.tile(sizes, 2))


def _refine(
  square_HWC: np.ndarray, boxes_N4: np.ndarray, network: Any
) -> np.ndarray:
  """Candidates accepted by the second network, regressed and squared."""
  boxes_N4, probability_N, offsets_N4 = _run_network(
    square_HWC, boxes_N4, network, mtcnn.REFINE
  )
  kept = _nms(np.column_stack([boxes_N4, probability_N]), _NMS_OVERLAP)
  return _square(_regress(boxes_N4[kept], offsets_N4[kept]))


def _output(
  square_HWC: np.ndarray, boxes_N4: np.ndarray, network: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Boxes and scores of the third network, sorted by decreasing score."""
  boxes_N4, probability_N, offsets_N4 = _run_network(
    square_HWC, boxes_N4, network, mtcnn.OUTPUT
  )
  boxes_N4 = _regress(boxes_N4, offsets_N4)
  kept = _nms(
    np.column_stack([boxes_N4, probability_N]), _NMS_OVERLAP, over_smaller=True
  )
  return boxes_N4[kept], probability_N[kept]


def _run_network(
  square_HWC: np.ndarray, boxes_N4: np.ndarray, network: Any, name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Boxes accepted by a network, their probabilities and offsets."""
  side, group = mtcnn.SIDES[name], _BATCH_SIZES[name]
  inside = _pixel_bounds(boxes_N4, len(square_HWC))
  boxes_N4 = boxes_N4[(inside[:, 2:] > inside[:, :2]).all(1)]
  probability, offsets = [np.zeros(0)], [np.zeros((0, 4))]
  for start in range(0, len(boxes_N4), group):
    part = _pixel_bounds(boxes_N4[start : start + group], len(square_HWC))
    cut = [_resize_square(square_HWC[t:b, l:r], side) for l, t, r, b in part]
    outputs = network(_pad_batch(np.stack(cut), group))
    probability.append(outputs[0][: len(cut)].astype(np.float64))
    offsets.append(outputs[1][: len(cut)].astype(np.float64))
  probability_N, offsets_N4 = (
    np.concatenate(probability),
    np.concatenate(offsets),
  )
  kept = probability_N > _MIN_PROBABILITY[name]
  return boxes_N4[kept], probability_N[kept], offsets_N4[kept]


def _pixel_bounds(boxes_N4: np.ndarray, side: int) -> np.ndarray:
  """Integer pixel bounds of boxes, clipped to the frame."""
  whole = np.trunc(boxes_N4).astype(int)
  # Boxes are 1-based.
  low = np.maximum(whole[:, :2], 1) - 1
  return np.concatenate([low, np.minimum(whole[:, 2:], side)], axis=1)


def _resize_square(picture_HWC: np.ndarray, side: int) -> np.ndarray:
  """Resize to a square."""
  cv2 = opencv.library()
  smaller = min(picture_HWC.shape[:2]) >= side
  interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
  resized = cv2.resize(picture_HWC, (side, side), interpolation=interpolation)
  return resized.astype(np.float32)


def _pad_batch(pictures: np.ndarray, count: int) -> np.ndarray:
  """Pad a batch to the compiled size."""
  return np.pad(pictures, [(0, count - len(pictures))] + [(0, 0)] * 3)


def _regress(boxes_N4: np.ndarray, offsets_N4: np.ndarray) -> np.ndarray:
  """Apply bounding box regression."""
  sizes = boxes_N4[:, 2:] - boxes_N4[:, :2] + 1
  return boxes_N4 + offsets_N4 * np.tile(sizes, 2)


def _square(boxes_N4: np.ndarray) -> np.ndarray:
  """Squares with the same centres and the longer offsets."""
  ends = einops.rearrange(boxes_N4, "N (e x) -> e N x", e=2)
  half = (ends[1] - ends[0]).max(axis=1, keepdims=True) / 2
  centre = (ends[0] + ends[1]) / 2
  return np.concatenate([centre - half, centre + half], axis=1)


def _nms(
  boxes: np.ndarray, max_overlap: float, over_smaller: bool = False
) -> Sequence[int]:
  """Non-maximum suppression; indices of the remaining boxes.

  Args:
    boxes: [N, 5 or more], left, top, right, bottom, probability.
    max_overlap: maximum intersection over union.
    over_smaller: divide by the area of the smaller box instead.
  """
  sizes = boxes[:, 2:4] - boxes[:, :2] + 1
  area = sizes.prod(axis=1)
  left = np.argsort(-boxes[:, 4], kind="stable")
  kept: list[int] = []
  while len(left):
    best, left = left[0], left[1:]
    kept.append(int(best))
    low = np.maximum(boxes[best, :2], boxes[left, :2])
    high = np.minimum(boxes[best, 2:4], boxes[left, 2:4])
    shared = np.maximum(high - low + 1, 0).prod(axis=1)
    either = (
      np.minimum(area[best], area[left])
      if over_smaller
      else area[best] + area[left] - shared
    )
    left = left[shared <= max_overlap * either]
  return kept
