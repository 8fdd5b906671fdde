"""A LoRA in memory: updates of layers, as a file or a training run has them.

Arrays are numpy, in the dtype of the file and in the layout of our parameters:
queries and keys are ordered as conversion orders them. Blocks are separate, so
that they may differ in rank and alpha, and some may have no update.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from ovi_jax.models import low_rank


class Slot(NamedTuple):
  """A parameter, or one block of a stacked one.

  Attributes:
    path: of the parameter.
    block: index on its first axis; `None` for a parameter outside of blocks.
  """

  path: str
  block: int | None

  @property
  def tower(self) -> str:
    """The tower that the parameter belongs to."""
    parts = self.path.split("/")
    return parts[1] if parts[0] == "blocks" else parts[0]

  @property
  def is_fusion(self) -> bool:
    """Whether it is a layer that only a model with both towers has."""
    return "/fusion_" in self.path


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
  """A low-rank update of a kernel: alpha / rank · down @ up.

  Attributes:
    down: [..., rank]; the axes before are those of the kernel's inputs.
    up: [rank, out].
    alpha: `None` means the rank.
  """

  down: np.ndarray
  up: np.ndarray
  alpha: float | None = None

  @property
  def rank(self) -> int:
    return self.up.shape[0]

  @property
  def scale(self) -> float:
    return 1.0 if self.alpha is None else self.alpha / self.rank

  def delta(self) -> np.ndarray:
    """The update of the kernel, float32."""
    down = np.asarray(self.down, np.float32) * np.float32(self.scale)
    return down @ np.asarray(self.up, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
  """A LoRA.

  Attributes:
    pairs: low-rank updates of kernels.
    deltas: updates of whole parameters, in their shapes.
    metadata: text by name.
    notes: what a user should know, a line each.
  """

  pairs: Mapping[Slot, Pair]
  deltas: Mapping[Slot, np.ndarray] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()

  def only(self, wanted: Callable[[Slot], bool]) -> "Adapter":
    """The updates of some parameters."""
    return dataclasses.replace(
      self,
      pairs={s: x for s, x in self.pairs.items() if wanted(s)},
      deltas={s: x for s, x in self.deltas.items() if wanted(s)},
    )

  def astype(self, dtype: Any) -> "Adapter":
    """The same in another dtype."""
    pairs = {
      slot: dataclasses.replace(
        x, down=x.down.astype(dtype), up=x.up.astype(dtype)
      )
      for slot, x in self.pairs.items()
    }
    deltas = {slot: x.astype(dtype) for slot, x in self.deltas.items()}
    return dataclasses.replace(self, pairs=pairs, deltas=deltas)


def from_factors(
  flat: Mapping[str, Any], alpha: float, metadata: Mapping[str, str]
) -> Adapter:
  """The LoRA of trained factors.

  Args:
    flat: factors by path, stacked over blocks, see `low_rank`.
    alpha: of all of them.
    metadata: text by name.
  """
  pairs: dict[Slot, Pair] = {}
  for path, downs in sorted(flat.items()):
    if path.endswith(f"/{low_rank.DOWN}"):
      kernel = low_rank.kernel_of(path)
      ups = np.asarray(flat[low_rank.beside(kernel, low_rank.UP)])
      for block, (down, up) in enumerate(zip(np.asarray(downs), ups)):
        pair = Pair(down=down, up=up, alpha=alpha)
        pairs[Slot(kernel, block)] = pair
  return Adapter(pairs=pairs, metadata=metadata)
