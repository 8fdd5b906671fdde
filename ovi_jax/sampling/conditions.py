"""What is given of a clip: latents and masks of the latents in time.

One mask a modality says which latents are given; the others are generated, see
`denoise.Given`. Image-to-video is one case: the first video latent is given.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax.modality import AV
from ovi_jax.sampling import denoise


def first_frame(
  latent_THWC: np.ndarray, shape: tuple[int, ...]
) -> AV[denoise.Given]:
  """The condition of image-to-video: a clean first latent.

  Args:
    latent_THWC: of the picture, T = 1.
    shape: [T, H, W, C] of the clip.

  Returns:
    Arrays of one clip, without a batch axis.
  """
  latents_THWC = np.zeros(shape, np.float32)
  latents_THWC[:1] = latent_THWC
  return AV(video=denoise.Given(latents_THWC, np.arange(shape[0]) == 0))


def stack(rows: Sequence[AV[Any]]) -> AV[Any]:
  """Conditions of a batch from those of its clips; all give the same parts."""
  return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
