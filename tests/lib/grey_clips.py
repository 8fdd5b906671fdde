"""Clips of one grey level, written as `sample.py` writes its outputs."""

import numpy as np

from ovi_jax import storage
from ovi_jax.modality import AV
from ovi_jax.sampling import outputs

RECIPE = {"prompt": "a", "seed": 1, "image": {"path": "x", "sha256": "0"}}
# The least that has an end: two boxes of an mp4.
MP4 = b"\0\0\0\x10ftypisom\0\0\0\0" + b"\0\0\0\x08moov"


def write(path, grey: int, seen: outputs.Seen | None = None) -> storage.AnyPath:
  """A clip of 5 grey frames, described as such; returns where it is."""
  frames = np.full((5, 32, 32, 3), grey, np.uint8)
  latents = AV(np.zeros((2, 2, 2, 48)), np.zeros((4, 20)))
  return outputs.write(
    storage.locate(path),
    RECIPE | {"seed": grey},
    iter([frames]),
    np.zeros(4000, np.float32),
    lambda: latents,
    seen=seen,
  )
