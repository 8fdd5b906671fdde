"""Learning rates, what decays, the average."""

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.training import optimizer


def settings(**changes) -> optimizer.OptimizerSettings:
  return optimizer.OptimizerSettings(**{"learning_rate": 0.1} | changes)


def test_learning_rate_rises_and_falls():
  rate = optimizer.learning_rate(settings(warmup_steps=4), 20)
  np.testing.assert_allclose(
    [rate(0), rate(2), rate(4), rate(19)],
    0.1 * np.array([0.25, 0.625, 1, 1]),
    rtol=1e-5,
  )
  falling = settings(warmup_steps=4, schedule="cosine", final_share=0.1)
  rate = optimizer.learning_rate(falling, 20)
  np.testing.assert_allclose(
    [rate(4), rate(12), rate(20)], [0.1, 0.055, 0.01], rtol=1e-5
  )
  assert float(optimizer.learning_rate(settings(), 5)(0)) == pytest.approx(0.1)


def test_kernels_alone_decay():
  params = {"a/kernel": jnp.ones(2), "a/bias": jnp.ones(2)}
  made = optimizer.make(settings(weight_decay=0.5), 10)
  zero = {n: jnp.zeros(2) for n in params}
  updates, _ = made.update(zero, made.init(params), params)
  np.testing.assert_allclose(updates["a/kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["a/bias"], 0)


def test_large_gradients_are_clipped():
  params = {"a/kernel": jnp.ones(1)}
  made = optimizer.make(settings(clip_norm=1.0, eps=1.0, weight_decay=0), 10)
  update, _ = made.update(
    {"a/kernel": jnp.full(1, 1e6)}, made.init(params), params
  )
  # m = v = g = 1 after the clip: -0.1 · 1 / (1 + eps).
  np.testing.assert_allclose(update["a/kernel"], -0.05, rtol=1e-5)


def test_the_average_warms_up():
  average, params = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
  moved = optimizer.averaged(average, params, jnp.int32(0), settings())
  np.testing.assert_allclose(moved["a"], 0.9, rtol=1e-6)
  late = optimizer.averaged(
    average, params, jnp.int32(10**6), settings(average_decay=0.99)
  )
  np.testing.assert_allclose(late["a"], 0.01, rtol=1e-4)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"schedule": "linear"}, "'linear' is unknown; choose from constant"),
    ({"learning_rate": 0.0}, "learning_rate and eps must be positive"),
    ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"clip_norm": -1.0}, "clip_norm must not be negative"),
  ],
)
def test_impossible_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    settings(**wrong)


def test_a_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(ValueError, match="10 must be fewer than the 10 steps"):
    optimizer.make(settings(warmup_steps=10), 10)
