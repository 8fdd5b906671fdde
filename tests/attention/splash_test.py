"""The TPU kernel, interpreted, against the reference; its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.attention import attention
from ovi_jax.attention import splash


@pytest.mark.parametrize(
  ("queries", "keys", "last", "length"),
  [
    (130, 260, 1, None),
    (64, 9, 5, None),
    (130, 260, 1, (7, 260)),
    (7, 300, 1, 130),
  ],
)
def test_it_is_attention(queries, keys, last, length):
  random = np.random.default_rng(0)
  q = random.standard_normal((2, queries, 2, 128), np.float32)
  k, v = random.standard_normal((2, 2, keys, 2, 128), np.float32)
  if isinstance(length, tuple):
    length = jnp.asarray(length)

  def call(backend):
    def total(q, k, v):
      out = attention.attention(q, k, v, backend, last, length)
      return (out * q).sum(), out

    gradients, out = jax.grad(total, (0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients

  for found, expected in zip(call("splash"), call("xla")):
    limit = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=limit)


@pytest.mark.parametrize(
  ("length", "block", "filled"),
  [(1, 128, 128), (130, 256, 256), (15004, 1024, 15360), (27900, 768, 28416)],
)
def test_blocks_fill_little(length, block, filled):
  assert splash.block(length, 1024) == (block, filled)


def test_every_row_of_the_table_is_whole_lanes():
  for row in splash._table().values():
    assert row.keys() == splash._table()[splash.DEFAULT].keys()
    assert all(size % splash.LANES == 0 for size in row.values())
