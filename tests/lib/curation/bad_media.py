"""Files that are no usable media."""

import numpy as np

from tests.lib import media_files


def noise(path):
  random = np.random.default_rng(0)
  path.write_bytes(random.integers(0, 256, 50_000, dtype=np.uint8).tobytes())
  return path


def one_frame(path):
  return media_files.write(
    path, media_files.moving(1), [0.0], media_files.tone(0.02)
  )


def empty(path):
  path.touch()
  return path
