import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import vocoder as vocoder_names
from ovi_jax.models import vocoder

SIZES = standin.manifest()["config"]["bigvgan"]


@pytest.fixture(scope="module")
def rows():
  return vocoder_names.rows(vocoder.VocoderConfig.from_release(SIZES))


@pytest.fixture(scope="module")
def tensors():
  return standin.tensors(vocoder_names.FILE)


def test_a_round_trip_computes_the_same_function(rows, tensors):
  ours = mapping.gather(rows, tensors.__getitem__)
  back = dict(mapping.to_torch(rows, lambda path, _: ours[path]))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
    if name.endswith("original0"):
      norms = np.abs(tensor)
      np.testing.assert_allclose(back[name], norms, rtol=1e-6, err_msg=name)
    elif not name.endswith("original1"):
      assert back[name].tobytes() == tensor.tobytes(), name
  again = mapping.gather(rows, back.__getitem__)
  assert again.keys() == ours.keys()
  for path, array in ours.items():
    np.testing.assert_allclose(
      again[path], array, rtol=1e-6, atol=1e-9, err_msg=path
    )


def test_every_copy_of_the_filter_equals_ours(rows, tensors):
  filters = [name for name in tensors if name.endswith(".filter")]
  assert len(filters) == 218
  constants = [row for row in rows if row.ours is None]
  assert sorted(row.torch for row in constants) == sorted(filters)
  for name in filters[40:42]:
    wrong = dict(tensors)
    wrong[name] = tensors[name] + np.float32(1e-3)
    with pytest.raises(ValueError, match=name):
      mapping.gather(rows, wrong.__getitem__)


def test_a_transposed_convolution_is_split_into_phases(rows, tensors):
  ours = mapping.gather(rows, tensors.__getitem__)
  kernel_JIQO = ours["upsample_0/kernel"]
  norm, direction = (
    tensors[f"ups.0.0.parametrizations.weight.original{i}"] for i in (0, 1)
  )
  # Norms are over an input channel; tap 6 is tap 1 of phase 2 at rate 4.
  weight = norm[5] * direction[5] / np.linalg.norm(direction[5])
  np.testing.assert_allclose(kernel_JIQO[1, 5, 2], weight[:, 6], rtol=1e-5)
