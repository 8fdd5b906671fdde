"""DINO's vision transformer, against the original on the same weights."""

import math

import jax
import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.evaluation.extractors import dino
from tests.lib import media_files
from tests.lib import parity
from tests.lib import torch_dino
from tests.lib.curation import seeded


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """The file of a small backbone."""
  path = tmp_path_factory.mktemp("dino") / "small.pth"
  torch_file.save(path, seeded.tensors(torch_dino.shapes()))
  return path


@pytest.mark.parametrize(
  "name, size", [("wide", (45, 80)), ("square", (40,) * 2)]
)
def test_inputs_and_class_tokens_equal_the_original(
  weights, golden, name, size
):
  expected = golden("dino")
  frames_THWC = seeded.frames(2, *size)
  pictures = dino.preprocess(frames_THWC, torch_dino.SIDE)
  np.testing.assert_allclose(pictures, expected[f"{name}_pictures"], atol=2e-5)
  config, params = dino.read_weights(weights)
  assert config == dino.DinoConfig(
    patch_size=8,
    trained_patches=4,
    hidden_dim=128,
    mlp_dim=256,
    num_layers=2,
    num_heads=2,
  )
  found = jax.jit(dino.Dino(config).apply)({"params": params}, pictures)
  assert parity.relative_error(found, expected[name]) < 1e-5


def test_wide_frames_keep_their_borders():
  # VBench resizes the shorter side to 224 and does not crop.
  pictures = dino.preprocess(np.zeros((1, 36, 65, 3), np.uint8))
  assert pictures.shape == (1, 224, 404, 3)
  np.testing.assert_allclose(
    pictures[0, 0, 0], [-2.117904, -2.035714, -1.804444], atol=1e-5
  )


def test_positions_of_other_sizes_have_pytorchs_bicubic_weights():
  # Four patches to eight; DINO divides by 8.1. Keys' kernel with a = -0.75.
  weights = dino._bicubic(4, 8)
  t = 4 / 8.1 * 3.5 - 0.5 - 1  # past the second patch
  expected = [
    -0.75 * t * (1 - t) ** 2,
    1.25 * t**3 - 2.25 * t**2 + 1,
    1.25 * (1 - t) ** 3 - 2.25 * (1 - t) ** 2 + 1,
    -0.75 * (1 - t) * t**2,
  ]
  np.testing.assert_allclose(weights[3], expected, atol=1e-6)
  np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


def test_every_frame_has_a_row(weights, tmp_path, monkeypatch):
  monkeypatch.setattr(dino, "preprocess", lambda x: x[:, :32, :32] / 255)
  moving = media_files.moving(18)
  media_files.write(tmp_path / "a.mp4", moving, media_files.even(18))
  sources = [clips.Source(clip=c) for c in clips.read_folder(tmp_path)]
  extractor = dino.dino(str(weights))
  (found,) = features.extract([extractor], sources, tmp_path / "cache")
  assert found["dino.frames"].shape == (18, 128)


def test_vit_b_16_has_the_names_and_sizes_of_the_public_file():
  config = dino.DinoConfig()
  shapes = dino.shapes(config)
  assert sum(math.prod(s) for s in shapes.values()) == 85_798_656
  table = dino.rows(config)
  assert {row.ours for row in table} == set(shapes)
  names = {name for row in table for name in row.all_names}
  assert len(names) == 150
  assert {n for n in names if ".1." not in n and ".0." not in n} >= {
    *("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias"),
    *("blocks.11.attn.qkv.weight", "blocks.11.mlp.fc2.bias"),
  }


def test_files_of_other_networks_are_refused(tmp_path):
  torch_file.save(tmp_path / "x.pth", {"a": np.zeros(3, np.float32)})
  with pytest.raises(ValueError, match="x.pth is no DINO"):
    dino.read_weights(tmp_path / "x.pth")
  tensors = seeded.tensors(torch_dino.shapes())
  del tensors["blocks.1.attn.proj.bias"]
  torch_file.save(tmp_path / "y.pth", tensors)
  with pytest.raises(ValueError, match="y.pth is no DINO.*attn.proj.bias"):
    dino.read_weights(tmp_path / "y.pth")
  assert "--weights=dino=FILE" in dino.dino("").missing
  with pytest.raises(ValueError, match="--weights=dino: no such file"):
    dino.dino(str(tmp_path / "absent.pth"))
