"""Config files: where they are, and the flag that reads one.

A config file is a Python file with `get_config()` or `get_config(arg)`, which
returns a ConfigDict. The package ships those of the repository's `configs/`;
they have names, such as `fusion`. A flag's value is NAME or NAME:ARG for a
shipped file, PATH.py or PATH.py:ARG for any other; `--config.FIELD=VALUE`
changes a field of what it returns.
"""

import importlib.util
import inspect
import pathlib
import sys
import types
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from ovi_jax import config as config_lib

SUFFIX = ".py"
_PACKAGE = pathlib.Path(__file__).resolve().parent
flags.disclaim_key_flags()  # a flag belongs to the module that calls `define`


class ConfigFileError(ValueError):
  """A config file is missing, or refuses its argument."""


def directory() -> pathlib.Path:
  """Where the shipped files are: in the installed package, or in the clone."""
  installed = _PACKAGE / "configs"
  return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
  """The names of the shipped files, sorted, such as "fusion"."""
  root = directory()
  return sorted(
    path.relative_to(root).with_suffix("").as_posix()
    for path in root.rglob(f"*{SUFFIX}")
    if path.stem != "__init__"
  )


def locate(name: str) -> pathlib.Path:
  """The file of a name or a path.

  Args:
    name: of a shipped file, or a path that ends in .py.

  Raises:
    ConfigFileError: there is none; lists the shipped names.
  """
  known = names()
  shipped = f"shipped configs are {', '.join(known)}"
  if name.endswith(SUFFIX):
    if not (path := pathlib.Path(name)).is_file():
      raise ConfigFileError(f"{name}: no such config file; {shipped}")
    return path
  if name not in known:
    near = config_lib.nearest(name, known)
    raise ConfigFileError(
      f"config {name!r} is unknown{near}; expected a path that ends in {SUFFIX}"
      f" or a name; {shipped}"
    )
  return directory() / f"{name}{SUFFIX}"


def load(value: str) -> ml_collections.ConfigDict:
  """The config of a flag's value.

  Args:
    value: NAME, NAME:ARG, PATH.py or PATH.py:ARG.

  Raises:
    ConfigFileError: there is no such file, it defines no config or refuses the
      argument, or a file that it reads is missing.
  """
  name, colon, arg = value.partition(":")
  path = locate(name)
  try:
    get_config = getattr(_module(path), "get_config", None)
    if get_config is None:
      raise ConfigFileError(f"{path} defines no function get_config")
    if colon and not inspect.signature(get_config).parameters:
      raise ConfigFileError(f"{name} takes no argument, got :{arg}")
    config = get_config(arg) if colon else get_config()
  except (OSError, ValueError) as error:
    raise ConfigFileError(str(error)) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise ConfigFileError(
      f"get_config of {path} must return a ConfigDict, got"
      f" {type(config).__name__}"
    )
  return config


def _module(path: pathlib.Path) -> types.ModuleType:
  """Run a config file."""
  name = f"{path.stem}_config"
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def define(name: str = "config", default: str | None = None) -> None:
  """Define the flag that reads a config file.

  Args:
    name: of the flag.
    default: its value where none is given, see `load`.
  """
  holder = config_flags.DEFINE_config_file(
    name,
    help_string="Config: a path that ends in .py, or one of"
    f" {', '.join(names())}; :ARG after it is the config's argument.",
  )
  flag: Any = flags.FLAGS[name]
  flag.parser = _Parser()
  if default is not None:
    flags.set_default(holder, default)


class _Parser(flags.ArgumentParser):
  """Loads with `load`; the library's own knows paths only."""

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    return load(argument).lock()

  def flag_type(self) -> str:
    return "config"
