"""OpenCV, part of the extra `[curate]`."""

import functools
import importlib.util
import types


def missing_requirements() -> list[str]:
  """A message if OpenCV is not installed."""
  if importlib.util.find_spec("cv2"):
    return []
  return ["OpenCV is needed: pip install -e '.[curate]'"]


@functools.cache
def library() -> types.ModuleType:
  """OpenCV, limited to one thread.

  The result of optical flow depends on the number of threads; clips are
  processed in parallel instead.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import cv2
  except ImportError as error:
    raise ValueError("OpenCV is needed: pip install -e '.[curate]'") from error
  cv2.setNumThreads(1)
  return cv2
