"""CLIP's image tower equals the original."""

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

from ovi_jax.convert import torch_file
from ovi_jax.curation.models import aesthetic
from ovi_jax.curation.models import clip_vision
from tests.lib import parity
from tests.lib.curation import clip_weights
from tests.lib.curation import seeded
from tests.lib.curation import torch_vision


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Weights of a small CLIP, whole, and of a head over it."""
  folder = tmp_path_factory.mktemp("clip")
  tensors = seeded.tensors(clip_weights.names())
  # The release holds the text tower and a table of numbers too.
  tensors["text_model.embeddings.token_embedding.weight"] = np.zeros((4, 4))
  tensors["logit_scale"] = np.zeros(())
  tensors["vision_model.embeddings.position_ids"] = np.zeros((1, 17), int)
  safetensors.save_file(tensors, folder / "clip.safetensors")
  torch_file.save(
    folder / "head.pth", clip_weights.head_tensors(torch_vision.HEAD)
  )
  return folder


def test_preprocessing_equals_the_original(golden):
  pictures = clip_vision.preprocess(seeded.frames(2, 45, 80), 32)
  expected = golden("looks")["clip_pictures"]
  np.testing.assert_allclose(pictures, expected, atol=1e-5)


def test_the_tower_and_the_head_equal_torch(files, golden):
  expected = golden("looks")
  config, params = clip_vision.read(files / "clip.safetensors")
  assert config == clip_vision.Config(
    image_size=32,
    patch_size=8,
    hidden_dim=128,
    mlp_dim=192,
    num_layers=3,
    num_heads=2,
    projection_dim=24,
  )
  tower = jax.jit(clip_vision.VisionTower(config).apply)
  vectors = tower({"params": params}, expected["clip_pictures"])
  assert parity.relative_error(vectors, expected["clip_vectors"]) < 1e-5
  head, params = aesthetic.read(files / "head.pth", 24)
  scores = head.apply({"params": params}, expected["clip_vectors"])
  assert parity.relative_error(scores, expected["aesthetic"]) < 1e-5


def test_vit_l_14_has_its_parameter_count():
  shapes = clip_vision.shapes(clip_vision.Config())
  assert sum(int(np.prod(s)) for s in shapes.values()) == 303_966_208
  rows = clip_vision.rows(clip_vision.Config())
  assert {row.ours for row in rows} == set(shapes)
  torch = clip_weights.names(1024, 4096, 768, 24, 224, 14)
  assert {n for row in rows for i in row.indices for n in row.names(i)} == set(
    torch
  )


@pytest.mark.parametrize(
  "gone",
  ["visual_projection.weight", "vision_model.encoder.layers.1.mlp.fc2.bias"],
)
def test_other_towers_are_refused(tmp_path, gone):
  tensors = seeded.tensors(clip_weights.names())
  del tensors[gone]
  safetensors.save_file(tensors, tmp_path / "c.safetensors")
  with pytest.raises(ValueError, match=gone):
    clip_vision.read(tmp_path / "c.safetensors")
