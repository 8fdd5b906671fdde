"""Checkpoints of a training run: saved while it runs on, restored by it.

One checkpoint holds the training state (any pytree of arrays, random keys and
numbers), the state of every process' input, and metadata. A thin layer over
Orbax's `CheckpointManager`, which copies the state and writes it in the
background, and names a checkpoint only when it is complete. Added here:
checksums, the search for the newest checkpoint that can be read, and errors
that say what differs.
"""

import contextlib
import dataclasses
import errno
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from flax import traverse_util
from orbax import checkpoint as ocp

from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import tree_spec
from ovi_jax.sharding import distributed

_TEMPORARY = ocp.path.atomicity.TMP_DIR_SUFFIX
# Orbax adds the time of the commit to it as its last act.
_UNFINISHED = ("_CHECKPOINT_METADATA",)
_COMMITTED = "commit_success.txt"
_DAMAGED = ".damaged"
_FULL = ("no space left", "disk quota exceeded", "file too large")

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How checkpoints are kept.

  Attributes:
    directory: of the checkpoints and nothing else.
    max_to_keep: how many of the newest are kept. With one, nothing is left to
      fall back on when it is damaged.
    keep_period: also keep those of steps that it divides; 0 for none.
    asynchronous: write in the background.
    timeout: seconds a save may take before it counts as failed.
    compress: make the files smaller by zstd. Weights hardly shrink.
  """

  directory: str
  max_to_keep: int = 2
  keep_period: int = 0
  asynchronous: bool = True
  timeout: int = 3600
  compress: bool = False

  def __post_init__(self):
    if self.max_to_keep < 1 or self.keep_period < 0 or self.timeout < 1:
      raise ValueError(
        "expected max_to_keep and timeout from 1 and keep_period from 0, got"
        f" {self.max_to_keep}, {self.timeout}, {self.keep_period}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
  """What a checkpoint gave back.

  Attributes:
    step: at which it was saved.
    state: the training state, in the target's tree and shardings.
    iterators: input state of each process that saved; bytes or JSON.
    metadata: JSON that was saved along.
  """

  step: int
  state: Any
  iterators: tuple[Any, ...]
  metadata: Mapping[str, Any]

  @property
  def iterator(self) -> Any:
    """The input state of this process.

    Raises:
      ValueError: another number of processes saved it, and each its own.
    """
    if len(self.iterators) == jax.process_count():
      return self.iterators[jax.process_index()]
    if any(each != self.iterators[0] for each in self.iterators):
      raise ValueError(
        f"the checkpoint of step {self.step} holds other input states of each"
        f" of {len(self.iterators)} processes, this run has"
        f" {jax.process_count()}; restart with as many"
      )
    return self.iterators[0]


class Manager:
  """Saves and restores the checkpoints of one run; use it in a `with` block.

  One process group at a time: opening clears away what a killed run left.
  """

  def __init__(self, config: Config, log: Log = logging.warning):
    """Open the directory.

    Args:
      config: see `Config`.
      log: called with a line for each warning.

    Raises:
      OSError: the directory cannot be made or written.
    """
    self.directory = pathlib.Path(config.directory).absolute()
    self._log = log
    self._asynchronous = config.asynchronous
    self._saving: int | None = None
    if jax.process_index() == 0:
      self.directory.mkdir(parents=True, exist_ok=True)
      _clear(self.directory, log)
    distributed.barrier("opened")
    self._orbax = _open(config, self.directory, self._seal)

  def __enter__(self) -> "Manager":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if kind is None:
      self.close()
      return
    # The error on its way out matters more than one of the last save.
    try:
      self.close()
    except (OSError, ValueError, RuntimeError) as error:
      self._log(f"checkpoints: {error}")

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, newest first."""
    return reader.steps(self.directory)

  def save(
    self,
    step: int,
    state: Any,
    iterator: Any = None,
    metadata: Mapping[str, Any] | None = None,
  ) -> bool:
    """Save; waits for the save before it, then only until the state is copied.

    Args:
      step: from 0.
      state: pytree of jax and numpy arrays, random keys and Python numbers. It
        may be donated afterwards.
      iterator: input state of this process: bytes, or anything JSON.
      metadata: JSON.

    Returns:
      Whether it was saved; False if there is a checkpoint of this step.

    Raises:
      OSError: no space is left for it, or was for the save before it.
      ValueError: something cannot be saved, or the save before it failed.
    """
    flat = tree_spec.flatten(state)
    meta = reader.description(step, flat, iterator, metadata or {})
    arrays = tree_spec.stored_arrays(flat)
    self.wait()
    if step in self.steps():
      return False
    _check_room(self.directory, arrays)
    item = traverse_util.unflatten_dict(arrays, sep="/")
    arguments = ocp.args.Composite(
      **{
        reader.STATE: ocp.args.PyTreeSave(item),
        reader.META: ocp.args.JsonSave(meta),
      }
    )
    self._saving = step
    with self._explained():
      self._orbax.save(step, args=arguments, force=True)
    if not self._asynchronous:
      self.wait()
    return True

  def wait(self) -> None:
    """Wait until the last save is complete.

    Raises:
      OSError: no space was left for it.
      ValueError: it failed otherwise. Earlier checkpoints stay.
    """
    with self._explained():
      self._orbax.wait_until_finished()

  def close(self) -> None:
    """Wait for the last save and let go of the directory."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  def restore_newest(self, target: Any) -> Restored | None:
    """Restore the newest checkpoint that can be read.

    Damaged ones are named in a warning and set aside under another name.

    Args:
      target: tree of the state, its leaves arrays or `ShapeDtypeStruct`s with
        the shardings to restore into, on any number of devices.

    Returns:
      The state, equal bit by bit; None if there is no checkpoint.

    Raises:
      ValueError: the target differs from what was saved (lists every path), or
        no checkpoint can be read (names each and what is wrong with it).
    """
    self.wait()
    flat = tree_spec.flatten(target)
    failures: list[str] = []
    for step in self.steps():
      path = self.directory / str(step)
      try:
        found = reader.read_info(path)
        damage = ""
      except ValueError as error:
        found, damage = None, str(error)
      if found is not None:
        _check_target(found, flat)
        damage = _damage(found)
      if found is not None and not damage:
        return self._restore(found, flat, target, failures)
      failures.append(f"{path}: {damage}")
      self._log(f"checkpoint {path} is damaged: {damage}")
    if failures:
      listed = "".join(f"\n  {line}" for line in failures)
      raise ValueError(
        f"none of the {len(failures)} checkpoints in {self.directory} can be"
        f" read; move them away to start anew:{listed}"
      )
    return None

  def _restore(
    self,
    found: reader.CheckpointInfo,
    flat: Mapping[str, Any],
    target: Any,
    failures: list[str],
  ) -> Restored:
    """Restore a sound checkpoint, and make way where damaged ones lie."""
    state = tree_spec.unflatten(reader.read(found, flat), target)
    if failures:
      self._log(f"continuing from the older checkpoint {found.path}")
      self._set_aside(found.step)
    return Restored(
      step=found.step,
      state=state,
      iterators=found.iterators,
      metadata=found.metadata,
    )

  def _set_aside(self, restored: int) -> None:
    """Rename the checkpoints after a step: the run will come there again."""
    distributed.barrier("restored")
    if jax.process_index() == 0:
      for step in self.steps():
        if step > restored:
          path = self.directory / str(step)
          aside = _unused(path.with_name(f"{step}{_DAMAGED}"))
          path.rename(aside)
          self._log(f"set aside as {aside}; delete it when not needed")
    distributed.barrier("set_aside")
    self._orbax.reload()

  def _seal(self) -> None:
    """Add the checksums: everything is written, the name is not yet given."""
    (temporary,) = self.directory.glob(f"{self._saving}{_TEMPORARY}*")
    integrity.write(temporary, _UNFINISHED)

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Say what an error of a save means, and clear what it left."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      if jax.process_index() == 0:
        for left in self.directory.glob(f"{self._saving}{_TEMPORARY}*"):
          shutil.rmtree(left, ignore_errors=True)
      what = f"the checkpoint of step {self._saving} was not saved"
      number = getattr(error, "errno", None)
      words = str(error).lower()
      if number in (errno.ENOSPC, errno.EDQUOT) or any(
        w in words for w in _FULL
      ):
        raise OSError(
          errno.ENOSPC,
          f"no space left: {what}, earlier ones are whole; make room",
          str(self.directory),
        ) from error
      raise ValueError(f"{what}, earlier ones are whole: {error}") from error


def _open(
  config: Config, directory: pathlib.Path, seal: Callable[[], None]
) -> ocp.CheckpointManager:
  """Orbax's manager as `config` says."""
  policies = ocp.checkpoint_managers.preservation_policy
  kept: list[Any] = [policies.LatestN(config.max_to_keep)]
  if config.keep_period:
    kept.append(policies.EveryNSteps(config.keep_period))
  state = ocp.PyTreeCheckpointHandler(use_compression=config.compress)
  meta = ocp.JsonCheckpointHandler(reader.META_FILE)
  registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
  registry.add(reader.STATE, ocp.args.PyTreeSave, state)
  registry.add(reader.STATE, ocp.args.PyTreeRestore, state)
  registry.add(reader.META, ocp.args.JsonSave, meta)
  registry.add(reader.META, ocp.args.JsonRestore, meta)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policies.AnyPreservationPolicy(kept),
    create=False,
    save_root_metadata=False,
    lightweight_initialize=True,
    enable_async_checkpointing=True,
    async_options=ocp.AsyncOptions(
      timeout_secs=config.timeout, post_finalization_callback=seal
    ),
  )
  return ocp.CheckpointManager(
    directory, options=options, handler_registry=registry
  )


def _clear(directory: pathlib.Path, log: Log) -> None:
  """Delete what a killed run left: saves and deletions cut short."""
  for path in sorted(directory.iterdir()):
    remains = reader.is_step(path.name) and not (path / _COMMITTED).is_file()
    if _TEMPORARY in path.name or (remains and integrity.is_missing(path)):
      log(f"clearing {path}: it was being written or deleted by a killed run")
      shutil.rmtree(path)


def _check_target(
  found: reader.CheckpointInfo, flat: Mapping[str, Any]
) -> None:
  """Refuse a target that is not what was saved."""
  expected = {path: tree_spec.leaf_spec(leaf) for path, leaf in flat.items()}
  if differing := tree_spec.differences(found.leaves, expected):
    listed = "".join(f"\n  {line}" for line in differing)
    raise ValueError(
      f"checkpoint {found.path} holds another state than this run's; use the"
      f" config it was saved with, or another workdir:{listed}"
    )


def _damage(found: reader.CheckpointInfo) -> str:
  """What is wrong with a checkpoint's files; empty if nothing is."""
  try:
    reader.verify(found)
  except ValueError as error:
    return str(error)
  return ""


def _check_room(directory: pathlib.Path, flat: Mapping[str, Any]) -> None:
  """See that an uncompressed state has room, before a byte is written."""
  size = sum(x.size * x.dtype.itemsize for x in flat.values())
  free = shutil.disk_usage(directory).free
  if size > free:
    raise OSError(
      errno.ENOSPC,
      f"no space left: a checkpoint takes {size / 2**30:.3g} GiB, free are"
      f" {free / 2**30:.3g}; make room. Earlier checkpoints are whole",
      str(directory),
    )


def _unused(path: pathlib.Path) -> pathlib.Path:
  """`path`, or with a number behind it the first that does not exist."""
  number, candidate = 1, path
  while candidate.exists():
    number += 1
    candidate = path.with_name(f"{path.name}{number}")
  return candidate
