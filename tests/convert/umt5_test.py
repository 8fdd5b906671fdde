import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import umt5 as umt5_names
from ovi_jax.models import umt5


@pytest.fixture(scope="module")
def rows():
  sizes = standin.manifest()["config"]["t5"]
  return umt5_names.rows(umt5.UMT5Config.from_release(sizes))


def test_a_round_trip_gives_the_same_file(rows):
  tensors = standin.tensors(umt5_names.FILE)
  ours = mapping.gather(rows, tensors.__getitem__)
  back = dict(
    mapping.to_torch(rows, lambda p, i: ours[p] if i is None else ours[p][i])
  )
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_kernels_are_transposed_and_blocks_stacked(rows):
  tensors = standin.tensors(umt5_names.FILE)
  ours = mapping.gather(rows, tensors.__getitem__)
  np.testing.assert_array_equal(
    ours["blocks/feed_forward/gate/kernel"][1],
    tensors["blocks.1.ffn.gate.0.weight"].T,
  )
