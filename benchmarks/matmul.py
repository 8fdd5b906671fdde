"""What a device reaches at best: the product of two large matrices."""

import time
from typing import Any

import jax


def peak(dtype: Any, side: int) -> float:
  """Operations a second of a product of two matrices of `side` rows."""
  a = jax.random.normal(jax.random.key(0), (side, side), dtype)
  count = 10

  @jax.jit
  def products(a):
    return jax.lax.fori_loop(0, count, lambda _, x: (x @ a) / side**0.5, a)

  jax.block_until_ready(products(a))
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(products(a))
    seconds.append(time.perf_counter() - start)
  return count * 2 * side**3 / min(seconds)
