import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert import standin
from ovi_jax.convert import video_vae as video_vae_names
from ovi_jax.models.video_vae import config as video_vae

SIZES = standin.manifest()["config"]["video_vae"]


@pytest.fixture(scope="module")
def config():
  return video_vae.VideoVAEConfig.from_release(SIZES)


@pytest.fixture(scope="module")
def tensors():
  return standin.tensors(video_vae_names.FILE)


def test_a_round_trip_is_identical(config, tensors):
  rows = video_vae_names.rows(config)
  ours = mapping.gather(rows, tensors.__getitem__)
  back = dict(mapping.to_torch(rows, lambda path, _: ours[path]))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert back[name].dtype == tensor.dtype and back[name].shape == tensor.shape
    assert back[name].tobytes() == tensor.tobytes(), name


def test_kernels_are_time_row_column_in_out(config, tensors):
  ours = mapping.gather(video_vae_names.rows(config), tensors.__getitem__)
  kernel_THWIO = ours["decoder/stem/kernel"]
  assert kernel_THWIO.shape == (3, 3, 3, 48, 32)
  weight = tensors["decoder.conv1.weight"]
  assert kernel_THWIO[0, 1, 2, 40, 30] == weight[30, 40, 0, 1, 2]
  qkv_IO = ours["encoder/middle/attention/qkv/kernel"]
  name = "encoder.middle.1.to_qkv.weight"
  np.testing.assert_array_equal(qkv_IO[:, 70], tensors[name][70, :, 0, 0])


def test_each_half_has_a_table_of_its_own(config):
  for half, rows in (
    ("encoder", video_vae_names.encoder_rows(config)),
    ("decoder", video_vae_names.decoder_rows(config)),
  ):
    assert {row.ours.split("/")[0] for row in rows} == {half}
  names = {row.torch for row in video_vae_names.decoder_rows(config)}
  assert "conv2.weight" in names and "conv1.weight" not in names
