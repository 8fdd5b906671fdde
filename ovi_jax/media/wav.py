"""wav files: mono, 16-bit PCM, written whole."""

import contextlib
import io
import os
import wave
from collections.abc import Callable

import numpy as np

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import storage

_FULL_SCALE = 32_768


def pcm(wave_A: np.ndarray) -> bytes:
  """Encode a wave as PCM.

  Args:
    wave_A: mono samples in [-1, 1]; clipped to this range.

  Returns:
    int16 little-endian samples.
  """
  scaled = np.rint(np.asarray(wave_A, np.float32) * _FULL_SCALE)
  return np.clip(scaled, -32768, 32767).astype("<i2").tobytes()


def encode(
  wave_A: np.ndarray, sample_rate: int = geometry.SAMPLE_RATE
) -> bytes:
  """The content of a wav file; arguments as of `write`."""
  return from_pcm(pcm(wave_A), sample_rate)


def from_pcm(samples: bytes, sample_rate: int = geometry.SAMPLE_RATE) -> bytes:
  """The content of a wav file.

  Args:
    samples: as `pcm` returns them.
    sample_rate: Hz.
  """
  content = io.BytesIO()
  with contextlib.closing(wave.open(content, "wb")) as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate)
    file.writeframes(samples)
  return content.getvalue()


def write(
  path: str | os.PathLike[str],
  wave_A: np.ndarray,
  sample_rate: int = geometry.SAMPLE_RATE,
  before_naming: Callable[[], storage.AnyPath | None] = lambda: None,
) -> None:
  """Write a wav; nothing stands under `path` until all of it is written.

  Args:
    path: of the file; an older one is replaced.
    wave_A: mono samples in [-1, 1]; clipped to this range.
    sample_rate: Hz.
    before_naming: called when the file is whole, see `files.atomic_path`.

  Raises:
    ValueError: a sample is NaN or infinite.
    OSError: the disk is full, or the folder is not writable.
  """
  path = storage.locate(path)
  if not np.isfinite(wave_A).all():
    raise ValueError(f"{path}: the sound holds NaN or infinity")
  with files.atomic_path(path, before_naming) as temporary:
    temporary.write_bytes(encode(wave_A, sample_rate))
