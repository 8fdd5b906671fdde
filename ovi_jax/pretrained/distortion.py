"""Distance of decoded clips from their originals: PSNR and log-mel error."""

import numpy as np

from ovi_jax.models import mel

RANGE = 60.0  # dB below a sound's loudest band and moment that count


def video_psnr(original: np.ndarray, decoded: np.ndarray) -> float:
  """Peak signal-to-noise ratio of a clip.

  Args:
    original: uint8 frames.
    decoded: uint8 frames of the same shape.

  Returns:
    dB; infinite if both are equal.

  Raises:
    ValueError: shapes or types differ.
  """
  _check("pictures", original, decoded, np.uint8)
  error = np.square(original.astype(np.float64) - decoded).mean()
  return float(10 * np.log10(255**2 / error)) if error else float("inf")


def log_mel_error(
  original: np.ndarray,
  decoded: np.ndarray,
  config: mel.MelConfig | None = None,
) -> float:
  """Mean absolute difference of log-mel spectrograms.

  Values more than `RANGE` dB below the original's maximum count as silence.

  Args:
    original: wave_A, float32 in [-1, 1].
    decoded: of the same length.
    config: of the spectrogram; `None` for the default.

  Returns:
    dB.

  Raises:
    ValueError: lengths or types differ.
  """
  _check("waves", original, decoded, np.float32)
  config = config or mel.MelConfig()
  mels = [
    20 * np.asarray(mel.log_mel(config, wave_A[None]), np.float64)
    for wave_A in (original, decoded)
  ]
  floor = mels[0].max() - RANGE
  first, second = (np.maximum(each, floor) for each in mels)
  return float(np.abs(first - second).mean())


def _check(what: str, original: np.ndarray, decoded: np.ndarray, dtype):
  found = [f"{a.dtype} {list(a.shape)}" for a in (original, decoded)]
  wrong = any(a.dtype != dtype for a in (original, decoded))
  if wrong or original.shape != decoded.shape:
    raise ValueError(
      f"{what}: expected two of {np.dtype(dtype)} and one shape, got"
      f" {' and '.join(found)}"
    )
