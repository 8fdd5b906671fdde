"""In-memory media of a clip."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ovi_jax.curation.faces import crops

SILENT = np.zeros(0, np.float32)


@dataclasses.dataclass(kw_only=True)
class FakeMedia:
  """What stages ask of `stage.Media`.

  Attributes:
    path: of no file.
    video_THWC: uint8 RGB.
    audio_A: float32 at 16 kHz.
    files: what was kept.
  """

  path: str = "clip.mp4"
  video_THWC: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((121, 36, 64, 3), np.uint8)
  )
  audio_A: np.ndarray = dataclasses.field(default_factory=lambda: SILENT)
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)

  @property
  def frames_25fps(self) -> Sequence[np.ndarray]:
    """As if the source were at 24 fps."""
    count = round(len(self.video_THWC) * crops.FPS / 24)
    return self.video_THWC[crops.nearest_frame(np.arange(count))]

  def read_artifact(self, name: str) -> bytes:
    return self.files[name]

  def save_artifact(self, name: str, value: bytes) -> None:
    self.files[name] = value
