"""CLIP embeddings and aesthetic scores of all frames."""

import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import torch_file
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import clip_vision
from ovi_jax.evaluation.extractors import frames
from tests.lib import media_files
from tests.lib.curation import clip_weights
from tests.lib.curation import seeded
from tests.lib.curation import torch_vision


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Files of a small tower and a head."""
  folder = tmp_path_factory.mktemp("clip")
  names = clip_weights.names()
  safetensors.save_file(seeded.tensors(names), folder / "clip.safetensors")
  head = clip_weights.head_tensors(torch_vision.HEAD)
  torch_file.save(folder / "head.pth", head)
  return str(folder / "clip.safetensors"), str(folder / "head.pth")


def test_scores_are_those_of_the_original_over_ten(weights, golden):
  picture_HWC = seeded.frames(2, 45, 80)[0]
  found = frames.rows(
    np.stack([picture_HWC] * 17), clip_vision._scorer(*weights)
  )
  wanted = float(golden("looks")["aesthetic"][0])
  assert found.shape == (17,)
  np.testing.assert_allclose(found, wanted / 10, atol=2e-5)


def test_every_frame_has_an_embedding_of_unit_length(weights, tmp_path):
  moving = media_files.moving(18)
  media_files.write(tmp_path / "a.mp4", moving, media_files.even(18))
  sources = [clips.Source(clip=c) for c in clips.read_folder(tmp_path)]
  extractor = clip_vision.clip_vision(weights[0])
  (found,) = features.extract([extractor], sources, tmp_path / "cache")
  frame_TC = found["clip_vision.frames"]
  assert frame_TC.shape == (18, 24)
  np.testing.assert_allclose(np.linalg.norm(frame_TC, axis=1), 1, atol=1e-5)


def test_missing_files_are_named(weights):
  assert "--weights=aesthetic=FILE+FILE" in clip_vision.aesthetic("").missing
  for given in (weights[0], f"{weights[0]}+absent.pth"):
    with pytest.raises(ValueError, match="--weights=aesthetic: no such file"):
      clip_vision.aesthetic(given)
