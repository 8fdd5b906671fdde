"""The media of a clip, decoded on demand."""

import functools
import os
from collections.abc import MutableMapping
from collections.abc import Sequence

import numpy as np

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import opencv
from ovi_jax.media import decode


class Media:
  """A clip's media; implements `stage.Media`. Caches decoded media."""

  def __init__(
    self,
    clip: clips.Clip,
    path: str | os.PathLike[str],
    artifacts: MutableMapping[str, bytes] | None = None,
  ):
    """Args: the clip; its local file; artifacts by name, read and extended."""
    self.clip = clip
    self._path = path
    self._artifacts = {} if artifacts is None else artifacts

  @property
  def path(self) -> str:
    return os.fspath(self._path)

  @property
  def video_THWC(self) -> np.ndarray:
    return self._window.video_THWC

  @property
  def frames_25fps(self) -> Sequence[np.ndarray]:
    return self._window.pictures_25

  @property
  def audio_A(self) -> np.ndarray:
    return self._audio_A

  @functools.cached_property
  def _window(self) -> decode.Window:
    return decode.window(self.path, self.clip.start, self.clip.seconds)

  @functools.cached_property
  def _audio_A(self) -> np.ndarray:
    return decode.audio(self.path, self.clip.start, self.clip.seconds)

  def read_artifact(self, name: str) -> bytes:
    return self._artifacts[name]

  def save_artifact(self, name: str, value: bytes) -> None:
    self._artifacts[name] = bytes(value)


def resize_shorter_side(video_THWC: np.ndarray, side: int) -> np.ndarray:
  """Resize frames to a shorter side of `side`, by area.

  Raises:
    ValueError: OpenCV is not installed.
  """
  cv2 = opencv.library()
  T, rows, columns, C = video_THWC.shape
  scale = side / min(rows, columns)
  size = max(1, round(rows * scale)), max(1, round(columns * scale))
  small_THWC = np.empty((T, *size, C), np.uint8)
  for frame_HWC, out_HWC in zip(video_THWC, small_THWC, strict=True):
    whole_HWC = np.ascontiguousarray(frame_HWC)
    cv2.resize(whole_HWC, size[::-1], out_HWC, interpolation=cv2.INTER_AREA)
  return small_THWC
