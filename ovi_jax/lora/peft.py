"""Reads and writes alpha in the metadata of LoRA files of diffusers.

The metadata `lora_adapter_metadata` is PEFT's LoraConfig as JSON. `lora_alpha`
and `r` are those of all layers but the ones of `alpha_pattern` and
`rank_pattern`. Each field may have the prefix `transformer.`.
"""

import json
import math
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from ovi_jax import untrusted
from ovi_jax.lora import adapter

KEY = "lora_adapter_metadata"
_PREFIX = "transformer."


def alphas(text: str, ranks: Mapping[str, int]) -> dict[str, float]:
  """alpha of layers; those without one are left out.

  Args:
    text: the metadata of a file; untrusted.
    ranks: of the layers, by their names in the file.

  Raises:
    ValueError: it is damaged, has a rank that is not the layer's, or is not
      that of a LoRA.
  """
  try:
    config = _parse(text)
    alpha_of = _by_layer("alpha_pattern", config, ranks)
    rank_of = _by_layer("rank_pattern", config, ranks)
    default, rank = config.get("lora_alpha"), config.get("r")
    given = [*(config.get("alpha_pattern") or {}).values(), default]
    if not all(x is None or _is_number(x) for x in given):
      raise ValueError("lora_alpha is not a number")
    if not (rank is None or type(rank) is int):
      raise ValueError("r is not a whole number")
  except (AttributeError, ValueError) as error:
    raise ValueError(
      f"the metadata {KEY} is damaged: {untrusted.printable(str(error))}"
    ) from error
  if config.get("use_dora") or config.get("use_rslora"):
    raise ValueError(
      f"expected a LoRA, found use_dora or use_rslora in {KEY}, which is not"
      " supported"
    )
  for layer, found in ranks.items():
    field = "rank_pattern" if layer in rank_of else "r"
    expected = rank_of.get(layer, rank)
    if expected not in (None, found):
      raise ValueError(
        f"'{untrusted.printable(layer)}' has rank {found}, another than in"
        f" {field} of the metadata {KEY}"
      )
  values = {layer: alpha_of.get(layer, default) for layer in ranks}
  return {layer: float(x) for layer, x in values.items() if x is not None}


def _parse(text: str) -> dict[str, Any]:
  """The fields, without their prefix."""
  config = untrusted.parse_json(text)
  if not isinstance(config, dict):
    raise ValueError("expected an object")
  return {k.removeprefix(_PREFIX): v for k, v in config.items()}


def _is_number(x: Any) -> bool:
  return type(x) in (int, float) and math.isfinite(x)


def _by_layer(
  field: str, config: Mapping[str, Any], layers: Iterable[str]
) -> dict[str, Any]:
  """Values of a pattern by layer.

  A key is the name of a layer or its end after a dot; `^` before it stands for
  the beginning of the name. The first key that fits a layer counts. PEFT reads
  keys as regular expressions, which are not supported.

  Args:
    field: name of the pattern.
    config: all fields.
    layers: names in the file.

  Raises:
    ValueError: the pattern is no object, or a key fits no layer.
  """
  patterns = config.get(field) or {}
  if not isinstance(patterns, Mapping):
    raise ValueError(f"{field}: expected an object")
  order = {key: index for index, key in enumerate(patterns)}
  used: set[str] = set()
  found: dict[str, Any] = {}
  for layer in layers:
    parts = layer.split(".")
    ends = [".".join(parts[i:]) for i in range(len(parts))]
    whole = f"^{layer}", f"^{layer.removeprefix(_PREFIX)}"
    if keys := [key for key in (*ends, *whole) if key in order]:
      used.update(keys)
      found[layer] = patterns[min(keys, key=order.__getitem__)]
  if unknown := [key for key in patterns if key not in used]:
    raise ValueError(
      f"{field}: '{untrusted.printable(unknown[0])}' is no layer of the file"
    )
  return found


def metadata(pairs: Mapping[str, adapter.Pair]) -> dict[str, str]:
  """PEFT's LoraConfig; empty if no pair has alpha.

  Args:
    pairs: by name of the layer in diffusers.
  """
  if all(pair.alpha is None for pair in pairs.values()):
    return {}
  pairs = {layer.removeprefix(_PREFIX): pair for layer, pair in pairs.items()}
  ranks = {layer: pair.rank for layer, pair in pairs.items()}
  scaled = {
    layer: pair.rank if pair.alpha is None else pair.alpha
    for layer, pair in pairs.items()
  }
  rank, alpha = _commonest(ranks.values()), _commonest(scaled.values())
  fields = {
    "r": rank,
    "lora_alpha": alpha,
    "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
    "alpha_pattern": {n: a for n, a in scaled.items() if a != alpha},
    "target_modules": sorted(pairs),
    "peft_type": "LORA",
  }
  return {KEY: json.dumps({_PREFIX + n: value for n, value in fields.items()})}


def _commonest(values: Iterable[Any]) -> Any:
  values = list(values)
  return max(dict.fromkeys(values), key=values.count)
