"""The location of tensors in weight files of any format.

A reader of one format turns a file into `Span`s, one a tensor; from there on
reading is the same for all: one tensor at a time, nothing held open. The
safetensors header is read here, the torch formats in `convert/torch_file.py`.

Nothing a file says is believed before it is checked: a damaged or hostile one
gives a ValueError, never a crash or an allocation larger than the file.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.pretrained import file_format

HEADER_LIMIT = 16 * 2**20  # bytes; the release's largest header is under 1 MiB
_MAX_VALUES = 2**18  # in a header; about ten a tensor, the release has 25,000
_ALIGNMENT = 64  # bytes
_METADATA = "__metadata__"
_METADATA_ROOM = 4096  # bytes kept free for what is known only at the end
_MAX_AXES = 32
_MAX_NAME = 512  # characters; the release's longest name has 66
_MAX_BYTES = 2**62

# Names of the safetensors format.
DTYPES: Mapping[str, np.dtype] = {
  name: np.dtype(dtype)
  for name, dtype in {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
  }.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
  """The location of one tensor.

  Attributes:
    path: the file.
    dtype: of the elements, little-endian.
    shape: of the tensor.
    start: byte of the file at which its first element lies.
    strides: elements from one index to the next, by axis; None if contiguous.
  """

  path: storage.AnyPath
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int
  strides: tuple[int, ...] | None = None

  @property
  def extent(self) -> int:
    """Bytes from the first element to the end of the last one."""
    if self.strides is None or 0 in self.shape:
      return math.prod(self.shape) * self.dtype.itemsize
    steps = zip(self.shape, self.strides, strict=True)
    return (1 + sum((n - 1) * s for n, s in steps)) * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """Read the tensor into memory.

    Raises:
      ValueError: the file has become shorter.
    """
    if storage.is_remote(self.path):
      (raw,) = self.read_parts([(0, self.extent)])
    else:
      raw = np.empty(self.extent, np.uint8)
      with open(self.path, "rb") as file:
        file.seek(self.start)
        self._check_length(file.readinto(raw.data), self.extent)
    if self.strides is None or 0 in self.shape:
      return raw.view(self.dtype).reshape(self.shape)
    steps = [s * self.dtype.itemsize for s in self.strides]
    view = np.ndarray(self.shape, self.dtype, raw, strides=steps)
    return np.array(view, order="C")

  def read_parts(self, parts: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Read parts of the tensor from an object store.

    Args:
      parts: of each, the first byte and the one after the last, counted from
        the tensor's first.

    Returns:
      Arrays of bytes.

    Raises:
      ValueError: the file has become shorter.
      OSError: it cannot be read.
    """
    read = iter(
      storage.read_ranges(
        self.path,
        [(self.start + a, self.start + b) for a, b in parts if a < b],
      )
    )
    found = [next(read) if a < b else b"" for a, b in parts]
    for raw, (first, end) in zip(found, parts, strict=True):
      self._check_length(len(raw), end - first)
    return [np.frombuffer(raw, np.uint8) for raw in found]

  def _check_length(self, found: int, expected: int) -> None:
    if found != expected:
      raise ValueError(
        f"{self.path} ends early: expected {expected} bytes of a tensor at"
        f" byte {self.start}, found {found}; fetch the file again"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorFile:
  """The tensors of a file, or of several shards, to be read one at a time.

  Attributes:
    source: the file or files, for messages.
    spans: where each tensor lies, by name.
    values: whatever else the file holds (numbers, text), by name.
  """

  source: str
  spans: Mapping[str, Span]
  values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: span.shape for name, span in self.spans.items()}

  @functools.cached_property
  def dtypes(self) -> dict[str, np.dtype]:
    return {name: span.dtype for name, span in self.spans.items()}

  def read(self, name: str) -> np.ndarray:
    """Read the tensor `name` into memory.

    Raises:
      ValueError: there is no such tensor, or the file has become shorter.
    """
    if name not in self.spans:
      raise ValueError(
        f"{self.source} has no tensor {name!r}; it has {len(self.spans)},"
        f" the first are {list(self.spans)[:3]}"
      )
    return self.spans[name].read()


def is_size(value: Any) -> bool:
  """Whether `value` can be a length, an offset or a stride."""
  # A bool is an int to isinstance.
  return type(value) is int and 0 <= value < _MAX_BYTES


def check_name(name: str) -> None:
  """Refuse names whose handling could take long.

  Raises:
    ValueError: the name is empty or longer than 512 characters.
  """
  if not 0 < len(name) <= _MAX_NAME:
    raise ValueError(
      f"expected names of 1 to {_MAX_NAME} characters, found one of {len(name)}"
    )


def shape_bytes(shape: Sequence[Any], dtype: np.dtype) -> int:
  """Bytes of a tensor, after a check that numpy can have such a shape.

  Raises:
    ValueError: too many axes, a negative or fractional or far too large size.
  """
  if len(shape) > _MAX_AXES:
    raise ValueError(f"expected at most {_MAX_AXES} axes, found {len(shape)}")
  if not all(is_size(n) for n in shape):
    raise ValueError("expected sizes that are whole numbers from 0")
  # numpy refuses a huge axis beside an empty one.
  if math.prod(n or 1 for n in shape) * dtype.itemsize >= _MAX_BYTES:
    raise ValueError(f"expected a shape that fits in memory, found {shape}")
  return math.prod(shape) * dtype.itemsize


def open_safetensors(path: str | os.PathLike[str]) -> TensorFile:
  """Read the header of a safetensors file.

  Returns:
    Its tensors; `values` is the header's metadata.

  Raises:
    ValueError: the file is of another format or damaged; says where, what was
      expected and found.
  """
  path = storage.locate(path)
  size = file_size(path)
  file_format.require(
    path,
    file_format.SAFETENSORS,
    "save its tensors with safetensors.torch.save_file, or use the safetensors"
    " file of the same weights",
  )
  header, start = _header(path, size)
  if (metadata := header.pop(_METADATA, None)) is None:  # null is allowed
    metadata = {}
  if not isinstance(metadata, dict) or not all(
    isinstance(v, str) for v in metadata.values()
  ):
    raise ValueError(f"{path}: expected metadata of strings, found others")
  spans: dict[str, Span] = {}
  ends: list[tuple[int, int, str]] = []
  for name, entry in header.items():
    try:
      check_name(name)
      spans[name], end = _span(path, start, entry)
    except ValueError as error:
      raise ValueError(
        f"{path}: tensor '{untrusted.printable(name)}': {error}"
      ) from error
    ends.append((spans[name].start, end, name))
  at = start
  for begin, end, name in sorted(ends):
    if begin != at:
      raise ValueError(
        f"{path}: tensor {name!r:.200}: expected at byte {at}, after the"
        f" one before it, found at {begin}; fetch or convert the file again"
      )
    at = end
  if size != at:
    raise ValueError(
      f"{path}: expected {at} bytes, as its header says, found {size}; fetch"
      " or convert the file again"
    )
  return TensorFile(source=str(path), spans=spans, values=metadata)


def file_size(path: storage.AnyPath) -> int:
  """Bytes of a regular file.

  Raises:
    ValueError: it is not one.
    OSError: there is none.
  """
  if not isinstance(path, pathlib.Path):
    name = path.name
    if (found := storage.sizes(path).get(name)) is None:
      raise ValueError(f"{path}: expected a file, found a folder")
    return found
  if kind := untrusted.irregular(path):
    raise ValueError(f"{path}: expected a regular file, found {kind}")
  return path.stat().st_size


def _header(path: storage.AnyPath, size: int) -> tuple[dict[str, Any], int]:
  """The JSON header of a safetensors file and the byte after it."""
  length = _start_of(path, 0, min(8, size))
  if len(length) < 8:
    raise ValueError(
      f"{path}: expected a safetensors file, found only {size} bytes"
    )
  (count,) = struct.unpack("<Q", length)
  if count > min(size - 8, HEADER_LIMIT):
    raise ValueError(
      f"{path}: expected a safetensors header of at most"
      f" {min(size - 8, HEADER_LIMIT)} bytes, found one of {count}: another"
      " format, or cut off"
    )
  raw = _start_of(path, 8, count)
  try:
    header = untrusted.parse_json(
      raw, max_bytes=HEADER_LIMIT, max_values=_MAX_VALUES
    )
  except ValueError as error:
    cut = "; it holds zeros, the download is incomplete" if 0 in raw else ""
    raise ValueError(
      f"{path}: header is not safetensors: {error}{cut}"
    ) from error
  if not isinstance(header, dict):
    raise ValueError(f"{path}: expected a header that maps names to tensors")
  return header, 8 + count


def _start_of(path: storage.AnyPath, at: int, count: int) -> bytes:
  """Some bytes of a file."""
  if storage.is_remote(path):
    return storage.read_ranges(path, [(at, at + count)])[0] if count else b""
  with path.open("rb") as file:
    file.seek(at)
    return file.read(count)


def _span(path: storage.AnyPath, start: int, entry: Any) -> tuple[Span, int]:
  """The span of one header entry, and the byte of the file after it."""
  fields = {"dtype", "shape", "data_offsets"}
  if not isinstance(entry, dict) or entry.keys() != fields:
    raise ValueError(f"expected the fields {sorted(fields)}, found others")
  dtype, shape, offsets = (entry[k] for k in ("dtype", "shape", "data_offsets"))
  if not isinstance(dtype, str) or dtype not in DTYPES:
    found = dtype[:40] if isinstance(dtype, str) else type(dtype).__name__
    raise ValueError(f"expected one of {sorted(DTYPES)}, found {found!r}")
  if not isinstance(shape, list) or not isinstance(offsets, list):
    raise ValueError("expected a shape and offsets that are lists")
  if len(offsets) != 2 or not all(is_size(n) for n in offsets):
    raise ValueError("expected two offsets that are whole numbers from 0")
  expected = shape_bytes(shape, DTYPES[dtype])
  begin, end = offsets
  if end - begin != expected:
    raise ValueError(
      f"expected {expected} bytes for {dtype} {shape}, found {end - begin}"
    )
  span = Span(
    path=path, dtype=DTYPES[dtype], shape=tuple(shape), start=start + begin
  )
  return span, start + end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """The layout of a safetensors file that will be written.

  Attributes:
    spans: by name.
    entries: of the header, by name.
    start: byte of the file behind the header.
    end: bytes of the whole file.
  """

  spans: dict[str, Span]
  entries: dict[str, Any]
  start: int
  end: int

  def header(self, metadata: Mapping[str, str]) -> bytes:
    """The first `start` bytes of the file.

    Raises:
      ValueError: the metadata is not text or more than there is room for.
    """
    text, room = _encode(self.entries, metadata), self.start - 8
    if len(text) > room:
      raise ValueError(
        f"expected metadata that fits into {room} bytes with the rest of the"
        f" header, got {len(text)}"
      )
    return struct.pack("<Q", room) + text.ljust(room)


def layout(
  path: storage.AnyPath, tensors: Mapping[str, Any], metadata: Mapping[str, str]
) -> Layout:
  """Plan a safetensors file.

  Args:
    path: of the file.
    tensors: by name, anything with a `shape` and a `dtype`.
    metadata: there will be room for this and 4096 bytes more.

  Returns:
    The location of each tensor, and the header.

  Raises:
    ValueError: a dtype cannot be stored, or the header is too long.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  dtypes = {name: np.dtype(x.dtype) for name, x in tensors.items()}
  if wrong := [n for n, d in dtypes.items() if d not in names]:
    raise ValueError(
      f"{path}: {wrong[0]} is {dtypes[wrong[0]]}, expected one of"
      f" {', '.join(map(str, names))}"
    )
  entries: dict[str, Any] = {}
  end = 0
  # The widest first, so that each tensor starts at a multiple of its width.
  for name in sorted(tensors, key=lambda n: (-dtypes[n].itemsize, n)):
    shape = list(tensors[name].shape)
    begin, end = end, end + shape_bytes(shape, dtypes[name])
    entries[name] = {
      "dtype": names[dtypes[name]],
      "shape": shape,
      "data_offsets": [begin, end],
    }
  used = 8 + len(_encode(entries, metadata)) + _METADATA_ROOM
  start = used + -used % _ALIGNMENT
  if start > HEADER_LIMIT:
    raise ValueError(f"{path}: expected fewer tensors, got {len(tensors)}")
  spans = {n: _span(path, start, entry)[0] for n, entry in entries.items()}
  return Layout(spans=spans, entries=entries, start=start, end=start + end)


def _encode(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
  """The JSON header."""
  if not all(isinstance(x, str) for pair in metadata.items() for x in pair):
    raise ValueError(f"expected metadata of text, got {dict(metadata)}")
  if _METADATA in entries:
    raise ValueError(f"expected names of tensors, got {_METADATA!r}")
  return json.dumps({_METADATA: dict(metadata), **entries}).encode()
