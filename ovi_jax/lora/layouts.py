"""Factors of LoRAs in the layouts of checkpoints and of our parameters.

              checkpoints            ours
  lora_down   [rank, in …]           [in …, rank]
  lora_up     [out, rank, 1 …]       [rank, out]

The rows of the table that converts checkpoints also convert updates: outputs of
queries and keys are reordered. The axes "in …" of a convolution are those of
its kernel, or one axis of all of them.
"""

import re
from typing import Any

import numpy as np

from ovi_jax.lora import adapter
from ovi_jax.lora import names


def is_linear(target: names.Target) -> bool:
  """Whether the checkpoint's weight is a matrix."""
  op: Any = target.row.op
  axes, _, _ = op.pattern.partition("->")
  return len(re.sub(r"\(.*?\)", "n", axes).split()) == 2


def torch_inputs(
  target: names.Target, shape: tuple[int, ...]
) -> tuple[int, ...]:
  """The axes of the inputs of a checkpoint's weight.

  Args:
    target: the weight.
    shape: of our parameter, of one block.
  """
  view = np.broadcast_to(np.zeros((), bool), shape)
  (weight,) = target.row.op.to_torch(view)
  return weight.shape[1:]


def down_to_ours(
  array: np.ndarray, target: names.Target, shape: tuple[int, ...]
) -> np.ndarray:
  """lora_down in our layout [in …, rank].

  Args:
    array: of a checkpoint's layer.
    target: the weight that it updates.
    shape: of our parameter, of one block.
  """
  if is_linear(target):
    return np.ascontiguousarray(array.T)
  array = array.reshape(len(array), *torch_inputs(target, shape))
  return np.ascontiguousarray(target.row.op.to_ours(array))


def up_to_ours(array: np.ndarray, target: names.Target) -> np.ndarray:
  """lora_up in our layout [rank, out], its outputs reordered."""
  array = array.reshape(array.shape[:2])
  if is_linear(target):
    return np.ascontiguousarray(target.row.op.to_ours(array))
  return np.ascontiguousarray(array.T)


def down_to_torch(down: np.ndarray, target: names.Target) -> np.ndarray:
  """lora_down [rank, in …] of a checkpoint's layer."""
  if is_linear(target):
    return down.T
  (array,) = target.row.op.to_torch(down)
  return array


def up_to_torch(pair: adapter.Pair, target: names.Target) -> np.ndarray:
  """lora_up [out, rank, …] of a checkpoint's layer."""
  if is_linear(target):
    (array,) = target.row.op.to_torch(pair.up)
    return array
  axes = down_to_torch(pair.down, target).ndim - 2
  return pair.up.T.reshape(*pair.up.T.shape, *[1] * axes)
