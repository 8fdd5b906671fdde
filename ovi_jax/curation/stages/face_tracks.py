"""Whose faces are seen, and where: none, a single one, or several.

Faces are looked for in every few frames and joined to tracks. Facts: kind; and
tracks, [{start_frame, boxes}], with a box [top, left, height, width] in pixels
of `Media.video_THWC` for every frame of a track. Nobody is refused here: shares
of kinds are for the stage `balance`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.faces import detector
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.media import opencv
from ovi_jax.curation.models import mtcnn

VERSION = 1
KIND = "clip"
NAME = "people"
NONE, SINGLE, SEVERAL = "none", "single", "several"
MTCNN, WHOLE = "mtcnn", "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How faces are found, and what makes a track.

  Attributes:
    detector: "mtcnn", or "whole": one face fills every picture, for clips of
      which that is known.
    weights: folder of MTCNN's files; "" for the package facenet-pytorch.
    side: pixels that the longer side is made before faces are looked for.
    smallest: face that is looked for, in those pixels.
    least_score: of a face, in [0, 1).
    every: frames from a search to the next; the last frame is searched too.
    least_overlap: IoU of a face with where it was last.
    longest_gap: frames for which a face may be lost.
    shortest: frames of a track.
    smooth: frames of the median that boxes are smoothed by, odd.
    together: share of a clip for which two faces or more are seen at once if
      it is one of several.
  """

  detector: str = MTCNN
  weights: str = ""
  side: int = 448
  smallest: int = 32
  least_score: float = 0.9
  every: int = 8
  least_overlap: float = 0.3
  longest_gap: int = 24
  shortest: int = 24
  smooth: int = 13
  together: float = 0.25

  def __post_init__(self):
    if self.detector not in (MTCNN, WHOLE):
      raise ValueError(
        f"people.detector: expected {MTCNN} or {WHOLE}, got {self.detector!r}"
      )
    if min(self.every, self.longest_gap, self.shortest) < 1:
      raise ValueError(
        "people: expected every, longest_gap and shortest of at least 1, got"
        f" {self.every}, {self.longest_gap} and {self.shortest}"
      )
    if self.smooth < 1 or self.smooth % 2 == 0:
      raise ValueError(
        f"people.smooth: expected an odd number, got {self.smooth}"
      )
    if not (0 < self.least_overlap <= 1 and 0 < self.together <= 1):
      raise ValueError(
        "people: expected least_overlap and together in (0, 1], got"
        f" {self.least_overlap} and {self.together}"
      )
    _settings(self)


def _settings(config: Config) -> detector.Settings:
  return detector.Settings(
    weights=config.weights,
    side=config.side,
    smallest=config.smallest,
    least_score=config.least_score,
  )


def identity(config: Config) -> dict[str, Any]:
  """What an outcome depends on: the weights' content, not their place."""
  values = dataclasses.asdict(config)
  values["weights"] = ""
  if config.detector == MTCNN:
    digest = hashlib.sha256()
    for path in mtcnn.files(config.weights).values():
      digest.update(path.read_bytes())
    values["weights"] = digest.hexdigest()
  return values


def missing(config: Config) -> list[str]:
  """MTCNN's weights and OpenCV, if they are not there."""
  if config.detector == WHOLE:
    return []
  problems = opencv.missing()
  try:
    mtcnn.files(config.weights)
  except ValueError as error:
    problems.append(
      f"people.weights: {error} (--config.stages.people.weights=FOLDER); to do"
      " without faces:"
      " --config.skip=\"('people', 'synchrony', 'balance')\""
    )
  return problems


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage.

  Raises:
    ValueError: the weights are missing, or OpenCV is.
  """
  if config.detector == WHOLE:
    return _whole
  detect = detector.load(_settings(config))

  def run(clip: clips.Clip, media: stage.Media) -> clips.Clip:
    frames_THWC = media.video_THWC
    count = len(frames_THWC)
    searched = sorted({*range(0, count, config.every), count - 1})
    made = tracks.join(
      searched,
      detect(frames_THWC[searched]),
      least_overlap=config.least_overlap,
      longest_gap=config.longest_gap,
      shortest=min(config.shortest, count),
      smooth=config.smooth,
    )
    return _told(clip, made, count, config.together)

  return run


def _whole(clip: clips.Clip, media: stage.Media) -> clips.Clip:
  """One face in all of the picture."""
  return clip.found(
    NAME, kind=SINGLE, tracks=[tracks.whole(*media.video_THWC.shape[:3])]
  )


def _told(
  clip: clips.Clip,
  made: Sequence[tracks.Track],
  frames: int,
  together: float,
) -> clips.Clip:
  seen = tracks.at_once(made, frames)
  kind = NONE
  if made:
    several = (seen >= 2).mean() >= together
    kind = SEVERAL if several else SINGLE
  return clip.found(NAME, kind=kind, tracks=list(made))
