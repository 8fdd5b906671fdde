"""Parameters of a block as its products read them.

What is stored beside a kernel is applied to it: the scale of 8-bit kernels
(`quantized`), then the factors of a LoRA (`low_rank`). Both are float32, and
the result is rounded once. Models call this for one block at a time.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ovi_jax.models import low_rank
from ovi_jax.models import quantized


def is_plain(params: Any) -> bool:
  """Whether a nested tree of parameters has nothing beside its kernels."""
  if not isinstance(params, Mapping):
    return True
  beside = low_rank.DOWN in params or quantized.SCALE in params
  return not beside and all(map(is_plain, params.values()))


def merge(params: Any, dtype: Any) -> Any:
  """Apply what is beside kernels.

  Args:
    params: nested parameters, of one block or stacked over blocks.
    dtype: of the kernels that have something beside them.

  Returns:
    The tree with kernels alone; other parameters are as they were.
  """
  if not isinstance(params, Mapping):
    return params
  if is_plain(params):
    return params
  rest: dict[str, Any] = {n: merge(x, dtype) for n, x in params.items()}
  kernel: Any = rest.get(quantized.KERNEL)
  if quantized.SCALE in rest:
    kernel = quantized.dequantize(kernel, rest.pop(quantized.SCALE))
  if low_rank.DOWN in rest:
    down, up, scale = (rest.pop(name) for name in low_rank.FACTORS)
    kernel = low_rank.add_update(kernel, down, up, scale)
  if kernel is not rest.get(quantized.KERNEL):
    rest[quantized.KERNEL] = jnp.asarray(kernel, dtype)
  return rest


def lift(target: Any, params: Any, dtype: Any) -> Any:
  """A module class, or a function of a module, that reads merged parameters.

  Args:
    target: what reads them.
    params: the module's parameters; plain ones leave `target` as it is.
    dtype: see `merge`.
  """
  if is_plain(params):
    return target
  transform: Callable[[Any], Any] = lambda tree: merge(tree, dtype)  # noqa: E731
  return nn.map_variables(target, "params", transform)
