"""The stage interface: a name, a version, a config and a pure function.

A stage is a module of `ovi_jax.curation.stages` with

  VERSION: int, increased whenever the same input gives another output;
  Config: a frozen, keyword-only dataclass of JSON values, validated in
    `__post_init__`; its hash is part of the stage's folder name;
  load(config) -> the stage function, called once per process; reads weights,
    compiles, and raises ValueError for missing requirements.

`KIND` determines the arguments of the function:

  "clip":   (Clip, Media) -> Clip | Reject | Sequence[Clip | Reject]; several
    results are separate clips, such as windows of a file.
  "batch":  (Sequence[tuple[Clip, Media]]) -> Sequence[Clip | Reject], one per
    clip, in order; for accelerators and network requests.
  "global": (Iterator[Clip]) -> a function Clip -> Clip | Reject; first receives
    the clips of all shards in order, then decides each; for decisions that
    depend on other clips (duplicates, shares). The only stage of its pass.
  "sink":   (Iterator[tuple[Clip, Media]], Path) -> JSON counts; writes a folder
    from the clips of all shards, in order. The last pass.

Optional members:

  fingerprint(config) -> JSON values: the settings that affect the output, with
    files by content; hashed instead of the whole config.
  missing_requirements(config) -> missing requirements, one sentence each, with
    the flag that provides them or skips the stage; cheap, because all stages
    are checked before any is loaded.
  THRESHOLDS: reject reason -> (score name, Config field with the threshold);
    drawn by the report.

A stage function depends only on its arguments and on what `load` read, so the
same clip gives the same result on any machine. Exceptions become rejects with a
traceback, except `Unavailable`, which leaves the shard pending.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ovi_jax.curation import clip
from ovi_jax.endpoints import client

Outcome = clip.Clip | clip.Reject | Sequence[clip.Clip | clip.Reject]


# A dependency of the stage (server, accelerator) is unavailable. No clip is
# rejected; the shard stays pending and is processed by a later run.
Unavailable = client.Unavailable


class Media(Protocol):
  """The media of a clip, decoded on demand.

  Decoded media is shared by the stages of a pass.
  """

  @property
  def path(self) -> str:
    """Path of the file; a local copy if the source is remote."""
    ...

  @property
  def video_THWC(self) -> np.ndarray:
    """The window's frames, uint8 RGB, at 24 fps by time stamp.

    Rotation is applied and pixels are square. Sources larger than
    `decode.LARGEST_AREA` are downscaled while decoding.
    """
    ...

  @property
  def frames_25fps(self) -> Sequence[np.ndarray]:
    """Frames like those of `video_THWC`, [H, W, 3], at 25 fps by time stamp.

    Frames common to both rates share memory.
    """
    ...

  @property
  def audio_A(self) -> np.ndarray:
    """The window's audio, float32 in [-1, 1], mono, 16 kHz; empty if none."""
    ...

  def read_artifact(self, name: str) -> bytes:
    """Read an artifact that an earlier stage stored for this clip.

    Raises:
      KeyError: no stage stored it.
    """
    ...

  def save_artifact(self, name: str, value: bytes) -> None:
    """Store bytes for later stages, so they need not decode the clip."""
    ...
