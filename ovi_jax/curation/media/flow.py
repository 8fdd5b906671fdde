"""Optical flow estimators by name.

"dis" is OpenCV's Dense Inverse Search (arXiv 1603.03590). A custom estimator,
such as RAFT, is a function `make() -> (frame_HWC, frame_HWC) -> flow_HW2` of
uint8 RGB frames, with flow in pixels along columns and rows, given by its path:
"my_package.my_module:make". It must be deterministic.
"""

import functools
import importlib
from collections.abc import Callable
from collections.abc import Mapping

import numpy as np

from ovi_jax.curation.media import opencv

Estimate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def dis() -> Estimate:
  """Dense Inverse Search with the fast preset.

  Raises:
    ValueError: OpenCV is not installed.
  """
  cv2 = opencv.library()
  search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
  grey = functools.partial(cv2.cvtColor, code=cv2.COLOR_RGB2GRAY)

  def estimate(one_HWC: np.ndarray, other_HWC: np.ndarray) -> np.ndarray:
    # The last argument is an initial flow; the object is stateless.
    return search.calc(grey(one_HWC), grey(other_HWC), None)

  return estimate


KNOWN: Mapping[str, Callable[[], Estimate]] = {"dis": dis}


def load(name: str) -> Callable[[], Estimate]:
  """The factory of the estimator of that name.

  Raises:
    ValueError: it is unknown.
  """
  if name in KNOWN:
    return KNOWN[name]
  module, colon, attribute = name.partition(":")
  if not colon:
    raise ValueError(
      f"flow {name!r} is unknown; choose from {', '.join(KNOWN)} or name a"
      " function as package.module:function"
    )
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"flow {name!r} cannot be imported: {error}") from error
