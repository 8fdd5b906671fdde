"""Measures sharpness, exposure and, with weights, an aesthetic score.

The aesthetic score is LAION's predictor on CLIP embeddings and needs the
weights of both; without them it is null and no clip is rejected for it.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.media import letterbox
from ovi_jax.curation.media import opencv
from ovi_jax.media import container as containers

NAME = "quality"
VERSION = 1
KIND = "clip"
THRESHOLDS = {
  "too dark": ("exposure", "min_exposure"),
  "too bright": ("exposure", "max_exposure"),
  "blurred": ("sharpness", "min_sharpness"),
  "low aesthetic score": ("aesthetic", "min_aesthetic"),
}
SHORTER_SIDE = 360  # pixels, for sharpness
_LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of BT.709


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Thresholds of a clip.

  Attributes:
    num_frames: frames to measure, spread over the clip.
    min_sharpness: variance of the Laplacian of luma (0 to 255), at a shorter
      side of 360.
    min_exposure: mean luma, in [0, 1].
    max_exposure: mean luma, in [0, 1].
    clip_weights: path of CLIP weights (safetensors), ViT-L/14 for the public
      heads; empty for none.
    aesthetic_weights: path of the LAION head (.pth); empty for none.
    num_aesthetic_frames: how many of `num_frames` are scored.
    min_aesthetic: from 1 to 10; None to measure only.
  """

  num_frames: int = 7
  min_sharpness: float = 20.0
  min_exposure: float = 0.06
  max_exposure: float = 0.94
  clip_weights: str = ""
  aesthetic_weights: str = ""
  num_aesthetic_frames: int = 1
  min_aesthetic: float | None = None

  def __post_init__(self):
    if bool(self.clip_weights) != bool(self.aesthetic_weights):
      raise ValueError(
        "quality: expected clip_weights and aesthetic_weights, or neither; got"
        f" {self.clip_weights!r} and {self.aesthetic_weights!r}"
      )
    if self.min_aesthetic is not None and not self.clip_weights:
      raise ValueError(
        "quality: min_aesthetic needs clip_weights and aesthetic_weights"
      )
    if not 1 <= self.num_aesthetic_frames <= self.num_frames:
      raise ValueError(
        "quality: expected 1 <= num_aesthetic_frames <= num_frames, got"
        f" {self.num_aesthetic_frames} and {self.num_frames}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """The config, with the weights by content."""
  values = dataclasses.asdict(config)
  for name in ("clip_weights", "aesthetic_weights"):
    if values[name]:
      values[name] = containers.digest(
        containers.given(f"quality.{name}", values[name])
      )
  return values


def missing_requirements(config: Config) -> list[str]:
  """OpenCV and configured weights, if missing."""
  problems = opencv.missing_requirements()
  for name in ("clip_weights", "aesthetic_weights"):
    path = getattr(config, name)
    if path and not os.path.isfile(path):
      problems.append(
        f"quality.{name}: {path} is not a file; name another with"
        f" --config.stages.quality.{name}=FILE, or omit the aesthetic score"
        " with --config.stages.quality.clip_weights="
        " --config.stages.quality.aesthetic_weights="
      )
  return problems


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""
  laplacian = _laplacian()
  score_frames = _aesthetic_scorer(config) if config.clip_weights else None

  def quality(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    box = letterbox.crop_box(clip, media)
    count = len(media.video_THWC)
    indices = np.rint(np.linspace(0, count - 1, config.num_frames)).astype(int)
    frames_THWC = box.crop(media.video_THWC[indices])
    luma_THW = clip_media.resize_shorter_side(frames_THWC, SHORTER_SIDE) @ _LUMA
    sharpness = float(np.mean([laplacian(luma_HW) for luma_HW in luma_THW]))
    exposure = float(luma_THW.mean()) / 255
    scores = {
      "sharpness": round(sharpness, 4),
      "exposure": round(exposure, 6),
    }
    aesthetic = None
    if score_frames is not None:
      indices = np.linspace(
        0, config.num_frames - 1, config.num_aesthetic_frames + 2
      )
      indices = np.rint(indices[1:-1]).astype(int)
      aesthetic = round(score_frames(frames_THWC[indices]), 4)
      scores["aesthetic"] = aesthetic
    reason = _reason(scores, config)
    if reason:
      return clips.Reject(
        clip=clip, stage=NAME, reason=reason[0], score=reason[1]
      )
    facts = {**scores, "aesthetic": aesthetic}
    return clip.with_facts(NAME, scores=scores, **facts)

  return quality


def _reason(
  scores: dict[str, float], config: Config
) -> tuple[str, float] | None:
  """The reject reason and score; None if the clip passes."""
  if scores["exposure"] < config.min_exposure:
    return "too dark", scores["exposure"]
  if scores["exposure"] > config.max_exposure:
    return "too bright", scores["exposure"]
  if scores["sharpness"] < config.min_sharpness:
    return "blurred", scores["sharpness"]
  threshold = config.min_aesthetic
  if threshold is not None and scores["aesthetic"] < threshold:
    return "low aesthetic score", scores["aesthetic"]
  return None


def _laplacian() -> Callable[[np.ndarray], float]:
  """Variance of the Laplacian of a picture; ValueError without OpenCV."""
  cv2 = opencv.library()
  return lambda luma_HW: float(cv2.Laplacian(luma_HW, cv2.CV_32F).var())


def _aesthetic_scorer(config: Config) -> Callable[[np.ndarray], float]:
  """A function from uint8 RGB frames to their mean score."""
  import jax

  from ovi_jax import cli
  from ovi_jax.curation.models import aesthetic
  from ovi_jax.curation.models import clip_vision

  cli.setup_jax()
  sizes, tower_params = clip_vision.read(config.clip_weights)
  tower = clip_vision.VisionTower(sizes)
  head, head_params = aesthetic.read(
    config.aesthetic_weights, sizes.projection_dim
  )
  params = jax.device_put((tower_params, head_params))

  @jax.jit
  def scores(params, pictures_BHWC):
    vectors_BC = tower.apply({"params": params[0]}, pictures_BHWC)
    return head.apply({"params": params[1]}, vectors_BC)

  def score_frames(frames_THWC: np.ndarray) -> float:
    pictures = clip_vision.preprocess(frames_THWC, sizes.image_size)
    return float(scores(params, pictures).mean())

  return score_frames
