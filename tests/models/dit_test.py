"""The sinusoidal time embedding against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.models import dit

ROUNDING = 2.0**-23  # of float32 at 1, the largest value


def exact(t: np.ndarray, width: int) -> np.ndarray:
  """The embedding in float64."""
  half = width // 2
  angles = np.outer(t.astype(np.float64), 10_000.0 ** -(np.arange(half) / half))
  return np.concatenate([np.cos(angles), np.sin(angles)], -1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("width", [32, 256])
def test_the_time_embedding_is_the_float64_one_rounded(compiled, width):
  random = np.random.default_rng(0).uniform(0, 1000, 4000)
  every = [np.arange(1001.0), np.arange(0, 1000, 0.25), random, random / 1e3]
  t = np.concatenate(every).astype(np.float32)
  call = jax.jit(dit.sinusoid, static_argnums=1) if compiled else dit.sinusoid
  found = np.asarray(call(jnp.asarray(t)[None], width))[0]
  assert found.dtype == np.float32
  assert np.abs(found - exact(t, width)).max() <= ROUNDING


def test_the_time_embedding_is_exact_inside_a_larger_program():
  t = np.float32([[1000.0, 999.0, 987.0, 123.4]])

  @jax.jit
  def embed(sigma):
    return dit.sinusoid(sigma * 1024 / 1024, 256) * 3.0 + 1.0

  expected = exact(t[0], 256) * 3 + 1
  assert np.abs(np.asarray(embed(t))[0] - expected).max() <= 6 * ROUNDING
