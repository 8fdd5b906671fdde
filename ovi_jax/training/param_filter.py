"""Which parameters a run trains: names of `TRAINABLE`, or patterns of paths.

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


def is_patterns(chosen: str) -> bool:
  """Whether a choice is more than a key of `TRAINABLE`."""
  return bool(set("/.,") & set(chosen))


def compiled(chosen: str) -> list[re.Pattern[str]]:
  """The patterns of whole paths of trained parameters.

  Args:
    chosen: a key of `TRAINABLE`, or keys and regular expressions with commas
      between them; a regular expression is told by its `/` or `.`.

  Raises:
    ValueError: a name is unknown, a pattern is no regular expression, or
      "lora", whose base is frozen, is one of several.
  """
  items = [item.strip() for item in chosen.split(",")]
  if LORA in items and len(items) > 1:
    raise ValueError(
      f"trainable {chosen!r}: {LORA!r} freezes all parameters of the model and"
      " cannot be combined with others"
    )
  found = []
  for item in items:
    if item not in TRAINABLE and not is_patterns(item):
      known = ", ".join(TRAINABLE)
      raise ValueError(
        f"trainable {item!r} is unknown; choose from {known}, or give regular"
        " expressions of parameter paths, such as blocks/audio/.*"
      )
    try:
      found += [re.compile(p) for p in TRAINABLE.get(item, (item,))]
    except re.error as error:
      raise ValueError(
        f"trainable: {item!r} is not a regular expression: {error}"
      ) from error
  return found


def is_trained(path: str, chosen: str) -> bool:
  """Whether a parameter is trained; `chosen` as for `compiled`."""
  return any(pattern.fullmatch(path) for pattern in compiled(chosen))


def split(
  params: Mapping[str, T], chosen: str
) -> tuple[dict[str, T], dict[str, T]]:
  """Divide parameters into trained and frozen ones.

  Args:
    params: leaves by path.
    chosen: see `compiled`.

  Returns:
    The trained and the frozen parameters, by path.

  Raises:
    ValueError: see `compiled`, or a name or regular expression matches none of
      the parameters.
  """
  patterns = compiled(chosen)
  trained, frozen = {}, {}
  for path, leaf in params.items():
    mine = any(pattern.fullmatch(path) for pattern in patterns)
    (trained if mine else frozen)[path] = leaf
  items = [item.strip() for item in chosen.split(",")]
  for item in items if items != [chosen] or is_patterns(chosen) else ():
    own = compiled(item)
    if not any(p.fullmatch(path) for p in own for path in params):
      what = "'decoder' is for a codec and" if item == DECODER else repr(item)
      raise ValueError(f"trainable: {what} matches no parameter")
  if not trained:
    raise ValueError(f"trainable {chosen!r} matches none of {sorted(params)}")
  return trained, frozen
