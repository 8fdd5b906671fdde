"""VGGish, against a literal network and front end in torch's layouts."""

import math

import jax
import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.evaluation.extractors import vggish

NARROW = vggish.VggishConfig(
  channels=(4, 4, 8, 8, 8, 8), hidden_dim=16, embedding_dim=6
)


def tensors(random: np.random.Generator) -> dict[str, np.ndarray]:
  """Random tensors of a narrow network under torch's names."""
  shapes, inner = {}, 1
  for place, outer in zip((0, 3, 6, 8, 11, 13), NARROW.channels, strict=True):
    shapes[f"features.{place}.weight"] = (outer, inner, 3, 3)
    shapes[f"features.{place}.bias"] = (outer,)
    inner = outer
  sizes = (8 * 24, 16, 16, 6)
  for number in range(3):
    shapes[f"embeddings.{2 * number}.weight"] = sizes[number + 1], sizes[number]
    shapes[f"embeddings.{2 * number}.bias"] = (sizes[number + 1],)
  made = {}
  for name, shape in sorted(shapes.items()):
    width = 1 if len(shape) == 1 else math.sqrt(math.prod(shape[1:])) / 2
    made[name] = random.normal(0, 0.3 / width, shape).astype(np.float32)
  return made


def literal(theirs: dict[str, np.ndarray], patch_BTM: np.ndarray) -> np.ndarray:
  """The network with channels first, as torchvggish has it; float64."""
  x = patch_BTM[:, None].astype(np.float64)
  for place in (0, 3, 6, 8, 11, 13):
    kernel = theirs[f"features.{place}.weight"]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = x.shape[2:]
    total = theirs[f"features.{place}.bias"][None, :, None, None]
    for i in range(3):
      for j in range(3):
        part = padded[:, :, i : i + rows, j : j + columns]
        total = total + np.einsum("bchw,oc->bohw", part, kernel[:, :, i, j])
    x = np.maximum(total, 0)
    if place in (0, 3, 8, 13):
      batch, channels, rows, columns = x.shape
      x = x.reshape(batch, channels, rows // 2, 2, columns // 2, 2)
      x = x.max(axis=(3, 5))
  x = x.swapaxes(1, 3).swapaxes(1, 2).reshape(len(x), -1)
  for number in range(3):
    weight = theirs[f"embeddings.{2 * number}.weight"]
    x = x @ weight.T + theirs[f"embeddings.{2 * number}.bias"]
    x = np.maximum(x, 0) if number < 2 else x
  return x


def test_the_network_equals_a_literal_one_on_the_same_weights(tmp_path):
  random = np.random.default_rng(11)
  theirs = tensors(random)
  torch_file.save(tmp_path / "narrow.pth", theirs)
  patch_BTM = random.normal(-2, 1.5, (2, 96, 64)).astype(np.float32)
  variables = vggish.read_weights(tmp_path / "narrow.pth", NARROW)
  found = jax.jit(vggish.Vggish(NARROW).apply)(variables, patch_BTM)
  expected = literal(theirs, patch_BTM)
  assert expected.std() > 0.01
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_patches_equal_a_literal_front_end():
  random = np.random.default_rng(0)
  wave_A = random.normal(0, 0.1, 33_000).astype(np.float32)
  found = vggish.patches(wave_A)
  # (33000 - 400) // 160 + 1 = 204 frames: two patches.
  assert found.shape == (2, 96, 64)
  frame, band = 130, 20
  part = wave_A[frame * 160 : frame * 160 + 400].astype(np.float64)
  part = part * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
  sum_ = 0.0
  edges = np.linspace(*(1127 * math.log(1 + f / 700) for f in (125, 7500)), 66)
  for k in range(1, 257):
    mel = 1127 * math.log(1 + k * 16_000 / 512 / 700)
    low, centre, high = edges[band : band + 3]
    weight = min((mel - low) / (centre - low), (high - mel) / (high - centre))
    turns = np.exp(-2j * np.pi * k * np.arange(400) / 512)
    sum_ += max(0.0, weight) * abs((part * turns).sum())
  assert found[1, frame - 96, band] == pytest.approx(
    math.log(sum_ + 0.01), abs=1e-5
  )
  assert len(vggish.patches(wave_A[:300])) == 0
  assert len(vggish.patches(np.zeros(200_000, np.float32))) == 8


def test_the_sizes_of_the_public_weights():
  patch = jax.ShapeDtypeStruct((1, 96, 64), "float32")
  network = vggish.Vggish(vggish.VggishConfig())
  shapes = jax.eval_shape(network.init, jax.random.key(0), patch)
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  assert count == 72_141_184


def test_files_of_other_networks_are_refused(tmp_path):
  torch_file.save(tmp_path / "x.pth", {"a": np.zeros(3, np.float32)})
  with pytest.raises(ValueError, match="x.pth is no VGGish"):
    vggish.read_weights(tmp_path / "x.pth")
  assert "--weights=vggish=FILE" in vggish.vggish("").missing
  with pytest.raises(ValueError, match="no such file"):
    vggish.vggish(str(tmp_path / "absent.pth"))
