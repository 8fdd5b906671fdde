"""The TPU kernel, interpreted, against the reference; its block sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ovi_jax.attention import attention
from ovi_jax.attention import splash


@pytest.mark.parametrize(
  ("queries", "keys", "pad_count", "length"),
  [
    (130, 260, 1, None),
    pytest.param(64, 9, 5, None, marks=pytest.mark.slow),
    (130, 260, 1, (7, 260)),
    pytest.param(7, 300, 1, 130, marks=pytest.mark.slow),
  ],
)
def test_the_kernel_computes_attention(queries, keys, pad_count, length):
  random = np.random.default_rng(0)
  q = random.standard_normal((2, queries, 2, 128), np.float32)
  k, v = random.standard_normal((2, 2, keys, 2, 128), np.float32)
  if isinstance(length, tuple):
    length = jnp.asarray(length)

  def call(backend):
    def total(q, k, v):
      out = attention.attention(q, k, v, backend, pad_count, length)
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
def test_block_sizes_add_little_padding(length, block, filled):
  assert splash.block(length, 1024) == (block, filled)


@pytest.mark.parametrize("length", [157, 7843, 15004, 15686, 27900, 54900])
def test_block_sizes_are_found_for_padded_lengths(length):
  (rows, queries), (columns, keys) = splash.blocks("TPU v5", length, length)
  found = splash.blocks_of_filled("TPU v5", queries, keys)
  assert found == (rows, columns)


def test_table_rows_are_complete():
  chips: dict = {}
  for row in splash.table():
    assert row.keys() == {"chip", "up_to", *splash.SIZES}
    assert all(row[name] % splash.LANES == 0 for name in splash.SIZES)
    chips.setdefault(row["chip"], []).append(row["up_to"])
  assert splash.ANY in chips
  for limits in chips.values():
    assert limits[-1] is None and limits[:-1] == sorted(limits[:-1])


def test_table_rows_are_per_chip_and_length(monkeypatch):
  sizes = dict.fromkeys(splash.SIZES, 128)
  rows = [
    {"chip": "TPU v9", "up_to": 600, **sizes},
    {"chip": "any", "up_to": None, **sizes, "keys": 512},
    {"chip": "TPU v9", "up_to": None, **sizes, "keys": 256},
  ]
  monkeypatch.setattr(splash, "table", lambda: rows)
  found = [
    splash.limits_of(*case)["keys"]
    for case in (("TPU v9", 600), ("TPU v9", 601), ("cpu", 1))
  ]
  assert found == [128, 256, 512]
