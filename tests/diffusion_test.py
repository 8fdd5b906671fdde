"""The diffusion path, timesteps and loss: exact values and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax import diffusion
from ovi_jax.modality import AV


def test_the_path_runs_from_data_to_noise():
  data, noise = jnp.full((1, 3, 2), 2.0), jnp.full((1, 3, 2), 10.0)
  x = diffusion.interpolate(data, noise, jnp.array([[0.0, 0.25, 1.0]]))
  np.testing.assert_allclose(x[0, :, 0], [2, 4, 10])
  np.testing.assert_allclose(diffusion.velocity(data, noise), 8)
  # The velocity is the path's derivative by sigma.
  a, b = (
    diffusion.interpolate(data, noise, jnp.full((1, 1), s)) for s in (0.3, 0.4)
  )
  np.testing.assert_allclose(
    (b - a) / 0.1, diffusion.velocity(data, noise), 1e-5
  )


def test_bfloat16_data_is_noised_in_float32():
  data = jnp.ones((1, 1, 1), jnp.bfloat16)
  x = diffusion.interpolate(data, jnp.zeros((1, 1, 1)), jnp.full((1, 1), 0.001))
  assert x.dtype == jnp.float32 and abs(float(x[0, 0, 0]) - 0.999) < 1e-6


def draw(settings: diffusion.TimestepSampler, names=("video", "audio")) -> AV:
  keys = jax.random.split(jax.random.key(0), 20_000)
  return jax.vmap(lambda key: settings.sample(key, names))(keys)


def test_towers_share_a_timestep_or_have_their_own():
  together = draw(diffusion.TimestepSampler())
  np.testing.assert_array_equal(together.video, together.audio)
  apart = draw(diffusion.TimestepSampler(shared_prob=0.0))
  assert abs(np.corrcoef(apart.video, apart.audio)[0, 1]) < 0.03
  assert not (apart.video == apart.audio).any()
  either = draw(diffusion.TimestepSampler(shared_prob=0.25))
  same = np.asarray(either.video == either.audio)
  assert abs(same.mean() - 0.25) < 0.01
  # The levels of both kinds of examples are spread alike.
  for level in (either.video, either.audio):
    quartiles = [
      np.quantile(level[which], [0.25, 0.75]) for which in (same, ~same)
    ]
    np.testing.assert_allclose(quartiles, [[0.25, 0.75]] * 2, atol=0.03)
  assert draw(diffusion.TimestepSampler(), ["audio"]).video is None


def test_timesteps_follow_their_distributions():
  uniform = draw(diffusion.TimestepSampler()).video
  quantiles = np.quantile(uniform, [0, 0.25, 0.5, 0.75, 1])
  np.testing.assert_allclose(quantiles, [0, 0.25, 0.5, 0.75, 1], atol=0.02)
  shifted = draw(diffusion.TimestepSampler(shift=5.0)).video
  np.testing.assert_allclose(
    shifted, diffusion.shift_sigma(uniform, 5.0), rtol=1e-6
  )
  assert abs(np.median(shifted) - 5 / 6) < 0.02
  bell = draw(
    diffusion.TimestepSampler(distribution="logit_normal", mean=1.0)
  ).video
  assert abs(np.median(bell) - 1 / (1 + np.exp(-1))) < 0.01
  assert abs(np.quantile(bell, 0.84134) - 1 / (1 + np.exp(-2))) < 0.01


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"distribution": "normal"}, "'normal' is unknown; choose from uniform"),
    (
      {"shared_prob": 1.5},
      r"timesteps.shared_prob must be in \[0, 1\], got 1.5",
    ),
    ({"shift": 0.0}, "timesteps.shift must be positive, got 0"),
    ({"std": -1.0}, "timesteps.std must be positive"),
  ],
)
def test_invalid_timestep_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    diffusion.TimestepSampler(**wrong)


def test_the_loss_is_a_masked_mean():
  target = jnp.zeros((3, 4, 2, 5))
  wrong = jnp.array([1.0, 2.0, 3.0, 100.0]).reshape(1, 4, 1, 1) + target
  counts_BT = diffusion.length_mask(jnp.array([3, 1, 0]), 4)
  error = diffusion.masked_mse(wrong, target, counts_BT)
  np.testing.assert_allclose(error, [14 / 3, 1, 0], rtol=1e-6)
  alone = diffusion.masked_mse(wrong[:1], target[:1], counts_BT[:1])
  assert alone[0] == error[0]


def test_masked_values_have_no_gradient():
  counts_BT = diffusion.length_mask(jnp.array([1]), 2)
  gradient = jax.grad(
    lambda x: diffusion.masked_mse(x, jnp.zeros((1, 2, 1)), counts_BT).sum()
  )(jnp.array([[[1.0], [jnp.inf]]]))
  np.testing.assert_array_equal(gradient.ravel(), [2, 0])


def test_weights_are_shared_by_the_records_that_have_a_modality():
  lengths = AV(jnp.array([2, 0, 2, 0]), jnp.array([3, 1, 0, 2]))
  shares = diffusion.example_weights(lengths, AV(0.85, 0.15))
  np.testing.assert_allclose(shares.video, [0.425, 0, 0.425, 0])
  np.testing.assert_allclose(shares.audio, [0.05, 0.05, 0, 0.05], rtol=1e-6)
  none = diffusion.example_weights(AV(None, jnp.array([0, 0])), AV(0.85, 0.15))
  assert none.video is None and not none.audio.any()
