"""Finds, verifies and reads training checkpoints.

  <directory>/<step>/state/...       arrays, in Orbax's format
  <directory>/<step>/meta/metadata   JSON: leaves, iterator states, metadata
  <directory>/<step>/checksums.json  of both, see `integrity`

This module writes nothing. On a disk, a directory named by a step is complete:
it was renamed after everything in it was written. In an object store, it is
complete if it has Orbax's commit marker, which is written last. Disks are
local, or shared and mounted; all processes see the same files.

A checkpoint of unknown origin is read as data. Its JSON is bounded and
type-checked, its files are regular ones within its directory, and Orbax is
given our own handler and the target's shapes: what the metadata names is
neither imported nor allocated.
"""

import base64
import concurrent.futures
import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from orbax import checkpoint as ocp

from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import tree_spec
from ovi_jax.sharding import distributed

STATE = "state"
META = "meta"
META_FILE = "metadata"
FORMAT = 1
_STEP = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
_MAX_AXES = 32
_THREADS = 16  # requests at once
# Errors that Orbax raises for invalid metadata.
_UNREADABLE = (
  AttributeError,
  IndexError,
  KeyError,
  RecursionError,
  TypeError,
  ValueError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
  """The validated description of a checkpoint.

  Attributes:
    path: directory of the checkpoint.
    step: step at which it was saved.
    leaves: shape and dtype of each leaf of its state, by path.
    iterators: input state of each process that saved.
    metadata: JSON object that was saved with it.
    checksums: checksums of its files.
  """

  path: epath.Path
  step: int
  leaves: Mapping[str, tree_spec.LeafSpec]
  iterators: tuple[Any, ...]
  metadata: Mapping[str, Any]
  checksums: integrity.Entries


def description(
  step: int, flat: Mapping[str, Any], iterator: Any, metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """The description of a checkpoint, stored beside its arrays as JSON.

  Args:
    step: step of the checkpoint.
    flat: leaves by path.
    iterator: input state of this process: bytes or a JSON value.
    metadata: JSON object.

  Raises:
    ValueError: a leaf is not an array or number, or a value is not JSON.
  """
  leaves = {path: tree_spec.leaf_spec(leaf) for path, leaf in flat.items()}
  entry = {"json": iterator}
  if isinstance(iterator, bytes):
    entry = {"bytes": base64.b64encode(iterator).decode()}
  found = {
    "format": FORMAT,
    "step": step,
    "leaves": {p: [x.dtype, [*x.shape], x.python] for p, x in leaves.items()},
    "metadata": dict(metadata),
  }
  try:
    json.dumps([found, entry])
  except TypeError as error:
    raise ValueError(
      f"expected metadata and an input state that are JSON: {error}"
    ) from error
  return found | {"iterators": distributed.gather(entry)}


def steps(directory: epath.PathLike) -> list[int]:
  """Steps of the complete checkpoints in a directory, newest first.

  Raises:
    OSError: the object store cannot be used.
  """
  path = storage.path(directory)
  try:
    # `is_dir` of a store is False also when the store cannot be reached.
    with storage.read_errors(path):
      found = list(path.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []
  named = [p for p in found if is_step(p.name)]
  # A store is asked for the marker of each.
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    complete = pool.map(is_complete, named)
    kept = [int(p.name) for p, is_kept in zip(named, complete) if is_kept]
  return sorted(kept, reverse=True)


def is_complete(path: epath.Path) -> bool:
  """Whether a directory under its final name is a complete checkpoint."""
  if storage.is_remote(path):
    return storage.exists(path / ocp.path.atomicity.COMMIT_SUCCESS_FILE)
  return path.is_dir()


def is_step(name: str) -> bool:
  """Whether a directory's name is that of a complete checkpoint."""
  return _STEP.fullmatch(name) is not None


def read_info(path: epath.PathLike) -> CheckpointInfo:
  """Read the description of a checkpoint, without its arrays.

  Args:
    path: directory of one checkpoint, named by its step.

  Raises:
    integrity.DamagedError: it is damaged or of another format; names the file
      and the problem.
    OSError: the object store cannot be used.
  """
  path = storage.path(path)
  checksums = integrity.listing(path)
  name = f"{META}/{META_FILE}"
  if name not in checksums:
    listing = path / integrity.CHECKSUMS
    raise integrity.DamagedError(f"{listing} does not name {name}")
  if found := integrity.problems(path, {name: checksums[name]}):
    raise integrity.DamagedError(integrity.shorten(found))
  try:
    # Metadata and iterators may contain NaN.
    meta = integrity.read_json(path, name, finite=False)
    _check_types(meta)
    return CheckpointInfo(
      path=path,
      step=meta["step"],
      leaves={
        p: tree_spec.LeafSpec(dtype=dtype, shape=tuple(shape), python=python)
        for p, (dtype, shape, python) in meta["leaves"].items()
      },
      iterators=tuple(
        base64.b64decode(entry["bytes"], validate=True)
        if "bytes" in entry
        else entry["json"]
        for entry in meta["iterators"]
      ),
      metadata=meta["metadata"],
      checksums=checksums,
    )
  except ValueError as error:
    raise integrity.DamagedError(f"{path / name}: {error}") from error


def _check_types(meta: Any) -> None:
  """Raise ValueError for fields that `description` would not have written."""
  version = meta.get("format") if isinstance(meta, dict) else meta
  if not isinstance(meta, dict) or version != FORMAT:
    raise ValueError(f"expected format {FORMAT}, found {version!r:.40}")
  leaves, states = meta.get("leaves"), meta.get("iterators")
  valid = {
    "step": type(meta.get("step")) is int and meta["step"] >= 0,
    "leaves": isinstance(leaves, dict) and all(map(_is_leaf, leaves.values())),
    "iterators": isinstance(states, list)
    and len(states) > 0
    and all(
      isinstance(entry, dict)
      and ("json" in entry or isinstance(entry.get("bytes"), str))
      for entry in states
    ),
    "metadata": isinstance(meta.get("metadata"), dict),
  }
  if wrong := [name for name, is_valid in valid.items() if not is_valid]:
    raise ValueError(f"missing or of a wrong type: {', '.join(wrong)}")


def _is_leaf(entry: Any) -> bool:
  """Whether JSON is the dtype, shape and "is a Python number" of a leaf."""
  if not isinstance(entry, list) or len(entry) != 3:
    return False
  dtype, shape, python = entry
  return (
    isinstance(dtype, str)
    and isinstance(shape, list)
    and len(shape) <= _MAX_AXES
    and all(type(n) is int and 0 <= n < 2**53 for n in shape)
    and isinstance(python, bool)
  )


def verify(saved: CheckpointInfo) -> None:
  """Compare all files of a checkpoint with their checksums.

  Processes share the work and reach the same result.

  Raises:
    integrity.DamagedError: files are damaged, missing or not regular files of
      the directory; names them.
    OSError: the object store cannot be used.
  """
  mine = sorted(saved.checksums)[jax.process_index() :: jax.process_count()]
  entries = {name: saved.checksums[name] for name in mine}
  with distributed.collective_errors():
    if jax.process_index() == 0:
      # Orbax opens all files in the directory, listed or not.
      unlisted = set(integrity.names(saved.path)) - saved.checksums.keys()
      entries |= {name: {} for name in sorted(unlisted)}
    problems = integrity.problems(saved.path, entries)
  gathered = distributed.gather(problems)
  if found := [line for lines in gathered for line in lines]:
    raise integrity.DamagedError(integrity.shorten(found))


def read(saved: CheckpointInfo, targets: Mapping[str, Any]) -> dict[str, Any]:
  """Read some leaves of a checkpoint.

  Args:
    saved: a verified checkpoint.
    targets: for each path, an array or `ShapeDtypeStruct` of the leaf's shape
      with the wanted sharding, a numpy array or a Python number. Floating-point
      leaves are converted to the target's dtype.

  Returns:
    The leaves, by path.

  Raises:
    ValueError: the arrays cannot be read.
  """
  wanted = {path: tree_spec.abstract(leaf) for path, leaf in targets.items()}
  # Arrays without elements are not stored.
  flat = {p: x for p, x in wanted.items() if 0 not in x.shape}
  arrays = _read_arrays(saved.path / STATE, flat) if flat else {}
  for path in wanted.keys() - flat.keys():
    shape, dtype = wanted[path].shape, wanted[path].dtype
    arrays[path] = np.zeros(shape, dtype)
    if isinstance(wanted[path], jax.ShapeDtypeStruct):
      arrays[path] = jax.device_put(arrays[path], wanted[path].sharding)
  return {p: tree_spec.from_stored(arrays[p], x) for p, x in targets.items()}


def _read_arrays(path: epath.Path, flat: Mapping[str, Any]) -> dict[str, Any]:
  """Read arrays with elements, with the shapes and shardings of `flat`."""
  item = traverse_util.unflatten_dict(dict(flat), sep="/")
  arguments = ocp.args.PyTreeRestore(
    item=item,
    restore_args=ocp.checkpoint_utils.construct_restore_args(item),
    partial_restore=True,
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      restored = reader.restore(storage.absolute(path), args=arguments)
  except _UNREADABLE as error:
    said = untrusted.printable(f"{type(error).__name__}: {error}", 500)
    raise ValueError(f"{path}: the arrays cannot be read: {said}") from error
  return traverse_util.flatten_dict(restored, sep="/")
