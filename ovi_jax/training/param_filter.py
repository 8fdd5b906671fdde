"""Which parameters a run trains: patterns over parameter paths.

The paper's fusion stage trains self-attention, cross-attention and the text
embedding, 5.7 B of 11.7 B parameters; all others keep their values from the
single towers. Trained and frozen parameters are two flat mappings from path to
array: a frozen one has no gradient and no optimizer state.
"""

import re
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

from flax import traverse_util

from ovi_jax.models import low_rank

T = TypeVar("T")

ALL, ATTENTION, DECODER, LORA = "all", "attention", "decoder", "lora"
TRAINABLE: Mapping[str, Sequence[str]] = {
  ALL: (r".*",),
  ATTENTION: (
    r"blocks/(video|audio)/(self|cross)_attention/.*",
    r"(video|audio)/text_embedding/.*",
  ),
  DECODER: (r"decoder/.*",),  # of a codec; its latents do not change
  # See `models.low_rank`; all parameters of the model are frozen.
  LORA: (rf".*/({low_rank.DOWN}|{low_rank.UP})",),
}


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
  """Flatten nested parameters to a mapping from path to leaf."""
  return traverse_util.flatten_dict(dict(params), sep="/")


def nested(params: Mapping[str, Any]) -> dict[str, Any]:
  """Nest a mapping from path to leaf."""
  return traverse_util.unflatten_dict(dict(params), sep="/")


def split(
  params: Mapping[str, T], name: str
) -> tuple[dict[str, T], dict[str, T]]:
  """Divide parameters into trained and frozen ones.

  Args:
    params: leaves by path.
    name: a key of `TRAINABLE`.

  Returns:
    The trained and the frozen parameters, by path.

  Raises:
    ValueError: the name is unknown, or matches none of the parameters.
  """
  if name not in TRAINABLE:
    known = ", ".join(TRAINABLE)
    raise ValueError(f"trainable {name!r} is unknown; choose from {known}")
  patterns = TRAINABLE[name]
  trained, frozen = {}, {}
  for path, leaf in params.items():
    mine = any(re.fullmatch(pattern, path) for pattern in patterns)
    (trained if mine else frozen)[path] = leaf
  if not trained:
    raise ValueError(f"trainable {name!r} matches none of {sorted(params)}")
  return trained, frozen
