"""Saves and restores the checkpoints of a training run.

A checkpoint holds the training state (any pytree of arrays, random keys and
numbers), the input state of each process, and metadata. This is a thin layer
over Orbax's `CheckpointManager`, which copies the state and writes it in the
background. A checkpoint is complete when it gets its final name, or, in an
object store, its commit marker. Added here: checksums (each process computes
those of the files that it wrote), the search for the newest readable
checkpoint, and errors that list differences. Process 0 decides which
checkpoints exist.
"""

import contextlib
import dataclasses
import errno
import logging
import shutil
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from flax import traverse_util
from orbax import checkpoint as ocp

from ovi_jax import storage
from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import tree_spec
from ovi_jax.sharding import distributed

_log = logging.getLogger(__name__)
_TIMEOUT = 3600  # seconds a save may take before it counts as failed
_FULL = ("no space left", "disk quota exceeded", "file too large")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored(reader.CheckpointInfo):
  """A restored checkpoint.

  Attributes:
    state: the training state, with the target's tree and shardings.
  """

  state: Any

  @property
  def iterator(self) -> Any:
    """The input state of this process.

    Raises:
      ValueError: the checkpoint was saved by another number of processes, and
        their input states differ.
    """
    if len(self.iterators) == jax.process_count():
      return self.iterators[jax.process_index()]
    if any(each != self.iterators[0] for each in self.iterators):
      raise ValueError(
        "the data loader states of the"
        f" {len(self.iterators)} processes in checkpoint {self.step} differ, so"
        f" it can only be resumed with {len(self.iterators)} processes (now"
        f" {jax.process_count()})"
      )
    return self.iterators[0]


class _StateHandler(ocp.PyTreeCheckpointHandler):
  """Orbax's pytree handler; each process adds the checksums of its files.

  Attributes:
    checkpoint: directory of the checkpoint being saved, before it is complete.
  """

  checkpoint: epath.Path | None = None

  async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> Any:
    path = epath.Path(getattr(directory, "path", directory))
    self.checkpoint = path.parent
    written = await super().async_save(directory, *args, **kwargs)
    return [_Checksums(written or (), path)]


@dataclasses.dataclass(frozen=True)
class _Checksums:
  """An Orbax future that ends when this process's checksums are written.

  In every process, Orbax waits for it in the background before process 0
  completes the checkpoint. Files that belong to no single process are left to
  process 0 (`Manager._seal`); so are objects, whose checksums the store knows.
  """

  written: Sequence[Any]
  directory: epath.Path

  def result(self, timeout: float | None = None) -> None:
    for future in self.written:
      future.result(timeout)
    own = self.directory / f"ocdbt.process_{jax.process_index()}"
    if not storage.is_remote(own) and own.is_dir():
      integrity.write(own)

  def cancel(self) -> None:
    """Do nothing: writes in progress are not cancelled."""


class Manager:
  """Saves and restores the checkpoints of one run; use it in a `with` block.

  Only one run may use a directory at a time: opening it deletes the incomplete
  checkpoints of a killed run.
  """

  def __init__(
    self, directory: epath.PathLike, max_to_keep: int = 2, keep_period: int = 0
  ):
    """Open the directory.

    Args:
      directory: directory of the checkpoints, and nothing else, on a disk or
        in an object store; created if it does not exist.
      max_to_keep: number of newest checkpoints that are kept. With 1, there is
        no fallback if the checkpoint is damaged.
      keep_period: also keep checkpoints at multiples of this step; 0 for none.

    Raises:
      OSError: the directory cannot be created or written.
    """
    if max_to_keep < 1 or keep_period < 0:
      raise ValueError(
        "expected max_to_keep from 1 and keep_period from 0, got"
        f" {max_to_keep}, {keep_period}"
      )
    self.directory = storage.absolute(directory)
    self._saving: int | None = None
    policies = ocp.checkpoint_managers.preservation_policy
    kept: list[Any] = [policies.LatestN(max_to_keep)]
    if keep_period:
      kept.append(policies.EveryNSteps(keep_period))
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    # Weights hardly shrink.
    self._handler = _StateHandler(use_compression=False)
    registry.add(reader.STATE, ocp.args.PyTreeSave, self._handler)
    registry.add(reader.STATE, ocp.args.PyTreeRestore, self._handler)
    meta = ocp.JsonCheckpointHandler(reader.META_FILE)
    registry.add(reader.META, ocp.args.JsonSave, meta)
    registry.add(reader.META, ocp.args.JsonRestore, meta)
    self._orbax = ocp.CheckpointManager(
      self.directory,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        lightweight_initialize=True,
        single_host_load_and_broadcast=True,
        atomicity_options=_atomicity(self.directory),
        async_options=ocp.AsyncOptions(
          timeout_secs=_TIMEOUT, post_finalization_callback=self._seal
        ),
      ),
      handler_registry=registry,
    )

  def __enter__(self) -> "Manager":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if kind is None:
      self.close()
      return
    # The error being raised takes precedence over one of the last save.
    try:
      self.close()
    except (OSError, ValueError, RuntimeError) as error:
      _log.warning("checkpoints: %s", error)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints that process 0 finds, newest first."""
    return distributed.broadcast(lambda: reader.steps(self.directory))

  def save(
    self,
    step: int,
    state: Any,
    iterator: Any = None,
    metadata: Mapping[str, Any] | None = None,
  ) -> bool:
    """Save a checkpoint in the background.

    Waits for the previous save, then returns as soon as the state is copied.

    Args:
      step: step of the checkpoint, from 0.
      state: pytree of jax and numpy arrays, random keys and Python numbers. It
        may be donated afterwards.
      iterator: input state of this process: bytes or a JSON value.
      metadata: JSON object stored with the state.

    Returns:
      Whether it was saved; False if there is already a checkpoint of this step.

    Raises:
      OSError: there is too little space for this save, or was for the previous
        one.
      ValueError: a value cannot be saved, or the previous save failed.
    """
    flat = tree_spec.flatten(state)
    meta = reader.description(step, flat, iterator, metadata or {})
    stored = {path: tree_spec.to_stored(leaf) for path, leaf in flat.items()}
    arrays = {path: x for path, x in stored.items() if 0 not in x.shape}
    self.wait()
    # Not `steps`, which asks a store for the marker of each checkpoint.
    saved = self.directory / str(step)
    if distributed.broadcast(lambda: reader.is_complete(saved)):
      return False
    _check_room(self.directory, arrays)
    item = traverse_util.unflatten_dict(arrays, sep="/")
    arguments = ocp.args.Composite(
      **{
        reader.STATE: ocp.args.PyTreeSave(item),
        reader.META: ocp.args.JsonSave(meta),
      }
    )
    if step == self._saving and jax.process_count() == 1:
      self._orbax.reload()  # the step failed; Orbax would count it twice
    self._saving = step
    with self._explained():
      self._orbax.save(step, args=arguments, force=True)
    return True

  def wait(self) -> None:
    """Wait until the last save is complete.

    Raises:
      OSError: there was too little space for it.
      ValueError: it failed otherwise. Earlier checkpoints are not affected.
    """
    with self._explained():
      self._orbax.wait_until_finished()

  def close(self) -> None:
    """Wait for the last save and release the directory."""
    try:
      self.wait()
    finally:
      self._orbax.close()

  def restore_newest(self, target: Any) -> Restored | None:
    """Restore the newest checkpoint that can be read.

    Damaged checkpoints are reported in a warning and renamed.

    Args:
      target: tree of the state, whose leaves are arrays or `ShapeDtypeStruct`s
        with the shardings to restore into, on any number of devices.

    Returns:
      The checkpoint, its state bit-equal to what was saved; None if there is no
      checkpoint.

    Raises:
      ValueError: the target differs from what was saved (lists every path), or
        no checkpoint can be read (names each and the problem with it).
    """
    self.wait()
    flat = tree_spec.flatten(target)
    failures: list[str] = []
    for step in self.steps():
      path = self.directory / str(step)
      try:
        found = _read_info(path)
        _check_target(found, flat)
        reader.verify(found)
      except integrity.DamagedError as error:
        failures.append(f"{path}: {error}")
        _log.warning("checkpoint %s is damaged: %s", path, error)
        continue
      state = tree_spec.unflatten(reader.read(found, flat), target)
      if failures:
        _log.warning("continuing from the older checkpoint %s", path)
        self._set_aside(step)
      return Restored(**vars(found), state=state)
    if failures:
      listed = "".join(f"\n  {line}" for line in failures)
      raise ValueError(
        f"none of the {len(failures)} checkpoints in {self.directory} can be"
        f" read; move them away to start from scratch:{listed}"
      )
    return None

  def _set_aside(self, restored: int) -> None:
    """Rename checkpoints after a step; the run will save these steps again."""
    distributed.broadcast(
      lambda: set_aside(self.directory, restored, "damaged")
    )
    self._orbax.reload()

  def _seal(self) -> None:
    """Add the checksums when all files are written, before it is complete."""
    assert self._handler.checkpoint is not None
    integrity.write(self._handler.checkpoint, (reader.STATE, reader.META))

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Explain an error of a save, and delete its incomplete files."""
    try:
      with storage.store_errors(self.directory):
        yield
    except (OSError, ValueError, RuntimeError) as error:
      left = self._handler.checkpoint
      if jax.process_index() == 0 and left is not None:
        self._remove_incomplete(left)
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

  def _remove_incomplete(self, path: epath.Path) -> None:
    """Remove what a save left; what cannot be removed is at the next start."""
    with contextlib.suppress(OSError), storage.store_errors(path):
      if not (reader.is_step(path.name) and reader.is_complete(path)):
        path.rmtree(missing_ok=True)


def set_aside(directory: epath.Path, newest: int, suffix: str) -> list[str]:
  """Rename the checkpoints after a step to STEP.SUFFIX; returns the names.

  In an object store, objects are copied and deleted.

  Args:
    directory: directory of the checkpoints.
    newest: step of the last checkpoint that keeps its name.
    suffix: what the names say; a number is added if one exists.

  Raises:
    OSError: they cannot be renamed.
  """
  names = []
  for step in reader.steps(directory):
    if step > newest:
      path = directory / str(step)
      aside, number = path.with_name(f"{step}.{suffix}"), 1
      while storage.exists(aside):
        number += 1
        aside = path.with_name(f"{step}.{suffix}{number}")
      with storage.store_errors(path):
        path.rename(aside)
      names.append(aside.name)
      _log.warning("set aside as %s; delete it when not needed", aside)
  return names


def _atomicity(directory: epath.Path) -> ocp.options.AtomicityOptions | None:
  """A commit marker for object stores."""
  if not storage.is_remote(directory):
    return None
  return ocp.options.AtomicityOptions(
    mode=ocp.options.AtomicityMode.COMMIT_FILE
  )


def _read_info(path: epath.Path) -> reader.CheckpointInfo:
  """`reader.read_info`, with one result in all processes."""
  found, problem = None, ""
  with distributed.collective_errors():
    try:
      found = reader.read_info(path)
    except integrity.DamagedError as error:
      problem = str(error)
  problems = [each for each in distributed.gather(problem) if each]
  if problems or found is None:
    raise integrity.DamagedError(problems[0])
  return found


def _check_target(
  found: reader.CheckpointInfo, flat: Mapping[str, Any]
) -> None:
  """Raise ValueError if the target's leaves differ from the saved ones."""
  expected = {path: tree_spec.leaf_spec(leaf) for path, leaf in flat.items()}
  if differing := tree_spec.differences(found.leaves, expected):
    listed = "".join(f"\n  {line}" for line in differing)
    raise ValueError(
      f"checkpoint {found.path} holds another state than this run's; use the"
      f" config it was saved with, or another workdir:{listed}"
    )


def _check_room(directory: epath.Path, flat: Mapping[str, Any]) -> None:
  """Raise OSError if the uncompressed state is larger than the free space."""
  if storage.is_remote(directory):
    return
  size = sum(x.size * x.dtype.itemsize for x in flat.values())
  free = shutil.disk_usage(directory).free
  if size > free:
    raise OSError(
      errno.ENOSPC,
      f"no space left: a checkpoint takes {size / 2**30:.3g} GiB, free are"
      f" {free / 2**30:.3g}; make room. Earlier checkpoints are whole",
      str(directory),
    )
