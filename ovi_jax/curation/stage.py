"""What a stage is: a name, a version, a config, and a pure function.

A stage is a module of `ovi_jax.curation.stages` with

  VERSION: int, raised when the same input would give another output;
  Config: a frozen, keyword-only dataclass of JSON values, checked in
    `__post_init__`; its hash is part of the name of what the stage writes;
  load(config) -> a function, called once a process; it reads weights and
    compiles, and raises ValueError, naming what is missing, before any clip.

The function has one of four forms, which `KIND` names:

  "clip":  (Clip, Media) -> Clip | Reject | Sequence[Clip | Reject]; of many,
    each is a clip of its own, such as a window of a file.
  "shard": (Sequence[tuple[Clip, Media]]) -> Sequence[Clip | Reject], one each
    and in order; for what gains by many clips at once (accelerators, networks).
  "all":   (Iterator[Clip]) -> a function Clip -> Clip | Reject; it sees the
    clips of all shards first, in order, and is then asked about each: for what
    depends on the others (duplicates, shares). Alone in its pass.
  "sink":  (Iterator[tuple[Clip, Media]], Path) -> JSON counts; it writes a
    folder of that path from the clips of all shards, in order. The last pass.

A module may also have

  identity(config) -> JSON values: what of the config (and of files it names,
    by content) the outcome depends on; hashed in place of all of the config.
  missing(config) -> what the stage needs and has not here, a sentence each,
    with the flag that helps or leaves the stage out; cheap, since all stages
    are asked before any of them is loaded;
  BOUNDS: reason of its rejects -> (name of a score, field of Config that bounds
    it); the report draws them.

It touches nothing but its arguments (and what `load` read): the same clip gives
the same outcome on any machine, and a run may be repeated from anywhere.
An exception is turned into a reject with its traceback by whoever calls; but
for `Unavailable`, which leaves the shard undone.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ovi_jax.curation import clip

Outcome = clip.Clip | clip.Reject | Sequence[clip.Clip | clip.Reject]


class Unavailable(OSError):
  """What a stage needs is away, whatever the clip: a server, an accelerator.

  Nothing is known of the clips then, so none is rejected; the shard stays
  undone, and a later run takes it up again.
  """


class Media(Protocol):
  """The media of a clip; read when asked for, once.

  What stages of one pass ask for is decoded once for all of them.
  """

  @property
  def path(self) -> str:
    """Of the file, to open; a local copy where the source is remote."""
    ...

  @property
  def video_THWC(self) -> np.ndarray:
    """The window's frames, uint8 RGB, at 24 fps by time stamp.

    Upright (rotation applied), square pixels, at most
    `decode.LARGEST_AREA` large: larger sources are made smaller as they are
    decoded.
    """
    ...

  @property
  def frames_25fps(self) -> Sequence[np.ndarray]:
    """Frames like those of `video_THWC`, [H, W, 3], at 25 fps by time stamp.

    What both rates show is in memory once.
    """
    ...

  @property
  def audio_A(self) -> np.ndarray:
    """The window's sound, float32 in [-1, 1], mono at 16 kHz; [0] if silent."""
    ...

  def read_artifact(self, name: str) -> bytes:
    """What an earlier pass kept of this clip under a name.

    Raises:
      KeyError: it kept nothing of that name.
    """
    ...

  def save_artifact(self, name: str, value: bytes) -> None:
    """Keep bytes for later passes, which then need not decode the clip."""
    ...
