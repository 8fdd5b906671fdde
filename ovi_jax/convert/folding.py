"""Operations of the mapping that keep a function, not the very numbers.

A release may hold a weight in parts, or as a direction that its code rescales
before use; our models hold the weight that is multiplied with. And it holds
tables that our models compute. Folds are computed in float64 and rounded once,
to the dtype of the tensor they come from.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Rearrange

# Largest part of a constant's largest figure by which a file may differ,
# besides the rounding of the file's own precision.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
  """A tensor that our model computes itself (its row has `ours=None`).

  Attributes:
    name: of the tensor, for the error.
    value: what it must hold, and what an export writes.
  """

  name: str
  value: np.ndarray

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    """`value`; ValueError if the tensor differs by more than rounding."""
    (tensor,) = tensors
    self.shape(tensor.shape)
    theirs = np.asarray(tensor, np.float64)
    ours = np.asarray(self.value, np.float64)
    precision = jnp.finfo(tensor.dtype)
    allowed = (
      _ROUNDING * np.abs(ours).max()
      + float(precision.eps) * np.abs(ours)
      + float(precision.smallest_subnormal)
    )
    differs = ~(np.abs(theirs - ours) <= allowed)
    if differs.any():
      at = tuple(int(i) for i in np.argwhere(differs)[0])
      raise ValueError(
        f"{self.name}: {int(differs.sum())} of {ours.size} figures differ from"
        f" the configuration's, first at {at}: expected {ours[at]:.6g}, got"
        f" {theirs[at]:.6g}; give the configuration the file's figures"
      )
    return self.value

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    del parameter
    return (self.value,)

  def shape(self, *shapes: mapping.Shape) -> mapping.Shape:
    (shape,) = shapes
    if tuple(shape) != self.value.shape:
      raise ValueError(f"{self.name}: expected shape {self.value.shape}")
    return self.value.shape


@dataclasses.dataclass(frozen=True)
class WeightNorm:
  """Weight normalisation: a norm a filter, a direction -> their product.

  A filter is a slice of the first axis, as in PyTorch: an output channel of a
  convolution, an input channel of a transposed one.

  Attributes:
    layout: from the axes of the direction to ours.
  """

  layout: Rearrange

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    norm, direction = tensors
    filters = direction.astype(np.float64)
    norms = _norms(filters)
    if not norms.all():
      raise ValueError(
        f"weight norm: {int((norms == 0).sum())} filters of {norms.size} have"
        " no direction, expected none of zeros alone; the file is damaged"
      )
    weight = filters * (norm.astype(np.float64) / norms)
    return self.layout.to_ours(weight.astype(direction.dtype))

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    (weight,) = self.layout.to_torch(parameter)
    norms = _norms(weight.astype(np.float64))
    # A filter of zeros has no direction: any will do, at norm zero.
    direction = np.where(norms == 0, np.ones_like(weight), weight)
    return norms.astype(weight.dtype), direction

  def shape(self, *shapes: mapping.Shape) -> mapping.Shape:
    norm, direction = shapes
    expected = (direction[0], *(1 for _ in direction[1:]))
    if tuple(norm) != expected:
      raise ValueError(f"expected norms of shape {expected}, got {norm}")
    return self.layout.shape(direction)


@dataclasses.dataclass(frozen=True)
class MagnitudePreserving:
  """A weight that is divided by its filters' norms before use -> the quotient.

  The divisor of a filter W of n numbers is |W| + epsilon·√n. A quotient of norm
  r < 1 therefore comes from exactly one multiple of itself: by
  √n·epsilon / (1 - r).

  Attributes:
    layout: from the axes of the weight to ours.
    epsilon: relative to the root mean square of a filter.
  """

  layout: Rearrange
  epsilon: float = 1e-4

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    (weight,) = tensors
    filters = weight.astype(np.float64)
    quotient = filters / (_norms(filters) + self._offset(filters))
    return self.layout.to_ours(quotient.astype(weight.dtype))

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    """The weight; ValueError if a filter's norm is over 1, which has none."""
    (quotient,) = self.layout.to_torch(parameter)
    filters = quotient.astype(np.float64)
    norms = _norms(filters)
    # Rounding may bring a norm of almost 1 to 1, or the last bit beyond.
    if norms.max() > 1 + float(jnp.finfo(quotient.dtype).eps):
      raise ValueError(
        "magnitude-preserving filters: expected norms below 1, got"
        f" {norms.max():.6g}; divide each filter by its norm before export"
      )
    scale = self._offset(filters) / np.maximum(1 - norms, 1e-7)
    return ((filters * scale).astype(quotient.dtype),)

  def shape(self, *shapes: mapping.Shape) -> mapping.Shape:
    return self.layout.shape(*shapes)

  def _offset(self, filters: np.ndarray) -> float:
    return self.epsilon * (filters.size / filters.shape[0]) ** 0.5


def _norms(filters: np.ndarray) -> np.ndarray:
  """Norm of every slice of the first axis, which alone keeps its size."""
  axes = tuple(range(1, filters.ndim))
  return np.sqrt(np.square(filters).sum(axes, keepdims=True))
