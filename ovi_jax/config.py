"""From a config, or JSON, to frozen dataclasses: fields, choices and dtypes.

Every command's settings are built here, so that a missing, misspelt or unknown
field reads the same everywhere. Used by `training.settings`,
`training.codecs.settings` and `sampling.settings`.
"""

import dataclasses
import difflib
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import TypeVar

import jax.numpy as jnp

T = TypeVar("T")

AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")


def build(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
  """An instance of a frozen dataclass from its fields by name.

  Args:
    cls: the dataclass.
    values: all fields without a default, and any others.
    where: dotted path of the dataclass within the config; "" for the config.

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
  return cls(**values)


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
  """
  if name == AUTO:
    name = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(name)
