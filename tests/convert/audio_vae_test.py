import numpy as np
import pytest

from ovi_jax.convert import audio_vae as audio_vae_names
from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.models import audio_vae

SIZES = standin.manifest()["config"]["audio_vae"]


@pytest.fixture(scope="module")
def rows():
  return audio_vae_names.rows(audio_vae.AudioVAEConfig.from_release(SIZES))


@pytest.fixture(scope="module")
def tensors():
  return standin.tensors(audio_vae_names.FILE)


def test_a_round_trip_computes_the_same_function(rows, tensors):
  ours = mapping.gather(rows, tensors.__getitem__)
  back = dict(mapping.to_torch(rows, lambda path, _: ours[path]))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
    if name.endswith(".weight"):
      np.testing.assert_allclose(back[name], tensor, rtol=2e-3, err_msg=name)
    else:
      assert back[name].tobytes() == tensor.tobytes(), name
  again = mapping.gather(rows, back.__getitem__)
  assert again.keys() == ours.keys()
  for path, array in ours.items():
    np.testing.assert_allclose(again[path], array, rtol=1e-6, err_msg=path)


def test_query_key_and_value_are_distinguished(rows, tensors):
  ours = mapping.gather(rows, tensors.__getitem__)
  kernel = ours["encoder/middle/attention/qkv/kernel"]
  assert kernel.shape == (64, 3, 64)
  weight = tensors["encoder.mid.attn_1.qkv.weight"][7 * 3 + 1, :, 0]
  # Key of channel 7, up to its norm.
  cosine = kernel[:, 1, 7] @ weight / np.linalg.norm(weight)
  np.testing.assert_allclose(cosine, 1, atol=2e-3)


def test_a_file_with_other_statistics_is_refused(rows, tensors):
  other = dict(tensors, data_std=tensors["data_std"] + 0.25)
  with pytest.raises(
    ValueError, match=r"data_std: 80 of 80 .* expected 1\.0291"
  ):
    mapping.gather(rows, other.__getitem__)
