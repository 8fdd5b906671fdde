"""SyncNet equals the torch network; its weights convert in both directions.

Goldens are made by `torch_nets`, which says how.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import torch_file
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.pretrained import weights
from tests.lib import parity
from tests.lib.curation import torch_nets

NARROW = dataclasses.replace(
  syncnet.SyncNetConfig.narrow(torch_nets.NARROW["divisor"]),
  embedding_dim=torch_nets.NARROW["embedding"],
)
FULL = syncnet.SyncNetConfig()
EQUAL = 1e-5


def tensors(config: syncnet.SyncNetConfig) -> dict[str, np.ndarray]:
  """The shared weights, under the public names."""
  shapes = mapping.flatten(syncnet.shapes(config))
  leaves = mapping.torch_leaves(syncnet_weights.rows(), shapes)
  return {n: torch_nets.tensor(n, v.shape) for n, v in leaves.items()}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
  """The torch file of a narrow network."""
  path = tmp_path_factory.mktemp("weights") / "narrow.model"
  torch_file.save(path, tensors(NARROW))
  return path


def errors(config, variables, golden, prefix) -> list[float]:
  frames_BTHWC, windows_BTKM = torch_nets.syncnet_inputs()
  network = jax.jit(syncnet.SyncNet(config).apply)
  ours = network(variables, frames_BTHWC, windows_BTKM)
  wanted = [golden("syncnet")[f"{prefix}{name}"] for name in ("lips", "sound")]
  for reference in wanted:
    # Each window has an embedding of its own.
    assert parity.relative_error(reference[:, 0], reference[:, 1]) > 0.05
  return [parity.relative_error(o, w) for o, w in zip(ours, wanted)]


def test_equal_to_torch(golden, narrow):
  config, variables = syncnet_weights.load(narrow)
  assert config == NARROW
  assert max(errors(config, variables, golden, "narrow_")) <= EQUAL


@pytest.mark.slow
def test_equal_to_torch_at_full_size(golden, tmp_path):
  path = tmp_path / "syncnet_v2.model"
  torch_file.save(path, tensors(FULL))
  config, variables = syncnet_weights.load(path)
  assert config == FULL
  assert max(errors(config, variables, golden, "")) <= EQUAL


def test_the_public_network_has_its_parameter_count():
  shapes = syncnet.shapes(FULL)
  count = sum(x.size for x in jax.tree.leaves(shapes["params"]))
  assert count == 13_631_616
  leaves = mapping.flatten(shapes)
  public = mapping.torch_leaves(syncnet_weights.rows(), leaves)
  mapping.check(
    syncnet_weights.rows(),
    {n: v.shape for n, v in public.items()},
    {p: x.shape for p, x in leaves.items()},
  )
  assert public["netcnnlip.0.weight"].shape == (96, 3, 5, 7, 7)
  assert public["netcnnlip.18.weight"].shape == (512, 256, 1, 6, 6)
  assert public["netcnnaud.18.weight"].shape == (512, 256, 5, 4)
  assert public["netfcaud.3.weight"].shape == (1024, 512)


def test_weights_round_trip(narrow, tmp_path):
  config, variables = syncnet_weights.load(narrow)
  ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
  syncnet_weights.save(ours, config, variables)
  again, loaded = syncnet_weights.load(ours)
  assert again == config
  syncnet_weights.export(theirs, loaded)
  back, wanted = torch_file.open_torch(theirs), tensors(NARROW)
  assert back.spans.keys() == wanted.keys()
  for name, array in wanted.items():
    assert back.read(name).tobytes() == array.tobytes(), name


def test_batch_counters_of_newer_versions_are_ignored(tmp_path):
  path = tmp_path / "newer.model"
  counter = {"netcnnlip.1.num_batches_tracked": np.zeros((), np.int64)}
  torch_file.save(path, tensors(NARROW) | counter)
  assert syncnet_weights.load(path)[0] == NARROW


@pytest.mark.parametrize(
  "change, message",
  [
    ({"netfclip.0.bias": None}, "missing from the file: netfclip.0.bias"),
    ({"extra.weight": np.zeros(3, np.float32)}, "unknown to the table: extra"),
    (
      {"netcnnaud.4.weight": np.zeros((12, 4, 3, 5), np.float32)},
      "misshapen: netcnnaud.4.weight",
    ),
  ],
)
def test_another_network_is_refused(tmp_path, change, message):
  path = tmp_path / "other.model"
  changed = {k: v for k, v in (tensors(NARROW) | change).items()}
  kept = {k: v for k, v in changed.items() if v is not None}
  torch_file.save(path, kept)
  with pytest.raises(ValueError, match=message):
    syncnet_weights.load(path)


def test_a_missing_file_is_reported_with_its_source(tmp_path):
  with pytest.raises(ValueError, match="no such file; give the public"):
    syncnet_weights.load(tmp_path / "syncnet_v2.model")


def test_weights_of_another_component_are_refused(tmp_path, narrow):
  path = tmp_path / "other.safetensors"
  leaf = {"a": np.zeros(3, np.float32)}
  with weights.Writer(path, leaf) as writer:
    writer.write("a", None, leaf["a"])
  with pytest.raises(ValueError, match="is no SyncNet"):
    syncnet_weights.load(path)
  header = {"syncnet": json.dumps(dataclasses.asdict(FULL))}
  with weights.Writer(path, leaf, header) as writer:
    writer.write("a", None, leaf["a"])
  with pytest.raises(ValueError, match="not those of its header"):
    syncnet_weights.load(path)
  config, variables = syncnet_weights.load(narrow)
  with pytest.raises(ValueError, match=r"ends in \.safetensors"):
    syncnet_weights.save(tmp_path / "a.pth", config, variables)


def test_sizes_are_checked():
  with pytest.raises(ValueError, match="six channels"):
    syncnet.SyncNetConfig(lip_channels=(1, 2))
  with pytest.raises(ValueError, match="positive"):
    syncnet.SyncNetConfig.narrow(100)
