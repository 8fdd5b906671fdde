"""A curation run's settings: the flags' config, checked and frozen once."""

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

from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

KINDS = CLIP, BATCH, GLOBAL, SINK = "clip", "batch", "global", "sink"
_STAGES = "ovi_jax.curation.stages"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """A stage with its config.

  Attributes:
    name: in facts, reports and names of folders.
    module: where it is, see `ovi_jax.curation.stage`.
    config: the module's `Config`.
    key: hash of name, version, config and of the key of the stage before.
  """

  name: str
  module: str
  config: Any
  key: str

  @property
  def folder(self) -> str:
    """Of its files, within the run's."""
    return f"{self.name}-{self.key}"

  @property
  def kind(self) -> str:
    """One of `KINDS`."""
    return _import_stage(self.module).KIND

  @property
  def thresholds(self) -> Mapping[str, tuple[str, str]]:
    """Reason -> (score, field of the config)."""
    return getattr(_import_stage(self.module), "THRESHOLDS", {})

  def missing_requirements(self) -> list[str]:
    """What it needs and has not here, a sentence each."""
    return _missing_requirements(self.module, self.config)

  def load(self) -> Any:
    """The stage's function; ValueError names what it needs and has not."""
    return _import_stage(self.module).load(self.config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
  """Stages that go over a shard together, so that media are decoded once.

  Attributes:
    name: for flags and reports.
    first_stage: place of its first stage among those of the run.
    stages: at least one.
  """

  name: str
  first_stage: int
  stages: tuple[Stage, ...]

  @property
  def kind(self) -> str:
    """The form of its stages."""
    return self.stages[0].kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run.

  Attributes:
    inputs: files, folders, globs, or lists of them (`@FILE`, a line each);
      none where they were numbered by an earlier run.
    out: folder of all that the run writes; local, or a URL.
    shard_size: files in a shard; a shard is what a crash repeats.
    append: number inputs that an earlier run had not as further shards.
    report: write report.html in the end (extra `[curate]`).
    passes: in order.
    num_workers: processes; 0 for one a core. A stage of form "shard" has one, as
      it has an accelerator or a network to itself.
    timeout: seconds that a stage may take for one clip.
    stage_timeouts: stage -> seconds, for those that need others; of a stage of form
      "shard", for all clips that it is given at once.
    max_failure_rate: share of a stage's clips in a shard that may fail, rounded up;
      beyond it the shard fails.
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
    strange = sorted(set(self.stage_timeouts) - set(names))
    if strange:
      problems.append(
        f"stage_timeouts: there is no stage {', '.join(strange)}; known are"
        f" {', '.join(names)}"
      )
    if not 0 <= self.max_failure_rate <= 1:
      problems.append(
        f"max_failure_rate: expected a fraction in [0, 1], got {self.max_failure_rate}"
      )
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  @property
  def stages(self) -> tuple[Stage, ...]:
    """Of all passes, in order."""
    return tuple(stage for part in self.passes for stage in part.stages)

  def num_processes(self, part: Pass) -> int:
    """Worker processes of a pass."""
    if part.kind != CLIP:
      return 1
    # Where the system can tell, those this process may use.
    cores = getattr(
      os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1)
    )
    return self.num_workers or len(cores(0))

  def time_limit(self, stage: str, count: int = 1) -> float:
    """How long a stage may take for so many clips at once."""
    return self.stage_timeouts.get(stage, self.timeout * count)

  def shard_files(self, place: int, shard: int) -> shard_store.ShardFiles:
    """Of a stage's shard, by the stage's place; -1 are the inputs."""
    name = self.stages[place].folder if place >= 0 else shard_store.INPUTS
    return shard_store.ShardFiles(
      folder=storage.join(self.out, name), shard=shard
    )

  def find_pass(self, name: str) -> Pass:
    """The pass of a name; ValueError names those there are."""
    for part in self.passes:
      if part.name == name:
        return part
    raise ValueError(
      f"there is no pass {name!r}; choose from"
      f" {', '.join(part.name for part in self.passes)}"
    )

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config.

    Raises:
      ValueError: a field is missing or unknown (with those known), a stage is
        not there, or a value cannot be.
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
    return cls(**values, passes=passes)


def default_config(name: str) -> dict[str, Any]:
  """The fields of a stage's Config with their defaults, for config files."""
  config = _import_stage(_module_path(name)).Config
  types = typing.get_type_hints(config)
  # Not of an instance: a stage may want what has no default that would do.
  return {
    field.name: _config_value(_default(field), types[field.name])
    for field in dataclasses.fields(config)
  }


def _parse_passes(
  passes: Sequence[tuple[str, Sequence[str]]],
  configs: Mapping[str, Mapping[str, Any]],
  skip: Sequence[str],
) -> Iterator[Pass]:
  """The passes that are left without the stages to skip."""
  names = [_stage_name(name) for _, stages in passes for name in stages]
  _check_names("skip", skip, names)
  _check_names("stages", configs, names)
  twice = {name for name in names if names.count(name) > 1}
  if twice or len({name for name, _ in passes}) < len(passes):
    raise ValueError(
      "config: passes: names of passes and of stages may come once, got"
      f" {passes}"
    )
  count, key = 0, ""
  problems: list[str] = []
  lacking: list[str] = []
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
        # What is missing says the same, and what to do.
        problems += [] if missing else [str(error)]
      lacking += missing
    if stages:
      yield _check_pass(
        Pass(name=name, first_stage=count, stages=tuple(stages))
      )
    count += len(stages)
  if failed:
    # What any stage lacks is said at once.
    raise ValueError(format_problems([*problems, *lacking]))


def _check_pass(part: Pass) -> Pass:
  """The pass; ValueError if its stages cannot go together."""
  others = [stage for stage in part.stages if stage.kind != CLIP]
  if others and len(part.stages) > 1:
    raise ValueError(
      f"config: passes: {others[0].name} sees many clips at once and must be"
      f" the only stage of its pass, got {[s.name for s in part.stages]}"
    )
  return part


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
  """A stage's Config; ValueError if a field is unknown or cannot be."""
  module = _import_stage(_module_path(name))
  known = [f.name for f in dataclasses.fields(module.Config)]
  _check_names(f"stages.{_stage_name(name)}", fields, known)
  if module.KIND not in KINDS:
    raise ValueError(f"stage {name}: KIND {module.KIND!r} is none of {KINDS}")
  try:
    return module.Config(**{n: _to_tuples(v) for n, v in fields.items()})
  except ValueError as error:
    raise ValueError(f"config.stages.{_stage_name(name)}: {error}") from error


def format_problems(problems: Sequence[str]) -> str:
  """One problem as a line, several as a list; each once."""
  every = list(dict.fromkeys(problems))
  if len(every) == 1:
    return every[0]
  return f"{len(every)} things are missing or wrong:" + "".join(
    f"\n  {problem}" for problem in every
  )


def _missing_requirements(path: str, config: Any) -> list[str]:
  """What a stage needs and has not here."""
  return list(
    getattr(_import_stage(path), "missing_requirements", lambda _: ())(config)
  )


def _stage_name(name: str) -> str:
  """A stage's name, of itself or of the path of its module."""
  return name.rpartition(".")[2]


def _module_path(name: str) -> str:
  """Of a stage's module; a name with dots is one."""
  return name if "." in name else f"{_STAGES}.{name}"


def _import_stage(path: str) -> ModuleType:
  """A stage's module; ValueError if there is none."""
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
  """Lists, as JSON and flags have them, as tuples."""
  if isinstance(value, list | tuple):
    return tuple(_to_tuples(part) for part in value)
  return value


def _default(field: dataclasses.Field) -> Any:
  """Of a field; "" where it has none."""
  if field.default is not dataclasses.MISSING:
    return field.default
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return ""


def _config_value(value: Any, hint: Any) -> Any:
  """A value as ConfigDict takes it; None keeps the type that it stands for."""
  if value is None:
    return config_dict.placeholder(typing.get_args(hint)[0])
  return dict(value) if isinstance(value, Mapping) else value


def _check_names(
  where: str, given: Any, known: Sequence[str], exact: bool = False
) -> None:
  """ValueError that names what is unknown, or missing if all are needed."""
  unknown = sorted(set(given) - set(known))
  missing = sorted(set(known) - set(given)) if exact else []
  if unknown or missing:
    found = [f"unknown {', '.join(unknown)}"] * bool(unknown)
    found += [f"missing {', '.join(missing)}"] * bool(missing)
    raise ValueError(
      f"{where}: {'; '.join(found)}; known are {', '.join(known)}"
    )
