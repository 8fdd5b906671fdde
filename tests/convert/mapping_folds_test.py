import ml_dtypes
import numpy as np
import pytest

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.models import vocoder

CONV = Rearrange("o i t -> t i o")


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_weight_norm_gives_every_filter_its_norm():
  norm, direction = 3 + random(4, 1, 1), random(4, 5, 3)
  op = mapping.WeightNorm(CONV)
  kernel = op.to_ours(norm, direction)
  assert kernel.dtype == np.float32
  assert op.shape(norm.shape, direction.shape) == kernel.shape == (3, 5, 4)
  norms = np.sqrt(np.square(kernel).sum((0, 1)))
  np.testing.assert_allclose(norms, norm[:, 0, 0], rtol=1e-6)
  back = op.to_torch(kernel)
  assert [b.shape for b in back] == [norm.shape, direction.shape]
  np.testing.assert_allclose(back[0], norm, rtol=1e-6)
  np.testing.assert_allclose(op.to_ours(*back), kernel, rtol=1e-6)


def test_weight_norm_round_trips_a_filter_of_zeros():
  kernel = random(3, 5, 4)
  kernel[:, :, 1] = 0
  op = mapping.WeightNorm(CONV)
  np.testing.assert_allclose(
    op.to_ours(*op.to_torch(kernel)), kernel, rtol=1e-6
  )


def test_weight_norm_refuses_invalid_norms():
  op = mapping.WeightNorm(CONV)
  with pytest.raises(ValueError, match=r"shape \(4, 1, 1\), got \(5, 1, 1\)"):
    op.shape((5, 1, 1), (4, 5, 3))
  with pytest.raises(ValueError, match="4 filters of 4 have no direction"):
    op.to_ours(np.ones((4, 1, 1)), np.zeros((4, 5, 3)))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e7])
def test_magnitude_preserving_scaling_is_inverted_exactly(scale):
  weight = random(6, 5, 3) * np.float32(scale)
  op = mapping.MagnitudePreserving(CONV)
  kernel = op.to_ours(weight)
  assert kernel.dtype == np.float32
  norm = np.sqrt(np.square(weight[2].astype(np.float64)).sum())
  expected = weight[2] / (norm + 1e-4 * 15**0.5)
  np.testing.assert_allclose(kernel[..., 2], expected.T, rtol=1e-6)
  (back,) = op.to_torch(kernel)
  assert back.shape == weight.shape and back.dtype == np.float32
  np.testing.assert_allclose(op.to_ours(back), kernel, rtol=1e-6)
  if scale <= 1:
    # Larger weights all give norms of one to float32's last bits.
    np.testing.assert_allclose(back, weight, rtol=2e-3)


def test_magnitude_preserving_refuses_norms_above_one():
  kernel = np.zeros((1, 2, 2), np.float32)
  kernel[0, :, 0] = 0.6, 0.8
  op = mapping.MagnitudePreserving(CONV)
  np.testing.assert_allclose(
    op.to_ours(*op.to_torch(kernel)), kernel, atol=1e-6
  )
  with pytest.raises(ValueError, match=r"norms below 1, got 1\.001"):
    op.to_torch(kernel * np.float32(1.001))


def test_folds_keep_the_dtype_of_the_file():
  weight = random(6, 5, 3).astype(ml_dtypes.bfloat16)
  op = mapping.MagnitudePreserving(CONV)
  kernel = op.to_ours(weight)
  assert kernel.dtype == op.to_torch(kernel)[0].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
  "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_constants_are_compared_at_the_precision_of_the_file(dtype):
  value = vocoder.LOW_PASS
  op = mapping.Constant("filter", value)
  rounded = value.astype(dtype)
  assert op.to_ours(rounded).tobytes() == value.tobytes()
  wrong = rounded.copy()
  wrong[5] = wrong[5] * dtype(1.5)
  with pytest.raises(ValueError, match="filter: 1 of 12 figures differ"):
    op.to_ours(wrong)


def test_constants_are_compared_with_the_file():
  value = np.array([[0.5, -2.0]], np.float32)
  op = mapping.Constant("data_mean", value)
  op.to_ours(value * np.float32(1 + 2e-7))
  (back,) = op.to_torch(np.zeros(()))
  assert back.tobytes() == value.tobytes()
  with pytest.raises(ValueError) as error:
    op.to_ours(np.array([[0.5, -2.25]], np.float32))
  for part in ("data_mean: 1 of 2", r"(0, 1)", "expected -2,", "got -2.25"):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="data_mean: 1 of 2"):
    op.to_ours(np.array([[0.5, np.nan]], np.float32))
  with pytest.raises(ValueError, match=r"data_mean: expected shape \(1, 2\)"):
    op.shape((2,))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_may_have_an_axis(shape):
  """PyTorch's strict loading takes both."""
  op = mapping.Scalar()
  assert op.shape(shape) == ()
  number = op.to_ours(np.full(shape, 0.5, np.float32))
  assert number.shape == () and number == 0.5
  assert op.to_torch(number)[0].shape == ()


@pytest.mark.parametrize("shape", [(0,), (2,), (1, 1)])
def test_other_shapes_are_not_one_number(shape):
  with pytest.raises(ValueError, match="expected one number, got shape"):
    mapping.Scalar().shape(shape)
