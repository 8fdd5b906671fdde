"""CLIP's image tower, and LAION's aesthetic head on it, as in curation.

`clip_vision` has `frames` [T, C], embeddings of unit length of all frames;
VBench's background consistency takes ViT-B/32. `aesthetic` has `frames` [T],
scores of 1 to 10 over 10; VBench takes ViT-L/14 and the linear head. float32.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax.curation.models import aesthetic as heads
from ovi_jax.curation.models import clip_vision as towers
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container

_BATCH = 16  # frames per call
_BETWEEN = "+"  # the two files of `aesthetic`
# Frames to rows, one each.
Embed = Callable[[np.ndarray], np.ndarray]


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
  return _extractor("clip_vision", digest, missing, lambda: _tower(path))


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
  return _extractor("aesthetic", digest, missing, lambda: _scorer(tower, head))


def _extractor(
  name: str, digest: str, missing: str, load: Callable[[], Embed]
) -> features.Extractor:
  def make() -> features.Compute:
    embed = load()

    def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
      return [
        {"frames": _all_frames(each.frames_THWC, embed)} for each in media
      ]

    return compute

  return features.Extractor(
    name=name,
    version=2,
    needs=(clips.PICTURE,),
    weights=digest,
    missing=missing,
    load=make,
  )


def _all_frames(frames_THWC: np.ndarray, embed: Embed) -> np.ndarray:
  """A row for each frame, in batches of one size."""
  parts = []
  for start in range(0, len(frames_THWC), _BATCH):
    part = frames_THWC[start : start + _BATCH]
    parts.append(embed(part)[: len(part)])
  return np.concatenate(parts)


def _padded(frames_THWC: np.ndarray, side: int) -> np.ndarray:
  """Network inputs of a batch, padded with zeros."""
  pictures = towers.preprocess(frames_THWC, side)
  return np.pad(pictures, [(0, _BATCH - len(pictures)), (0, 0), (0, 0), (0, 0)])


def _tower(path: str) -> Embed:
  sizes, params = towers.read(path)
  params = jax.device_put(params)
  apply = jax.jit(towers.VisionTower(sizes).apply)
  return lambda frames_THWC: np.asarray(
    apply({"params": params}, _padded(frames_THWC, sizes.image_size))
  )


def _scorer(tower: str, head: str) -> Embed:
  embed = _tower(tower)
  width = towers.read(tower)[0].projection_dim
  network, params = heads.read(head, width)
  variables: Any = {"params": jax.device_put(params)}
  apply = jax.jit(network.apply)
  return lambda frames_THWC: (
    np.asarray(apply(variables, embed(frames_THWC))) / 10
  )
