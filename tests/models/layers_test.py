"""Layers shared by both towers."""

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.models import layers


def test_gelu_is_its_tanh_form_with_finite_gradients():
  x = jnp.linspace(-60, 60, 4001)
  expected = jax.nn.gelu(x, approximate=True)
  np.testing.assert_allclose(layers.gelu(x), expected, atol=2e-6, rtol=2e-6)
  slope = jax.vmap(jax.grad(layers.gelu))(x)
  expected = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=True)))(x)
  np.testing.assert_allclose(slope, expected, atol=2e-5)
  assert layers.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_modulation_is_one_for_all_tokens_or_differs_for_given_ones():
  x = jnp.arange(24.0).reshape(1, 6, 4)
  shift = jnp.array([1.0, 2.0]).reshape(1, 2, 1) * jnp.ones((1, 2, 4))
  given = jnp.array([[True, False, True, False, False, True]])
  y = layers.modulate(x, shift, jnp.zeros_like(shift), given, 1e-6)
  np.testing.assert_allclose(y.mean(-1)[0], [1, 2, 1, 2, 2, 1], atol=1e-6)
  y = layers.modulate(x, shift[:, :1], jnp.zeros_like(shift)[:, :1], None, 1e-6)
  np.testing.assert_allclose(y.mean(-1)[0], np.ones(6), atol=1e-6)
