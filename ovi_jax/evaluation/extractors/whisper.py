"""Speech recognition with Whisper through faster-whisper. Array: `text`.

Weights are a folder in the format of CTranslate2 (`model.bin`, `config.json`,
`tokenizer.json`, a vocabulary, for some sizes `preprocessor_config.json`), of
any size of Whisper; nothing is downloaded. The sound is mono at 16 kHz; beam
search of 5 in English, float32. Nothing is sampled, no window depends on the
text of the one before, and none is left out as silent, so that a clip always
has the same text.
"""

import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container

RATE = 16_000
# Arguments of faster-whisper's `transcribe`.
SETTINGS: Mapping[str, Any] = {
  "language": "en",
  "task": "transcribe",
  "beam_size": 5,
  "temperature": 0.0,
  "condition_on_previous_text": False,
  "no_speech_threshold": None,
  "without_timestamps": True,
}
# Without its tokenizer or settings faster-whisper takes those of other models.
_FILES = ("model.bin", "config.json", "tokenizer.json")
_VOCABULARIES = ("vocabulary.json", "vocabulary.txt")
_OPTIONAL = ("preprocessor_config.json",)
_MIN_SECONDS = 0.1


def whisper(folder: str) -> features.Extractor:
  """The extractor.

  Args:
    folder: of the weights; "" for none, then it is `missing`.

  Raises:
    ValueError: the folder lacks files.
  """
  missing, digest = "", ""
  if importlib.util.find_spec("faster_whisper") is None:
    missing = "faster-whisper is missing: pip install -e '.[eval]'"
  elif not folder:
    missing = "needs the weights of Whisper: --weights=whisper=FOLDER"
  else:
    digest = _digest(pathlib.Path(folder))
  return features.Extractor(
    name="whisper",
    version=2,
    needs=(clips.SOUND,),
    settings=SETTINGS,
    weights=digest,
    missing=missing,
    load=lambda: _load(folder),
  )


def _digest(folder: pathlib.Path) -> str:
  """SHA-256 over all files that are read; ValueError if one is absent."""
  names = (*_FILES, *_VOCABULARIES, *_OPTIONAL)
  there = [name for name in names if (folder / name).is_file()]
  absent = [name for name in _FILES if name not in there]
  if not set(there).intersection(_VOCABULARIES):
    absent.append(" or ".join(_VOCABULARIES))
  if absent:
    raise ValueError(
      f"--weights=whisper={folder}: expected a folder of CTranslate2, it has no"
      f" {', '.join(absent)}"
    )
  digests = {name: container.digest(folder / name) for name in there}
  return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _load(folder: str) -> features.Compute:
  try:
    import faster_whisper
  except ImportError as error:
    raise ValueError(
      "recognition needs faster-whisper: pip install -e '.[eval]'"
    ) from error
  try:
    model = faster_whisper.WhisperModel(
      folder, device="auto", compute_type="float32", local_files_only=True
    )
  except (RuntimeError, OSError) as error:
    raise ValueError(f"--weights=whisper={folder}: {error!s:.300}") from error

  def transcribe(media: clips.Media) -> features.Arrays:
    wave_A = media.mono(RATE)
    if wave_A.size < _MIN_SECONDS * RATE:
      return {"text": np.array("")}
    segments, _ = model.transcribe(wave_A, **SETTINGS)
    return {"text": np.array("".join(part.text for part in segments).strip())}

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [transcribe(each) for each in media]

  return compute
