"""Extractors that map each frame of a clip to a row of an array `frames`."""

from collections.abc import Callable
from collections.abc import Sequence

import numpy as np

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features

BATCH = 16  # frames per call
# At most `BATCH` frames [T, H, W, C], uint8, to rows; rows past T are ignored.
Embed = Callable[[np.ndarray], np.ndarray]


def extractor(
  name: str, version: int, digest: str, missing: str, load: Callable[[], Embed]
) -> features.Extractor:
  """An extractor of rows `frames`, one for each frame.

  Args:
    name: of the extractor.
    version: of its results.
    digest: SHA-256 of the weights.
    missing: what keeps it from running; "" if nothing does.
    load: makes the function of frames.
  """

  def make() -> features.Compute:
    embed = load()

    def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
      return [{"frames": rows(each.frames_THWC, embed)} for each in media]

    return compute

  return features.Extractor(
    name=name,
    version=version,
    needs=(clips.PICTURE,),
    weights=digest,
    missing=missing,
    load=make,
  )


def rows(frames_THWC: np.ndarray, embed: Embed) -> np.ndarray:
  """A row for each frame, in batches of one size."""
  parts = []
  for start in range(0, len(frames_THWC), BATCH):
    part = frames_THWC[start : start + BATCH]
    parts.append(embed(part)[: len(part)])
  return np.concatenate(parts)


def padded(pictures_BHWC: np.ndarray) -> np.ndarray:
  """Network inputs of a batch, padded with zeros to `BATCH`."""
  missing = BATCH - len(pictures_BHWC)
  return np.pad(pictures_BHWC, [(0, missing), (0, 0), (0, 0), (0, 0)])
