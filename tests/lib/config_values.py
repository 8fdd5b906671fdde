"""Sampling configs as the goldens were made, and values of wrong types."""

import functools
import importlib.util
import json
import pathlib

import ml_collections

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = json.loads((ROOT / "tests/goldens/prompts.json").read_text())


def sample_config(**changes):
  """The config of `configs/sample.py` as the goldens were made."""
  spec = importlib.util.spec_from_file_location(
    "sample_config", ROOT / "configs/sample.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  values = module.get_config()
  values.num_steps, values.slg_layer = 8, 1
  with values.unlocked():
    values.update(changes)
  return values


def plain_config(config, field: str, value) -> ml_collections.FrozenConfigDict:
  """A config with a value that a ConfigDict would convert."""
  values = config.to_dict()
  *folders, name = field.split(".")
  functools.reduce(lambda v, key: v[key], folders, values)[name] = value
  return ml_collections.FrozenConfigDict(values)
