"""Numbers in settings: `True` is no 1, and a text is no number.

Python's bool is an int, so `seed=True` would pass every comparison. Values of
configs, of Python callers and of files are held to the declared types before
they are compared.
"""

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

from ovi_jax import untrusted

_SHOWN = 10
_KINDS = {
  bool: "True or False",
  int: "a whole number",
  float: "a number",
}


def check(cls: Any, values: Mapping[str, Any], where: str) -> None:
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
  problems = problems_of(cls, values, where)
  if problems:
    more = len(problems) - _SHOWN
    said = problems[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])
    raise ValueError("; ".join(said))


def problems_of(cls: Any, values: Mapping[str, Any], where: str) -> list[str]:
  """As `check`, but returns the problems, a sentence each."""
  hints = typing.get_type_hints(cls)
  return [
    problem
    for field in dataclasses.fields(cls)
    if field.name in values
    for problem in _problems(
      hints[field.name], values[field.name], f"{where}.{field.name}".strip(".")
    )
  ]


def _problems(hint: Any, value: Any, name: str) -> list[str]:
  """What is wrong with a value of a declared type, within it too."""
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    found = [_problems(one, value, name) for one in inside]
    return min(found, key=len)
  if hint in _KINDS:
    if _fits(hint, value):
      return []
    return [
      f"{name} must be {_KINDS[hint]}, got"
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
  return [problem for pair in pairs for problem in _problems(*pair)]


def _fits(kind: type, value: Any) -> bool:
  """Whether a value is of a kind of `_KINDS`."""
  if kind is bool:
    return type(value) is bool
  number = numbers.Integral if kind is int else numbers.Real
  return isinstance(value, number) and not isinstance(value, bool)
