"""8-bit kernels: error, and what a block makes of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.models import block_params
from ovi_jax.models import quantized
from tests.lib import random_loras
from tests.lib import standin_models

# Half a step of int8; fp8 has 3 bits of mantissa.
ERROR = {"int8": 0.5 / 127, "fp8": 2**-4}


@pytest.mark.parametrize("name", list(quantized.DTYPES))
def test_a_quantized_kernel_is_within_half_a_step(name):
  random = np.random.default_rng(0)
  kernel = random.standard_normal((2, 40, 6), np.float32)
  kernel *= 10.0 ** np.arange(-3, 3, dtype=np.float32)
  kernel[1, :, 2] = 0
  values, scale = quantized.quantize(kernel, quantized.DTYPES[name])
  assert values.dtype == quantized.DTYPES[name] and values.dtype.itemsize == 1
  assert scale.dtype == np.float32 and scale.shape == (2, 6)
  found = np.asarray(quantized.dequantize(jnp.asarray(values), scale))
  assert not found[1, :, 2].any()
  largest = np.abs(kernel).max(1, keepdims=True)
  error = np.abs(found - kernel)
  assert (error <= 1.01 * ERROR[name] * largest).all()
  # The largest number of each output is kept.
  at = np.abs(kernel[0]).argmax(0)
  kept = found[0][at, np.arange(6)]
  np.testing.assert_allclose(kept, kernel[0][at, np.arange(6)], rtol=1e-6)


def test_scale_and_lora_of_a_kernel_are_both_applied():
  kernel = np.asarray([[1, -2], [3, 4], [5, 6]], np.int8)
  block = {
    "kernel": kernel,
    "kernel_scale": np.asarray([0.5, 2.0], np.float32),
    "lora_down": np.asarray([[1.0], [0.0], [2.0]], np.float32),
    "lora_up": np.asarray([[3.0, 4.0]], np.float32),
    "lora_scale": np.asarray([0.5], np.float32),
    "bias": np.ones(2),
  }
  params = {"query": block, "norm": {"scale": np.ones(2)}}
  found = block_params.merge(params, jnp.float32)
  assert found["query"].keys() == {"kernel", "bias"}
  assert found["norm"] is params["norm"]
  expected = np.asarray([[0.5, -4], [1.5, 8], [2.5, 12]])
  expected += 0.5 * np.asarray([[3, 4], [0, 0], [6, 8]])
  np.testing.assert_array_equal(found["query"]["kernel"], expected)


def test_plain_parameters_stay_as_they_are():
  params = {"query": {"kernel": np.ones((2, 2))}}
  assert block_params.is_plain(params)
  assert block_params.merge(params, jnp.bfloat16) is params


def test_kernels_of_blocks_are_quantized_and_nothing_else():
  shapes = {
    path: np.empty(shape, np.float16)
    for path, shape in (
      (path, np.shape(x)) for path, x in random_loras.base().items()
    )
  }
  found = quantized.with_scales(shapes, quantized.DTYPES["int8"])
  eight = {p for p, x in found.items() if x.dtype == np.int8}
  assert len(eight) == 2 * (4 + 6 + 2)  # self, cross with fusion, feed-forward
  assert all(path.startswith("blocks/") for path in eight)
  scale = found["blocks/audio/feed_forward/in/kernel_scale"]
  assert scale.shape == (2, 24) and scale.dtype == np.float32
  back = quantized.without_scales(found)
  assert back == {path: x.shape for path, x in shapes.items()}
  assert quantized.dtype_of(found) == np.int8
  assert quantized.dtype_of(shapes) is None
  # Without its scale, a kernel is as good as missing.
  del found["blocks/audio/feed_forward/in/kernel_scale"]
  missing = shapes.keys() - quantized.without_scales(found).keys()
  assert missing == {"blocks/audio/feed_forward/in/kernel"}


def test_the_released_denoiser_takes_about_half_of_bfloat16():
  flat = mapping.flatten(standin_models.full_fusion_shapes())
  eight = quantized.with_scales(flat, quantized.DTYPES["int8"])

  def size(shapes):
    return sum(
      x.size * (1 if x.dtype == np.int8 else 2) for x in shapes.values()
    )

  assert 0.5 < size(eight) / size(flat) < 0.54
  assert size(flat) == 2 * 11_660_753_108
