"""MTCNN's networks equal the torch ones, and its weights are read as they are.

Goldens are made by `torch_nets`, which says how.
"""

import jax
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import torch_file
from ovi_jax.curation.models import mtcnn
from tests.lib import parity
from tests.lib.curation import packages
from tests.lib.curation import torch_nets

EQUAL = 1e-5
CASES = [(n, s) for n, all_ in torch_nets.MTCNN_SIDES.items() for s in all_]


def tensors(name: str) -> dict[str, np.ndarray]:
  """The shared weights of a network, under the public names."""
  shapes = mapping.flatten(mtcnn.shapes(name))
  leaves = mapping.torch_leaves(mtcnn.rows(name), shapes)
  return {n: torch_nets.tensor(n, v.shape) for n, v in leaves.items()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> str:
  """A folder of files of the shared weights."""
  folder = tmp_path_factory.mktemp("weights")
  for name in mtcnn.NETWORKS:
    torch_file.save(folder / f"{name}.pt", tensors(name))
  return str(folder)


def worst(variables, golden, kind: str, name: str, side: int) -> float:
  ours = jax.jit(mtcnn.NETWORKS[name].apply)(
    variables[name], torch_nets.mtcnn_input(side)
  )
  found = golden("mtcnn")
  wanted = [found[f"{kind}_{name}_{side}_{i}"] for i in range(len(ours))]
  return max(parity.relative_error(o, w) for o, w in zip(ours, wanted))


@pytest.mark.parametrize("name, side", CASES)
def test_equal_to_torch(golden, shared, name, side):
  variables = mtcnn.load(shared)
  assert worst(variables, golden, "shared", name, side) <= EQUAL


@pytest.mark.parametrize("name, side", CASES)
def test_equal_to_torch_with_the_shipped_weights(golden, name, side):
  packages.need_mtcnn()
  assert worst(mtcnn.load(), golden, "shipped", name, side) <= EQUAL


def test_the_networks_have_their_parameter_counts():
  counts = [
    sum(x.size for x in jax.tree.leaves(mtcnn.shapes(name)))
    for name in mtcnn.NETWORKS
  ]
  assert counts == [6_632, 100_178, 389_040]


def test_missing_tensors_are_named(shared, tmp_path, monkeypatch):
  with pytest.raises(ValueError, match=r"at .*pnet\.pt, found no file"):
    mtcnn.load(str(tmp_path))
  for name in mtcnn.NETWORKS:
    torch_file.save(tmp_path / f"{name}.pt", tensors("pnet"))
  with pytest.raises(ValueError, match=r"rnet\.pt is not MTCNN's"):
    mtcnn.load(str(tmp_path))
  monkeypatch.setattr(mtcnn, "_PACKAGE", "no_such_package")
  with pytest.raises(ValueError, match="--no-deps facenet-pytorch"):
    mtcnn.load()
