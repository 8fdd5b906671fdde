"""The weights of one component: a safetensors file.

Tensors are parameters by path (`blocks/video/self_attention/query/kernel`);
those of transformer blocks are stacked over blocks. Files are written slice by
slice and loaded device by device, so that neither needs memory for a whole
model. Leaves keep the dtype they were written in unless `load` is given
another. A file in an object store is read by ranges, and uploaded when it is
complete.
"""

import contextlib
import dataclasses
import errno
import io
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.models import quantized
from ovi_jax.pretrained import tensor_file

_ALIGNMENT = 64  # bytes; what jax asks of memory it takes over on a CPU
_PIECE = 64 * 2**20  # bytes converted at once
# Bytes between parts of a leaf in a store that are read rather than skipped:
# that takes less time than another request.
_MAX_GAP = 2**20
_LISTED = 5  # names in a message
_MAX_DEPTH = 32  # names in a path; our models have 6

Path = str | os.PathLike[str]


class Writer:
  """Writes a store slice by slice; use it in a `with` block.

  The file gets its size at once, under a temporary name, and its own name when
  every slice has been written. `metadata` may be added to until then.
  """

  def __init__(
    self,
    path: Path,
    leaves: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
  ):
    """Claim the room.

    Args:
      path: of the store.
      leaves: by path, anything with a `shape` and a `dtype`.
      metadata: kept in the header; text only.

    Raises:
      ValueError: a dtype cannot be stored, or a path is part of another.
      OSError: the disk has no room; nothing is left on it.
    """
    self.metadata = dict(metadata or {})
    self._path = storage.locate(path)
    self._spool = contextlib.ExitStack()
    if isinstance(self._path, pathlib.Path):
      folder = self._path.parent
    else:
      folder = self._spool.enter_context(storage.spool())
    self._partial = folder / f"{self._path.name}.partial"
    _check_paths(self._path, leaves)
    self._layout = tensor_file.layout(self._partial, leaves, self.metadata)
    self._spans = self._layout.spans
    # Of each leaf: the slices written, or None once it is there as a whole.
    self._written: dict[str, set[int] | None] = {}
    with contextlib.ExitStack() as on_error:
      on_error.push(self._spool.__exit__)
      self._file = _claim(self._partial, self._layout.end)
      on_error.pop_all()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    if kind is None:
      self.close()
    else:
      self.abort()

  def write(self, path: str, index: int | None, array: Any) -> None:
    """Write a leaf, or slice `index` of its first axis.

    Args:
      path: of the leaf.
      index: of the slice, from 0; None for the whole leaf.
      array: of the leaf's shape (without the first axis for a slice). Floating
        point numbers of another width are converted, other dtypes must agree.

    Raises:
      ValueError: there is no such leaf or slice, it was written before, or the
        shape or dtype is another.
    """
    if path not in self._spans:
      raise ValueError(
        f"{self._path}: {path!r} is not one of its {len(self._spans)} leaves"
      )
    span = _slice(self._spans[path], index, path)
    array = np.asarray(array)
    if array.shape != span.shape or not _converts(array.dtype, span.dtype):
      raise ValueError(
        f"{self._path}: {_of(path, index)}: expected {span.dtype}"
        f" {span.shape}, got {array.dtype} {array.shape}"
      )
    self._mark(path, index)
    _put(self._file, span, array)

  def _mark(self, path: str, index: int | None) -> None:
    """Note what is written; an error if it was before."""
    done = self._written.setdefault(path, set())
    if done is None or index in done or (index is None and done):
      raise ValueError(f"{self._path}: {_of(path, index)} is written twice")
    if index is None:
      self._written[path] = None
    else:
      done.add(index)

  def _missing(self) -> list[str]:
    """The leaves, or slices of them, that nobody wrote."""
    missing: list[str] = []
    for path, span in self._spans.items():
      done = self._written.get(path, set())
      if done is None or not span.extent:
        continue
      if not done:
        missing.append(path)
      else:
        blocks = range(span.shape[0])
        missing += [_of(path, n) for n in blocks if n not in done]
    return missing

  def close(self) -> None:
    """Finish the file and give it its name.

    Raises:
      ValueError: something was not written, or `metadata` has become too long
        or is not text; nothing is left on the disk.
    """
    try:
      if missing := self._missing():
        raise ValueError(
          f"{self._path}: {len(missing)} parts were never written:"
          f" {', '.join(missing[:_LISTED])}"
        )
      self._file.seek(0)
      self._file.write(self._layout.header(self.metadata))
      self._file.flush()
      os.fsync(self._file.fileno())
      self._file.close()
      if storage.is_remote(self._path):
        storage.upload(self._partial, self._path)
      else:
        os.replace(self._partial, self._path)
    except BaseException:
      self.abort()
      raise
    self._spool.close()

  def abort(self) -> None:
    """Leave nothing on the disk."""
    try:
      self._file.close()
    finally:
      self._partial.unlink(missing_ok=True)
      self._spool.close()


def load(
  path: Path,
  shardings: Any = None,
  dtype: Any = None,
  prefix: str | tuple[str, ...] | None = None,
) -> dict[str, Any]:
  """Load a weights file; each device reads only its own part of a leaf.

  Args:
    path: of the file.
    shardings: sharding of all leaves, a tree of shardings like the parameters,
      or a function of a leaf's path and shape; `None` for the default device.
    dtype: of floating-point leaves; `None` for the dtype in the file, which
      8-bit kernels and their scales always keep.
    prefix: load only leaves under this path, or these paths (`blocks/audio`).

  Returns:
    The parameters as nested dicts of jax arrays, in memory of their own.

  Raises:
    ValueError: the file is missing or damaged, it has no leaf under `prefix`,
      or a leaf has no sharding.
  """
  spans = _under(_open(path), prefix)
  place = _placement(shardings, spans)
  leaves = {
    p: _load_leaf(s, place(p, s.shape), None if _is_8_bit(p, s) else dtype)
    for p, s in spans.items()
  }
  return traverse_util.unflatten_dict(leaves, sep="/")


def _is_8_bit(path: str, span: tensor_file.Span) -> bool:
  """Whether a leaf is a quantized kernel, or the scale of one."""
  is_scale = path.endswith(f"/{quantized.SCALE}")
  return is_scale or quantized.is_quantized(span.dtype)


def shapes(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Read the shapes and dtypes of all leaves from the header of a file.

  Returns:
    `jax.ShapeDtypeStruct` of each leaf, by path.
  """
  spans = _open(path).spans
  return {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in spans.items()}


def metadata(path: Path) -> dict[str, str]:
  """The metadata in the header of a file."""
  return dict(_open(path).values)


def slices(path: Path) -> Callable[[str, int | None], np.ndarray]:
  """Open a weights file for reading as numpy arrays.

  Returns:
    A function of a leaf's path and the index of a block (`None` for the whole
    leaf) that reads the array.
  """
  file = _open(path)

  def read(leaf: str, index: int | None) -> np.ndarray:
    if leaf not in file.spans:
      return file.read(leaf)
    return _slice(file.spans[leaf], index, leaf).read()

  return read


def _open(path: Path) -> tensor_file.TensorFile:
  """The header of a store."""
  path = storage.locate(path)
  with contextlib.suppress(FileNotFoundError):
    storage.check_readable(path.parent)
  if not path.is_file():
    raise ValueError(
      f"expected converted weights at {path}, found no such file; make it"
      f" with {cli.invocation('ovi-convert')}"
    )
  file = tensor_file.open_safetensors(path)
  _check_paths(path, file.spans)
  return file


def _check_paths(path: storage.AnyPath, leaves: Mapping[str, Any]) -> None:
  """Refuse leaves that cannot all be in one tree."""
  for leaf in leaves:
    if leaf.count("/") >= _MAX_DEPTH:
      raise ValueError(
        f"{path}: expected parameters at most {_MAX_DEPTH} levels deep, found"
        f" '{untrusted.printable(leaf, 60)}'"
      )
    parts = leaf.split("/")
    parents = ("/".join(parts[:n]) for n in range(1, len(parts)))
    if not all(parts):
      raise ValueError(f"{path}: {leaf!r} is not a path of a parameter")
    if both := [p for p in parents if p in leaves]:
      raise ValueError(f"{path}: {both[0]!r} is a leaf and holds {leaf!r}")


def _under(
  file: tensor_file.TensorFile, prefix: str | tuple[str, ...] | None
) -> dict[str, tensor_file.Span]:
  """The leaves at or below one of the prefixes."""
  if prefix is None:
    return dict(file.spans)
  prefixes = (prefix,) if isinstance(prefix, str) else prefix
  heads = tuple(f"{p.rstrip('/')}/" for p in prefixes)
  spans = {p: s for p, s in file.spans.items() if f"{p}/".startswith(heads)}
  if not spans:
    tops = sorted({p.split("/")[0] for p in file.spans})
    raise ValueError(
      f"{file.source}: expected parameters under {prefix!r}, found only"
      f" {', '.join(tops)}"
    )
  return spans


def _placement(
  shardings: Any, spans: Mapping[str, Any]
) -> Callable[[str, tuple[int, ...]], Any]:
  """Shardings as a function of path and shape."""
  if shardings is None or isinstance(shardings, jax.sharding.Sharding):
    return lambda path, shape: shardings
  if callable(shardings):
    return shardings
  flat: dict[str, Any] = traverse_util.flatten_dict(shardings, sep="/")
  if missing := [p for p in spans if p not in flat]:
    raise ValueError(
      f"expected a sharding for each of {len(spans)} leaves, {len(missing)}"
      f" have none: {', '.join(missing[:_LISTED])}"
    )
  return lambda path, shape: flat[path]


def _load_leaf(
  span: tensor_file.Span, sharding: jax.sharding.Sharding | None, dtype: Any
) -> jax.Array:
  """One leaf as a jax array."""
  floating = jnp.issubdtype(span.dtype, jnp.floating)
  target = span.dtype if dtype is None or not floating else dtype
  target = jax.dtypes.canonicalize_dtype(target)
  read = _reader(span)

  def part(index: Any) -> np.ndarray:
    return _own(np.asarray(read(index)), target)

  if sharding is None:
    array = jax.device_put(part(()))
  else:
    array = jax.make_array_from_callback(
      span.shape, sharding, part, dtype=target
    )
  # Leaves still under way to a device would add up in the host's memory.
  return jax.block_until_ready(array)


def _reader(span: tensor_file.Span) -> Callable[[Any], np.ndarray]:
  """A function that reads the slices of a leaf that an index selects."""
  if storage.is_remote(span.path):
    known: dict[Any, np.ndarray] = {}

    def read(index: Any) -> np.ndarray:
      bounds = _bounds(span.shape, index)
      # Devices with a copy of the same slices.
      if bounds not in known:
        known[bounds] = _read_slices(span, bounds)
      return known[bounds]

    return read
  data = np.empty(span.shape, span.dtype)
  if span.extent:
    raw = np.memmap(span.path, np.uint8, "r", span.start, (span.extent,))
    data = np.asarray(raw).view(span.dtype).reshape(span.shape)
  return lambda index: data[index]


def _bounds(shape: tuple[int, ...], index: Any) -> tuple[tuple[int, int], ...]:
  """First index and the one after the last, of each axis."""
  slices = [*index, *[slice(None)] * (len(shape) - len(index))]
  return tuple(s.indices(n)[:2] for s, n in zip(slices, shape, strict=True))


def _read_slices(
  span: tensor_file.Span, bounds: Sequence[tuple[int, int]]
) -> np.ndarray:
  """Read slices of a leaf in an object store, and little else of it."""
  parts, axis = ranges_of(span.shape, span.dtype.itemsize, bounds)
  raw = np.concatenate(span.read_parts(parts) or [np.empty(0, np.uint8)])
  read = [b - a for a, b in bounds[: axis + 1]] + [*span.shape[axis + 1 :]]
  inner = tuple(slice(a, b) for a, b in bounds[axis + 1 :])
  array = raw.view(span.dtype).reshape(read)
  return array[(slice(None),) * min(axis + 1, array.ndim) + inner]


def ranges_of(
  shape: Sequence[int],
  item_bytes: int,
  bounds: Sequence[tuple[int, int]],
  max_gap: int | None = None,
) -> tuple[list[tuple[int, int]], int]:
  """The parts of an array's bytes that hold some slices.

  Args:
    shape: of the array, in C order.
    item_bytes: of an element.
    bounds: of the slices, by axis.
    max_gap: bytes that are read rather than skipped; `None` for the default.

  Returns:
    First byte and the one after the last, of each part; and the last axis whose
    bounds the parts keep to, -1 of an array without axes. Later axes are read
    whole.
  """
  gap = _MAX_GAP if max_gap is None else max_gap
  inner = [math.prod(shape[k + 1 :]) * item_bytes for k in range(len(shape))]
  whole = [b - a == n for (a, b), n in zip(bounds, shape, strict=True)]
  axis = len(shape) - 1
  while axis > 0:
    first, end = bounds[axis]
    left_out = (shape[axis] - (end - first)) * inner[axis]
    if not whole[axis] and left_out > gap:
      break
    axis -= 1
  if axis < 0:
    return [(0, item_bytes)], axis
  first, end = bounds[axis]
  starts = np.zeros(1, np.int64)
  for k, (low, high) in enumerate(bounds[:axis]):
    steps = np.arange(low, high, dtype=np.int64) * inner[k]
    starts = (starts[:, None] + steps).reshape(-1)
  return [
    (int(s) + first * inner[axis], int(s) + end * inner[axis]) for s in starts
  ], axis


def _own(source: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """A copy that is nobody else's, so that jax may take it for its own.

  On a CPU jax uses memory aligned like this as it is: the pages of the file
  would change with it, and from other memory it would make a second copy.
  """
  count = source.size * dtype.itemsize
  raw = np.empty(count + _ALIGNMENT, np.uint8)
  start = -raw.ctypes.data % _ALIGNMENT
  copy = raw[start : start + count].view(dtype).reshape(source.shape)
  copy[...] = source
  return copy


def _claim(path: pathlib.Path, size: int) -> io.BufferedRandom:
  """A new file of `size` bytes that the disk does have room for."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.unlink(missing_ok=True)
  free = shutil.disk_usage(path.parent).free
  if size > free:
    raise OSError(
      errno.ENOSPC,
      f"expected {size / 2**30:.1f} GiB free, found {free / 2**30:.1f}; make"
      " room or write elsewhere",
      str(path.parent),
    )
  file = path.open("w+b")
  try:
    # The room is taken now: a full disk shows before hours of work.
    _allocate(file.fileno(), size)
  except OSError as error:
    file.close()
    path.unlink(missing_ok=True)
    raise OSError(
      error.errno,
      f"cannot claim {size / 2**30:.1f} GiB ({error.strerror}); make room or"
      " write elsewhere",
      str(path.parent),
    ) from error
  return file


def _allocate(descriptor: int, size: int) -> None:
  """Take the room; where the system or the disk cannot, only set the size."""
  allocate = getattr(os, "posix_fallocate", None)  # macOS has none
  if allocate is not None and size:
    try:
      allocate(descriptor, 0, size)
      return
    except OSError as error:
      if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
        raise
  os.truncate(descriptor, size)


def _put(
  file: io.BufferedRandom, span: tensor_file.Span, array: np.ndarray
) -> None:
  """Write an array in pieces, so that no second one is in memory."""
  rows = array.reshape(1) if array.ndim == 0 else array
  row_bytes = max(1, span.extent // max(1, len(rows)))
  step = max(1, _PIECE // row_bytes)
  file.seek(span.start)
  for first in range(0, len(rows), step):
    piece = rows[first : first + step].astype(span.dtype, copy=False)
    file.write(piece.reshape(-1).view(np.uint8).data)


def _slice(
  span: tensor_file.Span, index: int | None, path: str
) -> tensor_file.Span:
  """Slice `index` of a leaf's first axis, or the leaf."""
  if index is None:
    return span
  if not span.shape or not 0 <= index < span.shape[0]:
    raise ValueError(f"{path} of shape {span.shape} has no slice {index}")
  shape = span.shape[1:]
  step = math.prod(shape) * span.dtype.itemsize
  return dataclasses.replace(span, shape=shape, start=span.start + index * step)


def _of(path: str, index: int | None) -> str:
  """The name of a leaf, or of a slice of it, in messages."""
  return path if index is None else f"{path}[{index}]"


def _converts(source: np.dtype, target: np.dtype) -> bool:
  """Whether numbers of one dtype may be written as the other."""
  floating = (jnp.issubdtype(d, jnp.floating) for d in (source, target))
  return source == target or all(floating)
