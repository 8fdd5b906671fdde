"""Clips of one grey level, written as `sample.py` writes its outputs."""

import pathlib

import numpy as np

from ovi_jax.modality import AV
from ovi_jax.sampling import outputs

RECIPE = {"prompt": "a", "seed": 1, "image": {"path": "x", "sha256": "0"}}


def write(path, grey: int) -> None:
  """A clip of 5 grey frames, described as such."""
  frames = np.full((5, 32, 32, 3), grey, np.uint8)
  latents = AV(np.zeros((2, 2, 2, 48)), np.zeros((4, 20)))
  outputs.write(
    pathlib.Path(path),
    RECIPE | {"seed": grey},
    iter([frames]),
    np.zeros(4000, np.float32),
    lambda: latents,
  )
