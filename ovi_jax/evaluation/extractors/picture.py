"""Features of pictures without a network.

`picture`: differences between consecutive frames. Arrays: `motion_T`, mean
absolute difference of each frame from the one before, in levels of 255 (first
frame: 0); `flicker`, (255 - mean difference) / 255; `stillness`, share of the
differences below half a level; `seconds` and `fps`.

`flow`: mean length of Farneback's optical flow, in pixels of frames whose
shorter side is at most 256. Arrays: `flow_T` (first frame: 0) and `fps`. The
parameters of the flow are those of AV-Align (Yariv et al., 2023).
"""

import importlib.util
from collections.abc import Sequence

import numpy as np

from ovi_jax.curation.media import clip_media
from ovi_jax.curation.media import opencv
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features

STILL = 0.5  # levels of 255
_SIDE = 256
# Scale, levels, window, iterations, neighbourhood, its deviation, flags.
_FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)


def picture() -> features.Extractor:
  """Differences of frames."""
  return features.Extractor(
    name="picture",
    version=2,
    needs=(clips.PICTURE,),
    settings={"still": STILL},
    load=lambda: lambda media: [_differences(each) for each in media],
  )


def _differences(media: clips.Media) -> features.Arrays:
  frames_THWC = media.frames_THWC
  motion_T = np.zeros(len(frames_THWC))
  for t in range(1, len(frames_THWC)):
    now, before = frames_THWC[t], frames_THWC[t - 1]
    # Of unsigned numbers, without a copy in a wider type.
    difference = np.where(now > before, now - before, before - now)
    motion_T[t] = difference.mean(dtype=np.float64)
  arrays = {
    "motion_T": motion_T,
    "fps": np.float64(media.fps),
    "seconds": np.float64(len(frames_THWC) / media.fps),
  }
  if len(frames_THWC) > 1:
    arrays["flicker"] = np.float64((255 - motion_T[1:].mean()) / 255)
    arrays["stillness"] = np.float64((motion_T[1:] < STILL).mean())
  return arrays


def flow() -> features.Extractor:
  """Lengths of optical flow."""
  missing = ""
  if importlib.util.find_spec("cv2") is None:
    missing = "OpenCV is missing: pip install -e '.[eval]'"
  return features.Extractor(
    name="flow",
    version=2,
    needs=(clips.PICTURE,),
    settings={"farneback": list(_FARNEBACK), "side": _SIDE},
    missing=missing,
    load=lambda: _flows,
  )


def _flows(media: Sequence[clips.Media]) -> list[features.Arrays]:
  cv2 = opencv.library()
  found = []
  for each in media:
    frames_THWC = each.frames_THWC
    if min(frames_THWC.shape[1:3]) > _SIDE:
      frames_THWC = clip_media.resize_shorter_side(frames_THWC, _SIDE)
    flow_T = np.zeros(len(frames_THWC))
    before = None
    for t, frame_HWC in enumerate(frames_THWC):
      grey = cv2.cvtColor(np.ascontiguousarray(frame_HWC), cv2.COLOR_RGB2GRAY)
      if before is not None:
        # The third argument is an initial flow.
        flow_HW2 = cv2.calcOpticalFlowFarneback(before, grey, None, *_FARNEBACK)
        flow_T[t] = np.linalg.norm(flow_HW2.astype(np.float64), axis=-1).mean()
      before = grey
    found.append({"flow_T": flow_T, "fps": np.float64(each.fps)})
  return found
