"""How much arithmetic a pass of the denoiser is, from its sizes alone.

Counts the multiplications and additions of matrix products (2 each pair): the
products of both towers' blocks, fusion included, their embeddings and heads.
Norms, rotary positions, softmax and the time embedding (one vector a clip, or
two) are left out. Needs neither JAX nor PyTorch.

Keys, values and embedding of the prompt are counted for its full length,
though one row stands for the padding: they are 0.5 % of a pass at full size,
and figures stay comparable with the original's.
"""

import dataclasses
from typing import Any
from typing import Protocol

from ovi_jax.modality import AV

STEM_KERNEL = 7  # latents that each convolution of the audio stem sees


class Tower(Protocol):
  """The sizes of a tower that count; `models.dit.DiTConfig` has them."""

  blocks: int
  width: int
  feed_forward: int
  text_length: int
  text_width: int
  channels: int

  @property
  def token_channels(self) -> int: ...
  @property
  def is_audio(self) -> bool: ...
  @property
  def stem_hidden(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """Operations of a forward pass, by what they are.

  Attributes:
    projections: queries, keys, values and outputs of all attention.
    attention: logits and weighted values.
    feed_forward: of all blocks.
    text: embeddings of the prompt.
    ends: patch embeddings and heads.
  """

  projections: float = 0.0
  attention: float = 0.0
  feed_forward: float = 0.0
  text: float = 0.0
  ends: float = 0.0

  def __add__(self, other: "Work") -> "Work":
    mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
    return Work(**{name: mine[name] + others[name] for name in mine})

  @property
  def total(self) -> float:
    return sum(dataclasses.asdict(self).values())

  def training(self, attention_only: bool = False) -> float:
    """Operations of a step: forward, and gradients that are needed.

    Every product has two gradients, each as much work as itself. A frozen
    kernel needs only the one that leads on; before the first trained kernel
    and after the last, none is counted.

    Args:
      attention_only: projections and text embeddings alone are trained.
    """
    if not attention_only:
      return 3 * self.total
    trained = self.projections + self.attention + self.text
    return 3 * trained + 2 * self.feed_forward + self.ends


def forward(towers: AV[Any], tokens: AV[int]) -> Work:
  """Work of one forward pass, batch 1.

  Args:
    towers: sizes of each `Tower`, `None` for an absent one.
    tokens: of each tower.
  """
  total = Work()
  for name, sizes in towers.present().items():
    foreign = 0
    if towers.other(name) is not None:
      foreign = tokens.other(name)
    total += _tower(sizes, getattr(tokens, name), foreign)
  return total


def _tower(sizes: Tower, tokens: int, foreign: int) -> Work:
  """Work of one tower that also reads `foreign` tokens of the other."""
  width, text = sizes.width, sizes.text_length
  # Self-attention has four products, cross-attention a query and an output;
  # keys and values of what it reads.
  projections = tokens * 6 * width**2 + (text + foreign) * 2 * width**2
  attention = 2 * tokens * width * (tokens + text + foreign)
  feed_forward = tokens * 2 * width * sizes.feed_forward
  return Work(
    projections=2.0 * sizes.blocks * projections,
    attention=2.0 * sizes.blocks * attention,
    feed_forward=2.0 * sizes.blocks * feed_forward,
    text=2.0 * text * width * (sizes.text_width + width),
    ends=2.0 * tokens * (width * sizes.token_channels + _stem(sizes)),
  )


def _stem(sizes: Tower) -> int:
  """Multiplications that make one token of latents."""
  if not sizes.is_audio:
    return sizes.token_channels * sizes.width
  inner = sizes.channels + 3 * sizes.stem_hidden
  return STEM_KERNEL * sizes.width * inner
