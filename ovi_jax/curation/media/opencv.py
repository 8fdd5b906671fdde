"""OpenCV, which the extra `[curate]` brings."""

import functools
import importlib.util
import types


def missing() -> list[str]:
  """A sentence if OpenCV is not installed."""
  if importlib.util.find_spec("cv2"):
    return []
  return ["OpenCV is needed: pip install 'ovi_jax[curate]'"]


@functools.cache
def library() -> types.ModuleType:
  """OpenCV, computing on one thread.

  Optical flow cuts the picture into as many stripes as there are threads, and
  its result depends on them; and clips are what is spread over cores.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import cv2
  except ImportError as error:
    raise ValueError(
      "OpenCV is needed: pip install 'ovi_jax[curate]'"
    ) from error
  cv2.setNumThreads(1)
  return cv2
