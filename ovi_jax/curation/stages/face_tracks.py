"""Detects and tracks faces.

Faces are detected in every few frames and linked to tracks. Facts: face_count;
and tracks, [{start_frame, boxes}], with a box [top, left, height, width] in
pixels of `Media.video_THWC` for every frame of a track. No clip is rejected.
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
  """Face detection and tracking.

  Attributes:
    detector: "mtcnn", or "full_frame" to treat every frame as one face.
    weights: folder of the MTCNN files; "" for the package facenet-pytorch.
    detection_size: longer side of frames for detection, pixels.
    min_face_size: smallest face, in pixels at that size.
    min_detection_score: detection threshold, in [0, 1).
    detect_every: frames between detections; the last frame is included.
    min_iou: IoU of a detection with the last box of its track.
    max_gap_frames: frames without detection within a track.
    min_track_frames: minimum track length.
    smoothing_window: frames of the median filter of boxes, odd.
    min_multiple_fraction: fraction of the clip with two or more faces at once,
      for a face_count of "multiple".
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
        f"face_tracks.detector: expected {MTCNN} or {FULL_FRAME}, got"
        f" {self.detector!r}"
      )
    if min(self.detect_every, self.max_gap_frames, self.min_track_frames) < 1:
      raise ValueError(
        "face_tracks: expected detect_every, max_gap_frames and"
        f" min_track_frames of at least 1, got {self.detect_every},"
        f" {self.max_gap_frames} and {self.min_track_frames}"
      )
    if self.smoothing_window < 1 or self.smoothing_window % 2 == 0:
      raise ValueError(
        "face_tracks.smoothing_window: expected an odd number, got"
        f" {self.smoothing_window}"
      )
    if not (0 < self.min_iou <= 1 and 0 < self.min_multiple_fraction <= 1):
      raise ValueError(
        "face_tracks: expected min_iou and min_multiple_fraction in (0, 1], got"
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
  """The config, with the weights by content."""
  values = dataclasses.asdict(config)
  values["weights"] = ""
  if config.detector == MTCNN:
    digest = hashlib.sha256()
    for path in mtcnn.files(config.weights).values():
      digest.update(path.read_bytes())
    values["weights"] = digest.hexdigest()
  return values


def missing_requirements(config: Config) -> list[str]:
  """MTCNN weights and OpenCV, if missing."""
  if config.detector == FULL_FRAME:
    return []
  problems = opencv.missing_requirements()
  try:
    mtcnn.files(config.weights)
  except ValueError as error:
    problems.append(
      f"face_tracks.weights: {error}"
      " (--config.stages.face_tracks.weights=FOLDER); or skip face stages:"
      " --config.skip=\"('face_tracks', 'av_sync', 'balance')\""
    )
  return problems


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage function.

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
  """A single face that fills the frame."""
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
