"""Learning rates, weight decay, Muon and EMA."""

import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.training import optimizer


def settings(**changes) -> optimizer.OptimizerConfig:
  return optimizer.OptimizerConfig(**{"learning_rate": 0.1} | changes)


def test_the_learning_rate_warms_up_and_decays():
  rate = optimizer.learning_rate(settings(warmup_steps=4), 20)
  np.testing.assert_allclose(
    [rate(0), rate(2), rate(4), rate(19)],
    0.1 * np.array([0.25, 0.625, 1, 1]),
    rtol=1e-5,
  )
  falling = settings(warmup_steps=4, schedule="cosine", end_lr_factor=0.1)
  rate = optimizer.learning_rate(falling, 20)
  np.testing.assert_allclose(
    [rate(4), rate(12), rate(20)], [0.1, 0.055, 0.01], rtol=1e-5
  )
  assert float(optimizer.learning_rate(settings(), 5)(0)) == pytest.approx(0.1)


def test_weight_decay_applies_to_kernels_only():
  params = {"a/kernel": jnp.ones(2), "a/bias": jnp.ones(2)}
  made = optimizer.make(settings(weight_decay=0.5), 10)
  zero = {n: jnp.zeros(2) for n in params}
  updates, _ = made.update(zero, made.init(params), params)
  np.testing.assert_allclose(updates["a/kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["a/bias"], 0)


def test_muon_updates_kernels_and_adamw_the_rest():
  shapes = {
    "blocks/a/kernel": (2, 4, 6),
    "conv/kernel": (3, 4, 6),
    "norm/kernel": (5,),
    "conv/bias": (6,),
  }
  random = np.random.default_rng(0)
  params = {n: jnp.zeros(s) for n, s in shapes.items()}
  gradient = {
    n: jnp.asarray(random.standard_normal(s, np.float32))
    for n, s in shapes.items()
  }
  chosen = settings(name="muon", learning_rate=0.1, grad_clip_norm=0, eps=1e-12)
  made = optimizer.make(chosen, 10)
  updates, moments = made.update(gradient, made.init(params), params)
  # Blocks by themselves; of a convolution all but the last axis goes in.
  for path, groups in (("blocks/a/kernel", 2), ("conv/kernel", 1)):
    matrices = np.asarray(updates[path]).reshape(groups, -1, 6)
    for found, given in zip(
      matrices, np.asarray(gradient[path]).reshape(groups, -1, 6)
    ):
      u, _, v = np.linalg.svd(given, full_matrices=False)
      expected = -0.1 * 0.2 * np.sqrt(max(given.shape)) * (u @ v)
      # Newton-Schulz brings singular values near 1 only.
      cosine = (found * expected).sum() / np.linalg.norm(found)
      assert cosine / np.linalg.norm(expected) > 0.95
      assert 0.7 < np.linalg.norm(found) / np.linalg.norm(expected) < 1.3
  for path in ("norm/kernel", "conv/bias"):
    # AdamW's first step, alike for every size of gradient, with momentum.
    np.testing.assert_array_equal(
      np.sign(updates[path]), -np.sign(gradient[path])
    )
    np.testing.assert_allclose(np.abs(updates[path]), 0.147, atol=1e-3)
  again, _ = made.update(gradient, moments, params)
  assert all(np.isfinite(x).all() for x in again.values())


def test_large_gradients_are_clipped():
  params = {"a/kernel": jnp.ones(1)}
  made = optimizer.make(
    settings(grad_clip_norm=1.0, eps=1.0, weight_decay=0), 10
  )
  update, _ = made.update(
    {"a/kernel": jnp.full(1, 1e6)}, made.init(params), params
  )
  # m = v = g = 1 after the clip: -0.1 · 1 / (1 + eps).
  np.testing.assert_allclose(update["a/kernel"], -0.05, rtol=1e-5)


def test_the_ema_decay_warms_up():
  average, params = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
  moved = optimizer.update_ema(average, params, jnp.int32(0), settings())
  np.testing.assert_allclose(moved["a"], 0.9, rtol=1e-6)
  late = optimizer.update_ema(
    average, params, jnp.int32(10**6), settings(ema_decay=0.99)
  )
  np.testing.assert_allclose(late["a"], 0.01, rtol=1e-4)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"name": "sgd"}, "'sgd' is unknown; choose from adamw, muon"),
    ({"schedule": "linear"}, "'linear' is unknown; choose from constant"),
    ({"learning_rate": 0.0}, "learning_rate and eps must be positive"),
    ({"beta2": 1.0}, r"beta2 must be in \[0, 1\), got 1.0"),
    ({"grad_clip_norm": -1.0}, "clip_norm must not be negative"),
  ],
)
def test_invalid_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    settings(**wrong)


def test_a_warmup_longer_than_the_run_is_shortened():
  assert optimizer.warmup_of(settings(warmup_steps=9), 10) == 9
  assert optimizer.warmup_of(settings(warmup_steps=10), 10) == 1
  assert optimizer.warmup_of(settings(warmup_steps=1000), 200) == 20
  rate = optimizer.learning_rate(settings(warmup_steps=50), 40)
  peak = settings().learning_rate
  np.testing.assert_allclose(float(rate(4)), peak, rtol=1e-6)
