"""LAION's aesthetic heads: reading and validation."""

import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.curation.models import aesthetic
from tests.lib.curation import clip_weights


def test_a_linear_head_is_read(tmp_path):
  tensors = {
    "weight": np.array([[1, -2, 0.5]], np.float32),
    "bias": np.array([4], np.float32),
  }
  torch_file.save(tmp_path / "linear.pth", tensors)
  head, params = aesthetic.read(tmp_path / "linear.pth", 3)
  vectors = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
  scores = head.apply({"params": params}, vectors)
  np.testing.assert_allclose(scores, [5, 2.5])


@pytest.mark.parametrize(
  "tensors, words",
  [
    ({"other": np.zeros(3, np.float32)}, "expected a LAION head"),
    (clip_weights.head_tensors({0: (9, 1)}), "misshapen"),
    (clip_weights.head_tensors({0: (24, 5)}), "ends in 1"),
  ],
)
def test_other_heads_are_refused(tmp_path, tensors, words):
  torch_file.save(tmp_path / "h.pth", tensors)
  with pytest.raises(ValueError, match=words):
    aesthetic.read(tmp_path / "h.pth", 24)
