"""Measures volume, letterbox bars and optical flow.

Silent, mostly letterboxed and static windows are rejected.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.media import flow
from ovi_jax.curation.media import letterbox
from ovi_jax.curation.media import opencv

NAME = "motion"
VERSION = 1
KIND = "clip"
THRESHOLDS = {
  "too quiet": ("volume_db", "min_volume_db"),
  "static": ("flow", "min_flow"),
  "mostly letterbox bars": ("picture_fraction", "min_picture_fraction"),
}
SHORTER_SIDE = 180  # pixels, for optical flow
_SILENCE = -120.0  # dB, of digital silence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Thresholds of a clip.

  Attributes:
    min_volume_db: mean square level in dB full scale; clips without audio are
      rejected too. None to accept any, also without audio.
    num_letterbox_frames: frames used for letterbox detection.
    min_picture_fraction: fraction of the frame area within the bars.
    flow_estimator: name of the estimator, see `ovi_jax.curation.media.flow`.
    num_flow_pairs: pairs of neighbouring frames for optical flow.
    min_flow: mean flow in pixels per frame, at a shorter side of 180.
  """

  min_volume_db: float | None = -60.0
  num_letterbox_frames: int = 9
  min_picture_fraction: float = 0.4
  flow_estimator: str = "dis"
  num_flow_pairs: int = 12
  min_flow: float = 0.05

  def __post_init__(self):
    if self.num_letterbox_frames < 1 or self.num_flow_pairs < 1:
      raise ValueError(
        "motion: expected num_letterbox_frames and num_flow_pairs of at least"
        f" 1, got {self.num_letterbox_frames} and {self.num_flow_pairs}"
      )
    if not 0 <= self.min_picture_fraction <= 1:
      raise ValueError(
        "motion: expected a min_picture_fraction from 0 to 1, got"
        f" {self.min_picture_fraction}"
      )


def missing_requirements(config: Config) -> list[str]:
  """OpenCV, if missing."""
  del config
  return opencv.missing_requirements()


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""
  estimate = flow.load(config.flow_estimator)()

  def motion(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    def reject(reason: str, score: float | None = None) -> clips.Reject:
      return clips.Reject(clip=clip, stage=NAME, reason=reason, score=score)

    wanted = config.min_volume_db
    volume = volume_db(media.audio_A)
    if wanted is not None and not media.audio_A.size:
      return reject("no sound")
    if wanted is not None and volume < wanted:
      return reject("too quiet", volume)
    video_THWC = media.video_THWC
    spread = np.linspace(0, len(video_THWC) - 1, config.num_letterbox_frames)
    box = letterbox.detect(video_THWC[np.rint(spread).astype(int)])
    part = box.height * box.width / math.prod(video_THWC.shape[1:3])
    if part < config.min_picture_fraction:
      return reject("mostly letterbox bars", part)
    flow_mean = mean_flow(box.crop(video_THWC), estimate, config.num_flow_pairs)
    if flow_mean < config.min_flow:
      return reject("static", flow_mean)
    return clip.with_facts(
      NAME,
      scores={"volume_db": volume, "flow": flow_mean},
      volume_db=volume,
      crop_box=[box.top, box.left, box.height, box.width],
      flow=flow_mean,
    )

  return motion


def volume_db(audio_A: np.ndarray) -> float:
  """Mean square level in dB full scale; -120 for silence."""
  if not audio_A.size:
    return _SILENCE
  square = float(np.mean(np.square(audio_A, dtype=np.float64)))
  return round(
    max(10 * math.log10(square), _SILENCE) if square else _SILENCE, 4
  )


def mean_flow(
  video_THWC: np.ndarray, estimate: flow.Estimate, pairs: int
) -> float:
  """Pixels from one frame to the next, mean over pixels and pairs.

  Args:
    video_THWC: uint8 RGB of any size; measured at a shorter side of 180.
    estimate: the flow of two frames.
    pairs: of neighbours, spread over the clip.
  """
  last = len(video_THWC) - 2
  if last < 0:
    return 0.0
  means = []
  for place in np.unique(np.rint(np.linspace(0, last, pairs)).astype(int)):
    small_THWC = clip_media.resize_shorter_side(
      video_THWC[place : place + 2], SHORTER_SIDE
    )
    flow_HW2 = estimate(small_THWC[0], small_THWC[1])
    means.append(float(np.linalg.norm(flow_HW2, axis=-1).mean()))
  return round(float(np.mean(means)), 6)
