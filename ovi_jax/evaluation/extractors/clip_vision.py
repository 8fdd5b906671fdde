"""CLIP's image tower, and LAION's aesthetic head on it, as in curation.

`clip_vision` has `frames` [T, C], embeddings of unit length of all frames;
VBench's background consistency takes ViT-B/32. `aesthetic` has `frames` [T],
scores of 1 to 10 over 10; VBench takes ViT-L/14 and the linear head. float32.
"""

from typing import Any

import jax
import numpy as np

from ovi_jax.curation.models import aesthetic as heads
from ovi_jax.curation.models import clip_vision as towers
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import frames
from ovi_jax.media import container

_BETWEEN = "+"  # the two files of `aesthetic`


def clip_vision(path: str) -> features.Extractor:
  """The extractor of embeddings.

  Args:
    path: of CLIP's weights (safetensors); "" for none, then it is `missing`.

  Raises:
    ValueError: there is no such file.
  """
  missing = digest = ""
  if path:
    digest = container.digest(container.given("--weights=clip_vision", path))
  else:
    missing = "needs CLIP's weights: --weights=clip_vision=FILE"
  return frames.extractor(
    "clip_vision", 2, digest, missing, lambda: _tower(path)
  )


def aesthetic(paths: str) -> features.Extractor:
  """The extractor of aesthetic scores.

  Args:
    paths: of CLIP's weights and the head's, `FILE+FILE`; "" for none.

  Raises:
    ValueError: these are not two files.
  """
  missing = digest = ""
  tower, _, head = paths.partition(_BETWEEN)
  if paths:
    digest = _BETWEEN.join(
      container.digest(container.given("--weights=aesthetic", path))
      for path in (tower, head)
    )
  else:
    missing = (
      "needs the weights of CLIP and of LAION's head:"
      " --weights=aesthetic=FILE+FILE"
    )
  return frames.extractor(
    "aesthetic", 2, digest, missing, lambda: _scorer(tower, head)
  )


def _tower(path: str) -> frames.Embed:
  sizes, params = towers.read(path)
  params = jax.device_put(params)
  apply = jax.jit(towers.VisionTower(sizes).apply)

  def embed(frames_THWC: np.ndarray) -> np.ndarray:
    pictures = towers.preprocess(frames_THWC, sizes.image_size)
    return np.asarray(apply({"params": params}, frames.padded(pictures)))

  return embed


def _scorer(tower: str, head: str) -> frames.Embed:
  embed = _tower(tower)
  width = towers.read(tower)[0].projection_dim
  network, params = heads.read(head, width)
  variables: Any = {"params": jax.device_put(params)}
  apply = jax.jit(network.apply)
  return lambda frames_THWC: (
    np.asarray(apply(variables, embed(frames_THWC))) / 10
  )
