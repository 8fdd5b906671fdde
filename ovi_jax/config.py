"""Builds frozen dataclasses from configs or JSON: fields, choices, dtypes.

Every command's settings are built here, so that a missing, misspelt or unknown
field reads the same everywhere, and numbers are held to their declared types:
Python's bool is an int, so `seed=True` would pass every comparison. Used by
`training.settings` and `sampling.settings`.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import TypeVar

import jax.numpy as jnp

from ovi_jax import untrusted

T = TypeVar("T")

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")
_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
}


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
  """An instance of a frozen dataclass from its fields by name.

  Args:
    cls: the dataclass.
    values: all fields without a default, and any others.
    where: dotted path of the dataclass within the config; "" for the config.

  Returns:
    The instance.

  Raises:
    ValueError: a field is missing or unknown (by its dotted name, with the
      nearest known one), or the dataclass refuses a value.
  """
  fields = dataclasses.fields(cls)  # type: ignore[arg-type]
  needed = {
    f.name
    for f in fields
    if f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  }
  known = [f.name for f in fields]
  at = f"config.{where}." if where else "config."
  problems = [
    f"{at}{name} is unknown{nearest(name, known)}"
    for name in sorted(values.keys() - set(known))
  ]
  problems += [
    f"{at}{name} is missing" for name in sorted(needed - values.keys())
  ]
  if problems:
    raise ValueError(
      f"{'; '.join(problems)}; the fields are {', '.join(sorted(known))}"
    )
  check_types(cls, values, at.rstrip("."))
  return cls(**values)


def take(values: dict[str, Any], name: str, where: str = "") -> Any:
  """Move a section out of the values of a config.

  Args:
    values: by name.
    name: of the section.
    where: dotted path of the values within the config; "" for the config.

  Raises:
    ValueError: there is none, by its dotted name.
  """
  if name not in values:
    raise ValueError(f"config.{f'{where}.' if where else ''}{name} is missing")
  return values.pop(name)


def from_sizes(cls: type[T], sizes: Mapping[str, Any], what: str) -> T:
  """An instance of a dataclass of sizes, as JSON has them.

  Args:
    cls: the dataclass; all its fields have defaults.
    sizes: some of its fields; lists become tuples, at every level.
    what: the sizes are of, for the message.

  Raises:
    ValueError: a key is no field, or the dataclass refuses a value.
  """

  def frozen(value: Any) -> Any:
    return tuple(map(frozen, value)) if isinstance(value, list) else value

  known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
  if unknown := sorted(sizes.keys() - set(known)):
    raise ValueError(
      f"unknown sizes of {what}: {', '.join(unknown)}; known are"
      f" {', '.join(known)}"
    )
  return cls(**{name: frozen(value) for name, value in sizes.items()})


def nearest(name: str, known: Collection[str]) -> str:
  """` (did you mean …?)` for the known name most like `name`, or nothing."""
  found = difflib.get_close_matches(name, known, n=1)
  return f" (did you mean {found[0]}?)" if found else ""


def invalid_choice(name: str, value: Any, known: Collection[str]) -> list[str]:
  """A problem in words if `value` is none of the known ones, else nothing."""
  if value in known:
    return []
  return [f"{name} {value!r} is unknown; choose from {', '.join(known)}"]


def below(instance: Any, least: int, *names: str) -> list[str]:
  """A problem in words for each named field that is less than `least`."""
  return [
    f"{name} must be at least {least}, got {getattr(instance, name)}"
    for name in names
    if getattr(instance, name) < least
  ]


def check(problems: Collection[str], prefix: str = "config: ") -> None:
  """Raise ValueError with all problems, if there are any."""
  if problems:
    raise ValueError(prefix + "; ".join(problems))


def resolve_dtype(name: str, platform: str) -> jnp.dtype:
  """The compute dtype of a setting on a platform.

  Args:
    name: one of `DTYPES`; "auto" is bfloat16 on accelerators, float32 on CPUs.
    platform: as JAX names it, such as "cpu".

  Returns:
    The dtype.
  """
  if name == AUTO:
    name = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(name)


def check_types(cls: Any, values: Mapping[str, Any], where: str) -> None:
  """Hold values to the numeric types of a dataclass's fields.

  Only `bool`, `int` and `float` are checked, alone, optional, or within tuples
  and mappings; what else a field declares is for its class to check.

  Args:
    cls: a dataclass.
    values: by name of field; those of unknown names are ignored.
    where: begins the name of a field in the message, such as `config`.

  Raises:
    ValueError: lists the first ten values of another type.
  """
  hints = typing.get_type_hints(cls)
  problems = [
    problem
    for field in dataclasses.fields(cls)
    if field.name in values
    for problem in _value_problems(
      hints[field.name], values[field.name], f"{where}.{field.name}".strip(".")
    )
  ]
  if problems:
    raise ValueError("; ".join(untrusted.shortened(problems)))


def _value_problems(hint: Any, value: Any, name: str) -> list[str]:
  """Problems of a value, and of values within it, with a declared type."""
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    found = [_value_problems(one, value, name) for one in inside]
    return min(found, key=len)
  if hint in _KINDS:
    if _fits(hint, value):
      return []
    finite = " other than NaN or infinity" if isinstance(value, float) else ""
    return [
      f"{name} must be {_KINDS[hint]}{finite if hint is float else ''}, got"
      f" {untrusted.printable(repr(value), 40)}"
    ]
  if hint is type(None):
    return [] if value is None else [f"{name} must be None, got {value!r:.40}"]
  if isinstance(origin, type) and issubclass(origin, Mapping):
    if not isinstance(value, Mapping):
      return []
    pairs = [(inside[1], v, f"{name}.{k}") for k, v in value.items()]
  elif hasattr(origin, "_fields") and isinstance(value, tuple):  # a pair
    pairs = [
      (inside[0], v, f"{name}.{k}")
      for k, v in zip(origin._fields, value)
      if v is not None
    ]
  elif isinstance(value, tuple | list) and inside:
    fixed = inside[-1] is not Ellipsis
    each = inside if fixed else inside[:1] * len(value)
    pairs = [
      (h, v, f"{name}[{i}]") for i, (h, v) in enumerate(zip(each, value))
    ]
  else:
    return []
  return [problem for pair in pairs for problem in _value_problems(*pair)]


def _fits(kind: type, value: Any) -> bool:
  """Whether a value is of a kind of `_KINDS`."""
  if kind is bool:
    return type(value) is bool
  number = numbers.Integral if kind is int else numbers.Real
  return (
    isinstance(value, number)
    and not isinstance(value, bool)
    and (kind is int or math.isfinite(value))
  )
