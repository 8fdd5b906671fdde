"""Fixtures of the training tests."""

import numpy as np
import pytest

from ovi_jax.data import builder
from tests.lib import small_training


@pytest.fixture(scope="session")
def datasets(tmp_path_factory) -> dict[str, str]:
  """Clips with sound, and sounds alone."""
  root, paths = tmp_path_factory.mktemp("data"), {}
  for name, video in (("clips", True), ("sounds", False)):
    paths[name] = str(root / name)
    builder.write(
      paths[name],
      {"train": [small_training.record(i, video) for i in range(12)]},
      geometry=small_training.SIZES,
      null_text=np.full((1, 48), 0.5, np.float32),
    )
  return paths
