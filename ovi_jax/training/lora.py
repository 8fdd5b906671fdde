"""Training of a LoRA: its settings, and which kernels get factors.

The base is frozen in its stored dtype. Optimizer, EMA and checkpoints have the
factors only, see `models.low_rank`; a resumed run loads the base again.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from ovi_jax.models import low_rank
from ovi_jax.training import param_filter


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Settings of a LoRA, for `trainable="lora"`.

  Attributes:
    targets: the kernels that are adapted: keys of `low_rank.PRESETS` and
      patterns of paths, with commas between them.
    rank: of the updates.
    alpha: updates are scaled by alpha / rank.
    dropout: probability that a rank of a kernel is left out in a step.
  """

  targets: str = "fusion"
  rank: int = 32
  alpha: float = 32.0
  dropout: float = 0.0

  def __post_init__(self):
    problems = []
    if self.rank < 1:
      problems.append(f"lora.rank must be at least 1, got {self.rank}")
    if not 0 < self.alpha < math.inf:
      problems.append(f"lora.alpha must be positive, got {self.alpha}")
    if not 0 <= self.dropout < 1:
      problems.append(f"lora.dropout must be in [0, 1), got {self.dropout}")
    if problems:
      raise ValueError("; ".join(problems))

  def kernels(self, shapes: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the kernels that are adapted.

    Args:
      shapes: of the model's parameters, by path.

    Raises:
      ValueError: a target is unknown, or a kernel is smaller than the rank.
    """
    found = low_rank.targets(shapes, self.targets)
    smallest = min(found, key=lambda path: min(shapes[path].shape[1:]))
    if self.rank > (size := min(shapes[smallest].shape[1:])):
      raise ValueError(
        f"lora.rank {self.rank} is larger than {size}, the rank of {smallest}"
      )
    return found

  def factor_shapes(
    self, shapes: Mapping[str, Any]
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the factors, by path; `shapes` as for `kernels`."""
    return low_rank.factor_shapes(shapes, self.kernels(shapes), self.rank)

  def init(
    self, key: jax.Array, params: Mapping[str, Any]
  ) -> dict[str, jax.Array]:
    """Factors that change nothing yet, by path."""
    kernels = self.kernels(params)
    return low_rank.init(key, params, kernels, self.rank, self.alpha)


DEFAULT = LoraConfig()


def init_params(
  config: LoraConfig, key: jax.Array, params: Mapping[str, Any]
) -> dict[str, Any]:
  """Add factors to nested parameters."""
  flat = param_filter.flat(params)
  return param_filter.nested(flat | config.init(key, flat))
