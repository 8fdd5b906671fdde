"""Speech recognition with Whisper through faster-whisper. Array: `text`.

Weights are a folder in the format of CTranslate2 (`model.bin`, `config.json`,
`tokenizer.json`, a vocabulary), of any size of Whisper. The sound is mono at
16 kHz; beam search of 5 in English, float32 on CPUs.
"""

import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container

RATE, LANGUAGE, BEAMS = 16_000, "en", 5
_MODEL = "model.bin"
_MIN_SECONDS = 0.1


def whisper(folder: str) -> features.Extractor:
  """The extractor.

  Args:
    folder: of the weights; "" for none, then it is `missing`.

  Raises:
    ValueError: the folder has no weights.
  """
  missing, digest = "", ""
  if importlib.util.find_spec("faster_whisper") is None:
    missing = "faster-whisper is missing: pip install 'ovi_jax[eval]'"
  elif not folder:
    missing = "needs the weights of Whisper: --weights=whisper=FOLDER"
  else:
    path = pathlib.Path(folder) / _MODEL
    if not path.is_file():
      raise ValueError(
        f"--weights=whisper={folder}: expected a folder of CTranslate2 with"
        f" {_MODEL}, found none"
      )
    digest = container.digest(path)
  return features.Extractor(
    name="whisper",
    version=1,
    needs=(clips.SOUND,),
    settings={"language": LANGUAGE, "beams": BEAMS},
    weights=digest,
    missing=missing,
    load=lambda: _load(folder),
  )


def _load(folder: str) -> features.Compute:
  try:
    import faster_whisper
  except ImportError as error:
    raise ValueError(
      "recognition needs faster-whisper: pip install 'ovi_jax[eval]'"
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
    segments, _ = model.transcribe(
      wave_A, language=LANGUAGE, beam_size=BEAMS, without_timestamps=True
    )
    return {"text": np.array("".join(part.text for part in segments).strip())}

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [transcribe(each) for each in media]

  return compute
