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
NAME = "face_tracks"
NONE, SINGLE, MULTIPLE = "none", "single", "multiple"
MTCNN, FULL_FRAME = "mtcnn", "full_frame"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How faces are found, and what makes a track.

  Attributes:
    detector: "mtcnn", or "whole": one face fills every picture, for clips of
      which that is known.
    weights: folder of MTCNN's files; "" for the package facenet-pytorch.
    detection_size: pixels that the longer side is made before faces are looked for.
    min_face_size: face that is looked for, in those pixels.
    min_detection_score: of a face, in [0, 1).
    detect_every: frames from a search to the next; the last frame is searched too.
    min_iou: IoU of a face with where it was last.
    max_gap_frames: frames for which a face may be lost.
    min_track_frames: frames of a track.
    smoothing_window: frames of the median that boxes are smoothed by, odd.
    min_multiple_fraction: share of a clip for which two faces or more are seen at once if
      it is one of several.
  """

  detector: str = MTCNN
  weights: str = ""
  detection_size: int = 448
  min_face_size: int = 32
  min_detection_score: float = 0.9
  detect_every: int = 8
  min_iou: float = 0.3
  max_gap_frames: int = 24
  min_track_frames: int = 24
  smoothing_window: int = 13
  min_multiple_fraction: float = 0.25

  def __post_init__(self):
    if self.detector not in (MTCNN, FULL_FRAME):
      raise ValueError(
        f"face_tracks.detector: expected {MTCNN} or {FULL_FRAME}, got {self.detector!r}"
      )
    if min(self.detect_every, self.max_gap_frames, self.min_track_frames) < 1:
      raise ValueError(
        "face_tracks: expected every, longest_gap and shortest of at least 1, got"
        f" {self.detect_every}, {self.max_gap_frames} and {self.min_track_frames}"
      )
    if self.smoothing_window < 1 or self.smoothing_window % 2 == 0:
      raise ValueError(
        f"face_tracks.smooth: expected an odd number, got {self.smoothing_window}"
      )
    if not (0 < self.min_iou <= 1 and 0 < self.min_multiple_fraction <= 1):
      raise ValueError(
        "face_tracks: expected least_overlap and together in (0, 1], got"
        f" {self.min_iou} and {self.min_multiple_fraction}"
      )
    _detector_settings(self)


def _detector_settings(config: Config) -> detector.Settings:
  return detector.Settings(
    weights=config.weights,
    input_size=config.detection_size,
    min_face_size=config.min_face_size,
    min_score=config.min_detection_score,
  )


def fingerprint(config: Config) -> dict[str, Any]:
  """What an outcome depends on: the weights' content, not their place."""
  values = dataclasses.asdict(config)
  values["weights"] = ""
  if config.detector == MTCNN:
    digest = hashlib.sha256()
    for path in mtcnn.files(config.weights).values():
      digest.update(path.read_bytes())
    values["weights"] = digest.hexdigest()
  return values


def missing_requirements(config: Config) -> list[str]:
  """MTCNN's weights and OpenCV, if they are not there."""
  if config.detector == FULL_FRAME:
    return []
  problems = opencv.missing()
  try:
    mtcnn.files(config.weights)
  except ValueError as error:
    problems.append(
      f"face_tracks.weights: {error} (--config.stages.face_tracks.weights=FOLDER); to do"
      " without faces:"
      " --config.skip=\"('face_tracks', 'av_sync', 'balance')\""
    )
  return problems


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage.

  Raises:
    ValueError: the weights are missing, or OpenCV is.
  """
  if config.detector == FULL_FRAME:
    return _full_frame
  detect = detector.load(_detector_settings(config))

  def run(clip: clips.Clip, media: stage.Media) -> clips.Clip:
    frames_THWC = media.video_THWC
    count = len(frames_THWC)
    searched = sorted({*range(0, count, config.detect_every), count - 1})
    made = tracks.link_detections(
      searched,
      detect(frames_THWC[searched]),
      min_iou=config.min_iou,
      max_gap=config.max_gap_frames,
      min_length=min(config.min_track_frames, count),
      smoothing_window=config.smoothing_window,
    )
    return _with_tracks(clip, made, count, config.min_multiple_fraction)

  return run


def _full_frame(clip: clips.Clip, media: stage.Media) -> clips.Clip:
  """One face in all of the picture."""
  return clip.with_facts(
    NAME,
    face_count=SINGLE,
    tracks=[tracks.full_frame(*media.video_THWC.shape[:3])],
  )


def _with_tracks(
  clip: clips.Clip,
  made: Sequence[tracks.Track],
  frames: int,
  together: float,
) -> clips.Clip:
  seen = tracks.count_per_frame(made, frames)
  kind = NONE
  if made:
    several = (seen >= 2).mean() >= together
    kind = MULTIPLE if several else SINGLE
  return clip.with_facts(NAME, face_count=kind, tracks=list(made))
