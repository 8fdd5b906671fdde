"""Model FLOPs of the DiT from its sizes, and MFU.

Counts matrix multiplications (2 FLOPs for a multiply-add) of both towers'
blocks, fusion included, their embeddings and heads. Norms, rotary positions,
softmax and the time embedding (one or two vectors a clip) are not counted.
Rematerialization is not counted either: these are model FLOPs, not hardware
FLOPs.

Keys, values and the embedding of the prompt are counted at full text length,
although padding is collapsed into one row: that is 0.5 % of a forward pass at
full size, and keeps the numbers comparable with the original's.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol

from ovi_jax import hardware
from ovi_jax.modality import AV

STEM_KERNEL = 7  # latents that each convolution of the audio stem sees


class Tower(Protocol):
  """Sizes that determine a tower's FLOPs; `models.dit.DiTConfig` has them."""

  num_layers: int
  hidden_dim: int
  mlp_dim: int
  max_text_len: int
  text_dim: int
  channels: int

  @property
  def token_channels(self) -> int: ...
  @property
  def is_audio(self) -> bool: ...
  @property
  def stem_dim(self) -> int: ...
  def grid(self, shape: tuple[int, ...], /) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardFlops:
  """FLOPs of a forward pass by kind.

  Attributes:
    projections: queries, keys, values and outputs of all attention.
    attention: logits and weighted values.
    mlp: feed-forward layers of all blocks.
    text: embedding of the prompt.
    embeddings_and_heads: patch embeddings and output heads.
  """

  projections: float = 0.0
  attention: float = 0.0
  mlp: float = 0.0
  text: float = 0.0
  embeddings_and_heads: float = 0.0

  def __add__(self, other: "ForwardFlops") -> "ForwardFlops":
    mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
    return ForwardFlops(**{name: mine[name] + others[name] for name in mine})

  @property
  def total(self) -> float:
    return sum(dataclasses.asdict(self).values())

  def training(self, attention_only: bool = False) -> float:
    """FLOPs of a training step: the forward pass and the gradients it needs.

    Each matmul has two gradients of its own size. A frozen kernel only needs
    the gradient of its input; before the first and after the last trained
    kernel none is counted.

    Args:
      attention_only: only attention and the text projections are trained.
    """
    if not attention_only:
      return 3 * self.total
    trained = self.projections + self.attention + self.text
    return 3 * trained + 2 * self.mlp + self.embeddings_and_heads


def forward(towers: AV[Any], tokens: AV[int]) -> ForwardFlops:
  """FLOPs of one forward pass at batch size 1.

  Args:
    towers: sizes of each `Tower`, `None` for an absent one.
    tokens: sequence length of each tower.
  """
  total = ForwardFlops()
  for name, sizes in towers.present().items():
    foreign = 0
    if towers.other(name) is not None:
      foreign = tokens.other(name)
    total += _tower(sizes, getattr(tokens, name), foreign)
  return total


def _tower(sizes: Tower, tokens: int, foreign: int) -> ForwardFlops:
  """FLOPs of a tower that also attends to `foreign` tokens of the other."""
  width, text = sizes.hidden_dim, sizes.max_text_len
  # Self-attention has four projections; cross-attention has a query and an
  # output, and keys and values of its context.
  projections = tokens * 6 * width**2 + (text + foreign) * 2 * width**2
  attention = 2 * tokens * width * (tokens + text + foreign)
  mlp = tokens * 2 * width * sizes.mlp_dim
  return ForwardFlops(
    projections=2.0 * sizes.num_layers * projections,
    attention=2.0 * sizes.num_layers * attention,
    mlp=2.0 * sizes.num_layers * mlp,
    text=2.0 * text * width * (sizes.text_dim + width),
    embeddings_and_heads=2.0
    * tokens
    * (width * sizes.token_channels + _stem(sizes)),
  )


def _stem(sizes: Tower) -> int:
  """Multiply-adds per token of the patch embedding."""
  if not sizes.is_audio:
    return sizes.token_channels * sizes.hidden_dim
  inner = sizes.channels + 3 * sizes.stem_dim
  return STEM_KERNEL * sizes.hidden_dim * inner


class BatchCost(NamedTuple):
  """Tokens and model FLOPs of a training batch over all devices."""

  tokens: int
  flops: float


def batch_cost(
  towers: AV[Any], shapes: AV[tuple[int, ...]], *, attention_only: bool
) -> BatchCost:
  """Cost of a training step on a batch of latents.

  Args:
    towers: sizes of each `Tower`, `None` for an absent one.
    shapes: of the latents [B, T, (H, W,) C] of each tower.
    attention_only: see `ForwardFlops.training`.
  """
  sizes = towers._asdict()
  present = shapes.present()
  tokens = {n: math.prod(sizes[n].grid(s)) for n, s in present.items()}
  batch_size = next(iter(present.values()))[0]
  flops = forward(towers, AV(**tokens)).training(attention_only)
  return BatchCost(sum(tokens.values()) * batch_size, flops * batch_size)


def mfu(
  flops: float, seconds: float, device_kind: str, num_devices: int
) -> float | None:
  """Model FLOPs utilization: model FLOPs over peak FLOPs.

  Args:
    flops: model FLOPs of a step over all devices.
    seconds: duration of the step.
    device_kind: `jax.Device.device_kind`.
    num_devices: devices that ran the step.

  Returns:
    A fraction in [0, 1]; `None` if the peak of the device is unknown.
  """
  chip = hardware.CHIPS.get(device_kind)
  if chip is None:
    return None
  return flops / seconds / (chip.peak_tflops * 1e12 * num_devices)
