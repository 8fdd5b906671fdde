"""Protocols: named lists of scores, as data.

`protocols.json` has the protocols of the package; a file of the same form can
be given in its place. Definitions that share a name differ between papers (the
"IS" of one has ten splits of 16 kHz sound, that of another one split of 32 kHz
sound), so a score is always reported as `protocol: name`.
"""

import dataclasses
import functools
import inspect
import math
import pathlib
import re
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import config
from ovi_jax import untrusted
from ovi_jax.evaluation import rules

HIGHER, LOWER, NEUTRAL = "higher", "lower", ""
# Distorted versions of the true clips. See `sanity`.
TRUE, ANOTHER, NOISE = "true", "another", "noise"
DELAYS: Mapping[str, float] = {
  "delayed 0.2 s": 0.2,
  "delayed 0.5 s": 0.5,
  "delayed 1 s": 1.0,
}
SANITY = (TRUE, ANOTHER, *DELAYS, NOISE)
_AT_LEAST = {"splits": 1, "share": 0}  # of parameters of rules
_FILE = pathlib.Path(__file__).with_name("protocols.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
  """How a score is computed.

  Attributes:
    name: as the protocol's paper has it.
    rule: of `rules.CLIP_RULES` or `rules.SET_RULES`.
    features: names of the extractors.
    params: keyword arguments of the rule.
    better: "higher", "lower", or "" if neither is.
    unit: of the value.
    digits: after the point, in reports.
    scale: a factor for reports, such as 100 for percent.
    orders: lists of sanity rows, from good to bad, that the score must put in
      this order.
    groups: a pattern whose first match in a clip's name is its group; the value
      is then the mean of the groups' means. "" for the mean over clips.
    note: what the reader has to know about the definition.
  """

  name: str
  rule: str
  features: tuple[str, ...]
  params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  better: str = NEUTRAL
  unit: str = ""
  digits: int = 3
  scale: float = 1.0
  orders: tuple[tuple[str, ...], ...] = ()
  groups: str = ""
  note: str = ""

  def __post_init__(self):
    known = {**rules.CLIP_RULES, **rules.SET_RULES}
    problems = config.invalid_choice("rule", self.rule, known)
    problems += config.invalid_choice(
      "better", self.better, (HIGHER, LOWER, NEUTRAL)
    )
    for row in (row for order in self.orders for row in order):
      problems += config.invalid_choice("orders", row, SANITY)
    if self.orders and not self.better:
      problems.append("orders need a score with a `better` direction")
    if not 0 <= self.digits <= 9 or not math.isfinite(self.scale):
      problems.append("expected digits of 0 to 9 and a finite scale")
    try:
      re.compile(self.groups)
    except re.error as error:
      problems.append(f"groups {self.groups!r}: {error}")
    if not problems:
      problems += _parameter_problems(known[self.rule], self.params)
    if problems:
      raise ValueError(f"score {self.name!r}: {'; '.join(problems)}")

  def groups_of(self, names: Sequence[str]) -> list[str] | None:
    """The group of each clip; None if the score has none."""
    if not self.groups:
      return None
    found = [re.search(self.groups, name) for name in names]
    return [match[0] if match else "" for match in found]

  def weights_of(self, clips: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """The weight of each clip [N] in the mean; None if all have the same.

    VBench averages consistency over all pairs of frames, not over clips.
    """
    if self.rule != "consistency" or self.groups:
      return None
    array = self.params["array"]
    return np.array([max(0, len(clip.get(array, ())) - 1) for clip in clips])

  @property
  def of_sets(self) -> bool:
    """Whether the value is one of a set, not a mean over clips."""
    return self.rule in rules.SET_RULES

  @property
  def of_pairs(self) -> bool:
    """Whether a clip is compared with that of its name in the reference."""
    return self.rule == "kl" or bool(self.params.get("of_reference"))

  @property
  def compares_sets(self) -> bool:
    """Whether the clips of a system are compared with all of the reference."""
    return self.rule in rules.SET_RULES and self.rule != "is"

  @functools.cached_property
  def compute(self) -> Callable[..., Any]:
    """The rule with its parameters."""
    known = {**rules.CLIP_RULES, **rules.SET_RULES}
    return functools.partial(known[self.rule], **self.params)


def _parameter_problems(
  rule: Callable[..., Any], params: Mapping[str, Any]
) -> list[str]:
  """Parameters that the rule lacks or does not have."""
  known = {
    name: parameter
    for name, parameter in inspect.signature(rule).parameters.items()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  }
  problems = [
    f"params.{name} is unknown{config.nearest(name, known)}"
    for name in sorted(params.keys() - known.keys())
  ]
  for name, parameter in known.items():
    if name in params:
      problems += _value_problems(name, params[name], parameter.annotation)
    elif parameter.default is inspect.Parameter.empty:
      problems.append(f"params.{name} is missing")
  return problems


def _value_problems(name: str, value: Any, kind: type) -> list[str]:
  """What is wrong with a parameter of a rule."""
  kinds = (int, float) if kind is float else (kind,)
  if type(value) not in kinds:
    return [f"params.{name}: expected {kind.__name__}, found {value!r:.40}"]
  if kind in (int, float):
    least = _AT_LEAST.get(name, -math.inf)
    if not math.isfinite(value) or value < least:
      return [f"params.{name}: expected at least {least}, found {value}"]
  return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
  """A list of scores.

  Attributes:
    name: precedes the names of its scores.
    source: paper and code that define it.
    scores: in the order of the report.
  """

  name: str
  source: str
  scores: tuple[Score, ...]


@functools.cache
def known() -> Mapping[str, Protocol]:
  """The protocols of the package, by name."""
  return _parse(untrusted.read_json(_FILE))


def load(names: Sequence[str]) -> list[Protocol]:
  """Protocols by name, or from JSON files.

  Args:
    names: of the package's protocols, or paths that end in `.json`.

  Raises:
    ValueError: a name is unknown, a file cannot be read or describes no
      protocols, or a protocol is given twice.
  """
  found: list[Protocol] = []
  for name in names:
    if name.endswith(".json"):
      try:
        found += _parse(untrusted.read_json(name)).values()
      except OSError as error:
        raise ValueError(f"{name}: {error.strerror or error}") from error
      except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    elif name in known():
      found.append(known()[name])
    else:
      raise ValueError(
        f"protocol {name!r} is unknown{config.nearest(name, known())}; choose"
        f" from {', '.join(known())}, or give a file that ends in .json"
      )
  if len({protocol.name for protocol in found}) != len(found):
    raise ValueError("expected each protocol once, one is given twice")
  if not found:
    raise ValueError("expected at least one protocol")
  return found


def _parse(content: Any) -> dict[str, Protocol]:
  """Protocols from the content of a JSON file."""
  if not isinstance(content, dict) or not content:
    raise ValueError("expected an object of protocols by name")
  found = {}
  for name, value in content.items():
    if not isinstance(value, dict) or not isinstance(value.get("scores"), list):
      raise ValueError(f"protocol {name!r}: expected `source` and `scores`")
    scores = tuple(_score(name, each) for each in value["scores"])
    if len({score.name for score in scores}) != len(scores):
      raise ValueError(f"protocol {name!r}: two scores have one name")
    source = value.get("source", "")
    found[name] = Protocol(name=name, source=str(source), scores=scores)
  return found


def _score(protocol: str, value: Any) -> Score:
  if not isinstance(value, dict):
    raise ValueError(f"protocol {protocol!r}: expected scores as objects")
  value = dict(value)
  for name in ("features", "orders"):
    if isinstance(value.get(name), list):
      value[name] = tuple(
        tuple(each) if isinstance(each, list) else each for each in value[name]
      )
  try:
    return config.build(Score, value)
  except (ValueError, TypeError) as error:
    raise ValueError(f"protocol {protocol!r}: {error}") from error
