"""The settings of a curation run: the config, validated and frozen."""

import dataclasses
import hashlib
import importlib
import json
import os
import typing
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import ml_collections
from ml_collections import config_dict

from ovi_jax import config as config_lib
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

KINDS = CLIP, BATCH, GLOBAL, SINK = "clip", "batch", "global", "sink"
_STAGES = "ovi_jax.curation.stages"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage with its config.

  Attributes:
    name: name in facts, reports and folder names.
    module: dotted path of its module, see `ovi_jax.curation.stage`.
    config: an instance of the module's `Config`.
    key: hash of name, version, config and the previous stage's key.
  """

  name: str
  module: str
  config: Any
  key: str

  @property
  def folder(self) -> str:
    """Name of its folder in `out`."""
    return f"{self.name}-{self.key}"

  @property
  def kind(self) -> str:
    """One of `KINDS`."""
    return _import_stage(self.module).KIND

  @property
  def thresholds(self) -> Mapping[str, tuple[str, str]]:
    """Reason -> (score, config field)."""
    return getattr(_import_stage(self.module), "THRESHOLDS", {})

  def missing_requirements(self) -> list[str]:
    """Missing requirements, one sentence each."""
    return _missing_requirements(self.module, self.config)

  def load(self) -> Any:
    """The stage's function; ValueError if a requirement is missing."""
    return _import_stage(self.module).load(self.config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """Stages that go over a shard together, so that media are decoded once.

  Attributes:
    name: for flags and reports.
    first_stage: index of its first stage among all stages of the run.
    stages: at least one.
  """

  name: str
  first_stage: int
  stages: tuple[Stage, ...]

  @property
  def kind(self) -> str:
    """The kind of its stages."""
    return self.stages[0].kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of a run.

  Attributes:
    inputs: files, folders, globs, or lists (`@FILE`, one name per line); empty
      to use the manifest of an earlier run.
    out: output folder, local or a URL.
    shard_size: input files per shard; an interrupted shard is repeated.
    append: add inputs that are not in the manifest as further shards.
    report: write report.html at the end (extra `[curate]`).
    passes: passes, in order.
    num_workers: worker processes; 0 for one per core. A "batch" stage has one,
      which uses an accelerator or the network.
    timeout: time limit per stage and clip, seconds.
    stage_timeouts: stage -> seconds, overrides `timeout`; for a "batch" stage,
      the limit of a whole batch.
    max_failure_rate: fraction of a stage's clips in a shard that may fail,
      rounded up; above it the shard fails.
  """

  inputs: tuple[str, ...]
  out: str
  shard_size: int
  append: bool
  report: bool
  passes: tuple[Pass, ...]
  num_workers: int
  timeout: float
  stage_timeouts: Mapping[str, float]
  max_failure_rate: float

  def __post_init__(self):
    problems = []
    if not self.out:
      problems.append("out: give --config.out=DIR, a folder for the run")
    if not self.passes:
      problems.append("passes: expected at least one stage, got none")
    if self.shard_size < 1:
      problems.append(f"shard_size must be at least 1, got {self.shard_size}")
    if self.num_workers < 0:
      problems.append(
        f"num_workers must be 0 (all cores) or more: {self.num_workers}"
      )
    if not min([self.timeout, *self.stage_timeouts.values()]) > 0:
      problems.append(
        "timeout, stage_timeouts: expected seconds above 0, got"
        f" {self.timeout} and {dict(self.stage_timeouts)}"
      )
    names = [stage.name for stage in self.stages]
    unknown = sorted(set(self.stage_timeouts) - set(names))
    if unknown:
      problems.append(
        f"stage_timeouts: there is no stage {', '.join(unknown)}; known are"
        f" {', '.join(names)}"
      )
    if not 0 <= self.max_failure_rate <= 1:
      problems.append(
        "max_failure_rate: expected a fraction in [0, 1], got"
        f" {self.max_failure_rate}"
      )
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  @property
  def stages(self) -> tuple[Stage, ...]:
    """The stages of all passes, in order."""
    return tuple(stage for pass_ in self.passes for stage in pass_.stages)

  def num_processes(self, pass_: Pass) -> int:
    """Number of worker processes of a pass."""
    if pass_.kind != CLIP:
      return 1
    # The cores that this process may use, where the system reports them.
    cores = getattr(
      os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1)
    )
    return self.num_workers or len(cores(0))

  def time_limit(self, stage: str, count: int = 1) -> float:
    """Time limit of a stage for a number of clips, in seconds."""
    return self.stage_timeouts.get(stage, self.timeout * count)

  def shard_files(self, stage_index: int, shard: int) -> shard_store.ShardFiles:
    """Of a stage's shard, by the stage's stage_index; -1 are the inputs."""
    name = (
      self.stages[stage_index].folder
      if stage_index >= 0
      else shard_store.INPUTS
    )
    return shard_store.ShardFiles(
      folder=storage.join(self.out, name), shard=shard
    )

  def find_pass(self, name: str) -> Pass:
    """The pass of a name; ValueError lists the known ones."""
    for pass_ in self.passes:
      if pass_.name == name:
        return pass_
    raise ValueError(
      f"there is no pass {name!r}; choose from"
      f" {', '.join(pass_.name for pass_ in self.passes)}"
    )

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """Build settings from a config.

    Raises:
      ValueError: a field is missing or unknown, a stage does not exist, or a
        value is invalid.
    """
    values = config.to_dict()
    fields = [f.name for f in dataclasses.fields(cls)]
    _check_names("config", values, [*fields, "stages", "skip"], exact=True)
    configs, skip = values.pop("stages"), values.pop("skip")
    passes = tuple(_parse_passes(values.pop("passes"), configs, skip))
    values["stage_timeouts"] = {
      name: seconds
      for name, seconds in values["stage_timeouts"].items()
      if name not in skip
    }
    values["inputs"] = tuple(name for name in values["inputs"] if name)
    config_lib.check_types(cls, values, "config")
    return cls(**values, passes=passes)


def default_config(name: str) -> dict[str, Any]:
  """The fields of a stage's Config with their defaults, for config files."""
  config = _import_stage(_module_path(name)).Config
  types = typing.get_type_hints(config)
  # Not from an instance: some defaults are invalid until they are set.
  return {
    field.name: _config_value(_default(field), types[field.name])
    for field in dataclasses.fields(config)
  }


def _parse_passes(
  passes: Sequence[tuple[str, Sequence[str]]],
  configs: Mapping[str, Mapping[str, Any]],
  skip: Sequence[str],
) -> Iterator[Pass]:
  """The passes without skipped stages."""
  names = [_stage_name(name) for _, stages in passes for name in stages]
  _check_names("skip", skip, names)
  _check_names("stages", configs, names)
  twice = {name for name in names if names.count(name) > 1}
  if twice or len({name for name, _ in passes}) < len(passes):
    raise ValueError(
      f"config: passes: names of passes and stages must be unique, got {passes}"
    )
  count, key = 0, ""
  problems: list[str] = []
  missing_all: list[str] = []
  failed = False
  for name, wanted in passes:
    stages = []
    for each in wanted:
      if _stage_name(each) in skip:
        continue
      fields = configs.get(_stage_name(each), {})
      missing: list[str] = []
      try:
        missing = _missing_requirements(
          _module_path(each), _make_config(each, fields)
        )
        stages.append(_make_stage(each, fields, key))
        key = stages[-1].key
      except ValueError as error:
        failed = True
        # The list of missing requirements says what to do.
        problems += [] if missing else [str(error)]
      missing_all += missing
    if stages:
      yield _check_pass(
        Pass(name=name, first_stage=count, stages=tuple(stages))
      )
    count += len(stages)
  if failed:
    # Report all problems together.
    raise ValueError(format_problems([*problems, *missing_all]))


def _check_pass(pass_: Pass) -> Pass:
  """The pass; ValueError if its stages cannot be combined."""
  others = [stage for stage in pass_.stages if stage.kind != CLIP]
  if others and len(pass_.stages) > 1:
    raise ValueError(
      f"config: passes: {others[0].name} processes many clips at once and must"
      f" be the only stage of its pass, got {[s.name for s in pass_.stages]}"
    )
  return pass_


def _make_stage(name: str, fields: Mapping[str, Any], before: str) -> Stage:
  """A stage from the fields of its config."""
  module, short = _import_stage(_module_path(name)), _stage_name(name)
  frozen = _make_config(name, fields)
  try:
    identity = getattr(module, "fingerprint", dataclasses.asdict)(frozen)
  except ValueError as error:
    raise ValueError(f"config.stages.{short}: {error}") from error
  hashed = json.dumps([short, module.VERSION, identity, before], sort_keys=True)
  key = hashlib.sha256(hashed.encode()).hexdigest()[:12]
  return Stage(name=short, module=_module_path(name), config=frozen, key=key)


def _make_config(name: str, fields: Mapping[str, Any]) -> Any:
  """A stage's Config; ValueError if a field is unknown or invalid."""
  module = _import_stage(_module_path(name))
  known = [f.name for f in dataclasses.fields(module.Config)]
  _check_names(f"stages.{_stage_name(name)}", fields, known)
  if module.KIND not in KINDS:
    raise ValueError(
      f"stage {name}: expected a KIND of {KINDS}, got {module.KIND!r}"
    )
  frozen = {n: _to_tuples(v) for n, v in fields.items()}
  config_lib.check_types(
    module.Config, frozen, f"config.stages.{_stage_name(name)}"
  )
  try:
    return module.Config(**frozen)
  except ValueError as error:
    raise ValueError(f"config.stages.{_stage_name(name)}: {error}") from error


def format_problems(problems: Sequence[str]) -> str:
  """One problem as a line, several as a list, without duplicates."""
  every = list(dict.fromkeys(problems))
  if len(every) == 1:
    return every[0]
  return f"{len(every)} problems:" + "".join(
    f"\n  {problem}" for problem in every
  )


def _missing_requirements(path: str, config: Any) -> list[str]:
  """Missing requirements of a stage."""
  return list(
    getattr(_import_stage(path), "missing_requirements", lambda _: ())(config)
  )


def _stage_name(name: str) -> str:
  """A stage's name, from its name or the dotted path of its module."""
  return name.rpartition(".")[2]


def _module_path(name: str) -> str:
  """Dotted path of a stage's module."""
  return name if "." in name else f"{_STAGES}.{name}"


def _import_stage(path: str) -> ModuleType:
  """A stage's module; ValueError if it does not exist."""
  try:
    return importlib.import_module(path)
  except ModuleNotFoundError as error:
    if not (error.name and path.startswith(error.name)):
      raise
    raise ValueError(
      f"there is no stage {path}; expected a module of {_STAGES}, or the dotted"
      " path of one of your own"
    ) from error


def _to_tuples(value: Any) -> Any:
  """Convert lists from JSON and flags to tuples."""
  if isinstance(value, list | tuple):
    return tuple(_to_tuples(pass_) for pass_ in value)
  return value


def _default(field: dataclasses.Field) -> Any:
  """The default of a field; "" if it has none."""
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return ""


def _config_value(value: Any, hint: Any) -> Any:
  """A value for ConfigDict; None becomes a typed placeholder."""
  if value is None:
    return config_dict.placeholder(typing.get_args(hint)[0])
  return dict(value) if isinstance(value, Mapping) else value


def _check_names(
  where: str, given: Any, known: Sequence[str], exact: bool = False
) -> None:
  """ValueError if names are unknown, or missing if `exact`."""
  unknown = sorted(set(given) - set(known))
  missing = sorted(set(known) - set(given)) if exact else []
  if unknown or missing:
    found = [f"unknown {', '.join(unknown)}"] * bool(unknown)
    found += [f"missing {', '.join(missing)}"] * bool(missing)
    raise ValueError(
      f"{where}: {'; '.join(found)}; known are {', '.join(known)}"
    )
