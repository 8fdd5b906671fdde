"""The first parameters of a training run, laid together by path.

Sources, each a directory of converted weights or the checkpoints of another
run, supply the paths that their patterns name; patterns match whole paths.
What no source supplies must be expressly allowed to be scratch. Everything is
checked against everything before anything is read (`plan`); then each device
reads its own part of each parameter, in the dtype asked for (`load`).

A fusion run from Wan2.2's video tower and a run of the audio tower:

  sources = (
    Source(path="weights/wan", take=tower("video")),
    Source(path="runs/audio_finetune/checkpoints", take=tower("audio")),
  )
  scratch = (FUSION_LAYERS,)
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from ovi_jax import storage
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.models import low_rank
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir

# The layers of cross-attention that listen to the other tower.
FUSION_LAYERS = r"blocks/(video|audio)/cross_attention/fusion_.*"
_CHECKPOINTS = "checkpoints"  # within the directory of a run

Init = Callable[[jax.Array], Any]
Shardings = jax.sharding.Sharding | Mapping[str, jax.sharding.Sharding]


def tower(name: str) -> tuple[str, ...]:
  """Patterns of all parameters of a tower, "video" or "audio"."""
  return (rf"{name}/.*", rf"blocks/{name}/.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A source of initial parameters.

  Attributes:
    path: directory of converted weights, of a run or its checkpoints (the
      newest is used), or of one checkpoint. Damaged ones are refused.
    include: patterns of the paths that it supplies.
    exclude: patterns of paths that it does not supply.
    use_ema: of checkpoints, use the EMA parameters, if there are any.
    component: in converted weights, the component with the parameters.
    groups: in a checkpoint, the branches of its state with parameters.
    ema: the branch with their EMA.
    quantized: whether 8-bit kernels with their scales are accepted.
  """

  path: str
  include: tuple[str, ...]
  exclude: tuple[str, ...] = ()
  use_ema: bool = True
  component: str = "fusion"
  groups: tuple[str, ...] = ("trained_params", "frozen_params")
  ema: str = "ema_params"
  quantized: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
  """A source that has been looked into.

  Attributes:
    name: for messages.
    shapes: of all its parameters, by path.
    digest: of its contents.
    read: paths, to shapes with shardings and dtypes -> arrays by path.
  """

  name: str
  shapes: Mapping[str, tuple[int, ...]]
  digest: str
  read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The source of each parameter, before anything is read.

  Attributes:
    shapes: shapes and dtypes of the parameters, by path.
    parts: the sources, each with the paths that it supplies.
    scratch: paths that are initialized randomly.
  """

  shapes: Mapping[str, jax.ShapeDtypeStruct]
  parts: Sequence[tuple[_Opened, Sequence[str]]]
  scratch: Sequence[str]

  @property
  def digest(self) -> str:
    """Digest of the contents of the sources, wherever they are."""
    digests = sorted(opened.digest for opened, _ in self.parts)
    if len(digests) == 1:
      return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()

  def only(self, wanted: Callable[[str], bool]) -> "Plan":
    """The same for some of the parameters."""
    return Plan(
      shapes={p: x for p, x in self.shapes.items() if wanted(p)},
      parts=[
        (opened, [p for p in paths if wanted(p)])
        for opened, paths in self.parts
      ],
      scratch=[p for p in self.scratch if wanted(p)],
    )

  def lines(self) -> list[str]:
    """A line of text for each source."""
    found = [
      f"{len(paths)} arrays from {part.name}" for part, paths in self.parts
    ]
    if self.scratch:
      found.append(f"{len(self.scratch)} arrays initialized at random")
    return found


def plan(
  shapes: Mapping[str, Any],
  sources: Sequence[Source],
  scratch: Sequence[str] = (),
) -> Plan:
  """Determine the source of each parameter.

  Reads headers and checksums of checkpoints, no parameters.

  Args:
    shapes: shapes and dtypes of the model's parameters, by path.
    sources: sources of parameters.
    scratch: patterns of paths that are initialized if no source supplies them.

  Returns:
    The plan.

  Raises:
    ValueError: lists all problems by path: a source is missing or damaged; a
      path exists only in the source or only in the model, or has another
      shape; a path has two sources, or none; a pattern is invalid or matches
      nothing.
  """
  _check_patterns(sources, scratch)
  problems = [f"scratch {p!r} matches nothing" for p in _idle(scratch, shapes)]
  parts: list[tuple[_Opened, list[str]]] = []
  suppliers: dict[str, list[str]] = {}
  # Paths that are in order, or already complained of.
  settled = _matched(scratch, shapes)
  for source in sources:
    settled |= _matched(source.include, shapes) - _matched(
      source.exclude, shapes
    )
    try:
      opened = _open(source)
    except ValueError as error:
      problems.append(str(error))
      continue
    paths, misfits = _fit(source, opened, shapes, scratch)
    problems += misfits
    parts.append((opened, paths))
    for path in paths:
      suppliers.setdefault(path, []).append(opened.name)
  problems += [
    f"{path}: supplied by {' and by '.join(names)}"
    for path, names in suppliers.items()
    if len(names) > 1
  ]
  problems += [
    f"{path}: no source supplies it, and it may not be scratch"
    for path in sorted(shapes.keys() - suppliers.keys() - settled)
  ]
  if len(problems) == 1:
    raise ValueError(f"initial parameters: {problems[0]}")
  if problems:
    listed = "".join(f"\n  {line}" for line in problems)
    raise ValueError(f"initial parameters: {len(problems)} problems:{listed}")
  new = [path for path in shapes if path not in suppliers]
  return Plan(shapes=dict(shapes), parts=parts, scratch=new)


def load(
  decided: Plan, init: Init, seed: int, shardings: Shardings
) -> dict[str, jax.Array]:
  """Read and initialize the parameters.

  Args:
    decided: see `plan`.
    init: from a random key to all of the model's parameters, nested; only
      those from scratch are computed.
    seed: of parameters from scratch. A path's values do not depend on which
      others are from scratch.
    shardings: one for all parameters, or one by path.

  Returns:
    Parameters by path, in the order of the plan's shapes.

  Raises:
    ValueError: a path has no sharding, a file has changed since `plan`, or
      `init` makes other shapes.
  """
  shapes = _placed(decided.shapes, shardings)
  found: dict[str, jax.Array] = {}
  for opened, paths in decided.parts:
    found |= opened.read({path: shapes[path] for path in paths})
  found |= _random(init, seed, {path: shapes[path] for path in decided.scratch})
  return {path: found[path] for path in decided.shapes}


def _check_patterns(sources: Sequence[Source], scratch: Sequence[str]) -> None:
  """Refuse patterns that are no regular expressions."""
  problems = []
  patterns = [p for s in sources for p in (*s.include, *s.exclude)]
  for pattern in (*patterns, *scratch):
    try:
      re.compile(pattern)
    except re.error as error:
      problems.append(f"{pattern!r} is not a regular expression: {error}")
  if problems:
    raise ValueError("initial parameters: " + "; ".join(problems))


def _fit(
  source: Source,
  opened: _Opened,
  shapes: Mapping[str, Any],
  scratch: Sequence[str],
) -> tuple[list[str], list[str]]:
  """The paths a source supplies, and what of it does not fit."""
  name = opened.name
  left = _matched(source.exclude, opened.shapes)
  offered = _matched(source.include, opened.shapes) - left
  wanted = _matched(source.include, shapes)
  unneeded = _matched(source.exclude, shapes) | _matched(scratch, shapes)
  everything = shapes.keys() | opened.shapes.keys()
  problems = [
    f"take {pattern!r} of {name} matches nothing"
    for pattern in _idle(source.include, everything)
  ]
  problems += [
    f"{path}: {name} has it, the model has not"
    for path in sorted(offered - shapes.keys())
  ]
  problems += [
    f"{path}: the model has it, {name} has not"
    for path in sorted(wanted - opened.shapes.keys() - unneeded)
  ]
  fitting = []
  for path in sorted(offered & shapes.keys()):
    ours, theirs = tuple(shapes[path].shape), opened.shapes[path]
    if ours == theirs:
      fitting.append(path)
    else:
      problems.append(f"{path}: {name} has {theirs}, the model {ours}")
  return fitting, problems


def _matched(patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
  """The paths that one of the patterns matches as a whole."""
  compiled = [re.compile(pattern) for pattern in patterns]
  return {p for p in paths if any(c.fullmatch(p) for c in compiled)}


def _idle(patterns: Iterable[str], paths: Iterable[str]) -> list[str]:
  """The patterns that match no path."""
  paths = list(paths)
  return [p for p in patterns if not _matched([p], paths)]


def _open(source: Source) -> _Opened:
  """Open a source: a directory of weights or a run's checkpoints."""
  path = storage.locate(source.path)
  if storage.exists(path / weights_dir.MANIFEST):
    return _open_weights(source, path)
  # Converted weights can be there; checkpoints cannot.
  workdirs.check_scheme(path, f"init_from: no {weights_dir.MANIFEST} in it")
  of_run = (path / _CHECKPOINTS).is_dir()  # even if it is named by a number
  if reader.is_step(path.name) and path.is_dir() and not of_run:
    return _open_checkpoint(source, path)
  # A run's directory, or that of its checkpoints.
  for folder in (path, path / _CHECKPOINTS):
    for step in reader.steps(folder):
      return _open_checkpoint(source, folder / str(step))
  what = "found neither" if path.is_dir() else "there is no such directory"
  raise ValueError(
    f"{path}: expected converted weights ({weights_dir.MANIFEST}) or training"
    f" checkpoints, {what}"
  )


def _open_weights(source: Source, path: storage.AnyPath) -> _Opened:
  """A directory of converted weights."""
  manifest = weights_dir.read(path, needs=(source.component,))
  file = weights_dir.component_file(path, source.component)
  if not source.quantized:
    weights_dir.check_not_quantized(
      path, (source.component,), "of which only a LoRA can be trained"
    )
  shapes = {p: tuple(s.shape) for p, s in weights.shapes(file).items()}

  def read(targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for dtype in {target.dtype for target in targets.values()}:
      chosen = tuple(p for p, t in targets.items() if t.dtype == dtype)
      tree = weights.load(
        file, lambda p, _: targets[p].sharding, dtype, prefix=chosen
      )
      found |= traverse_util.flatten_dict(tree, sep="/")
    return found

  digest = manifest.digests[source.component]
  return _Opened(name=str(path), shapes=shapes, digest=digest, read=read)


def _open_checkpoint(source: Source, path: storage.AnyPath) -> _Opened:
  """A checkpoint of a run, verified."""
  try:
    found = reader.read_info(path)
    reader.verify(found)
  except ValueError as error:
    raise ValueError(
      f"{path}: the checkpoint is damaged ({error}); name another one"
    ) from error
  branches = [*source.groups]
  if source.use_ema:
    branches.append(source.ema)
  names: dict[str, str] = {}
  # Later branches take precedence: the EMA over the parameters.
  for branch in branches:
    head = f"{branch}/"
    inside = (p for p in found.leaves if p.startswith(head))
    names |= {p.removeprefix(head): p for p in inside}
  if not names:
    tops = sorted({p.split("/")[0] for p in found.leaves})
    raise ValueError(
      f"{path}: expected parameters under {branches}, found only {tops}"
    )
  if all(map(low_rank.is_factor, names)):
    raise ValueError(
      f"{path}: checkpoints of a LoRA lack the weights that it adapts; name"
      " these weights, or merge the LoRA into them first (python -m"
      " ovi_jax.lora.merge)"
    )
  shapes = {p: found.leaves[name].shape for p, name in names.items()}

  def read(targets: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    arrays = reader.read(found, {names[p]: t for p, t in targets.items()})
    return {p: arrays[names[p]] for p in targets}

  listed = json.dumps(found.checksums, sort_keys=True, default=str)
  digest = hashlib.sha256(listed.encode()).hexdigest()
  return _Opened(name=str(path), shapes=shapes, digest=digest, read=read)


def _placed(
  shapes: Mapping[str, Any], shardings: Shardings
) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes with their shardings."""
  if isinstance(shardings, jax.sharding.Sharding):
    shardings = dict.fromkeys(shapes, shardings)
  if missing := sorted(shapes.keys() - shardings.keys()):
    raise ValueError(f"expected a sharding for each path, none: {missing}")
  return {
    p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[p])
    for p, s in shapes.items()
  }


def _random(
  init: Init, seed: int, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Initialise some parameters; the rest is dropped by the compiler."""
  if not shapes:
    return {}

  def chosen(key: jax.Array) -> dict[str, jax.Array]:
    flat: dict[str, Any] = traverse_util.flatten_dict(init(key), sep="/")
    return {p: jnp.asarray(flat[p], s.dtype) for p, s in shapes.items()}

  made = jax.eval_shape(chosen, jax.random.key(0))
  if other := [p for p, s in shapes.items() if made[p].shape != s.shape]:
    raise ValueError(f"init makes other shapes than the plan's: {other}")
  place: Any = {p: s.sharding for p, s in shapes.items()}
  return jax.jit(chosen, out_shardings=place)(jax.random.key(seed))
