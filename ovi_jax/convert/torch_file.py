"""Read and write `.pth` and `.pt` files without torch.

Reading is lazy, one tensor at a time. Since torch 1.6 a file is a zip archive
of uncompressed entries; before, it was a sequence of pickles with the storages
behind them. The pickle is read as data (`torch_pickle.py`): no code of a file
ever runs. (Formats: PKWARE's APPNOTE and `torch/serialization.py`.)
"""

import io
import itertools
import math
import os
import pathlib
import re
import struct
import zipfile
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ovi_jax import untrusted
from ovi_jax.convert import torch_pickle
from ovi_jax.pretrained import file_format
from ovi_jax.pretrained import tensor_file

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# A pickle that does not begin with a long number, as torch's do.
_PLAIN_PICKLE = re.compile(rb"\x80[\x02-\x05][^\x8a]", re.DOTALL)
# Files of weights, which a torch file does not hold.
_PACKED = (".safetensors", ".pth", ".pt", ".ckpt")
_DEPTH = 16  # dicts within dicts
_ENTRIES = 1 << 20  # of all dicts, each counted as often as it is referred to
_ALIGNMENT = 64  # bytes; as torch itself aligns storages
_ROOT = "archive"

# Start and length in bytes of each storage of a file, by key.
Places = dict[str, tuple[int, int]]


class _Bounded(io.FileIO):
  """A file of which no piece larger than a header can be taken at once."""

  def read(self, size: int | None = -1, /) -> bytes:
    if size is not None and size > tensor_file.HEADER_LIMIT:
      raise ValueError(
        f"expected a header of at most {tensor_file.HEADER_LIMIT} bytes,"
        f" found one of {size}"
      )
    return super().read(-1 if size is None else size)


def _read(path: pathlib.Path) -> tuple[Any, Places]:
  """The pickled object of a torch file, and where its storages lie.

  Raises:
    ValueError: the file is damaged or of another format.
  """
  if kind := untrusted.irregular(path):
    raise ValueError(f"expected a regular file, found {kind}")
  with path.open("rb") as file:
    is_zip = file.read(len(_ZIP)) == _ZIP
  return _read_zip(path) if is_zip else _read_legacy(path)


def _read_zip(path: pathlib.Path) -> tuple[Any, Places]:
  """The pickled object and the storages of a zip file."""
  with _Bounded(path) as file:
    entries = _entries(file)
    roots = [
      n for n in entries if n.endswith("/data.pkl") and n.count("/") == 1
    ]
    if len(roots) != 1:
      raise ValueError(
        f"expected one entry <name>/data.pkl, found {len(roots)}: not written"
        " by torch.save"
      )
    root = roots[0].removesuffix("data.pkl")
    if f"{root}byteorder" in entries:
      order = _content(file, entries[f"{root}byteorder"])
      if order != b"little":
        raise ValueError(f"expected little-endian numbers, found {order!r:.40}")
    pickled = _content(file, entries[f"{root}data.pkl"])
  value, _ = torch_pickle.load(io.BytesIO(pickled))
  data = f"{root}data/"
  return value, {
    name.removeprefix(data): place
    for name, place in entries.items()
    if name.startswith(data)
  }


def _entries(file: io.FileIO) -> Places:
  """Where the content of each entry of a zip file lies."""
  size = os.fstat(file.fileno()).st_size
  try:
    with zipfile.ZipFile(file) as archive:
      infos = archive.infolist()
  # zipfile raises all of these for damaged directories: NotImplementedError for
  # a version number, read from the damaged bytes, that it does not support.
  except (
    zipfile.BadZipFile,
    NotImplementedError,
    OverflowError,
    OSError,
    struct.error,
  ) as error:
    raise ValueError(
      f"the zip directory is damaged ({error}): cut off? fetch it again"
    ) from error
  if infos and all(info.filename.endswith(".npy") for info in infos):
    raise ValueError(
      "expected tensors, found a NumPy file (.npz); use the safetensors or"
      " torch file"
    )
  if found := next(
    (i.filename for i in infos if i.filename.endswith(_PACKED)), ""
  ):
    raise ValueError(
      f"expected tensors, found an archive with"
      f" '{untrusted.printable(found)}'; unpack it"
    )
  if any(info.filename.endswith("/constants.pkl") for info in infos):
    raise ValueError(
      "expected tensors, found a TorchScript program; use the file of the"
      " model's state_dict()"
    )
  places: Places = {}
  for info in infos:
    name = info.filename
    if name in places:
      raise ValueError(f"entry {name!r:.200} occurs twice")
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
      raise ValueError(
        f"entry {name!r:.200}: expected plain bytes, found a compressed or"
        " encrypted entry; torch.save writes none"
      )
    if info.compress_size != info.file_size:
      raise ValueError(f"entry {name!r:.200}: its two sizes differ")
    start = _content_start(file, info, size)
    if start + info.file_size > size:
      raise ValueError(
        f"entry {name!r:.200}: expected {info.file_size} bytes at byte"
        f" {start}, the file has {size}; fetch it again"
      )
    places[name] = (start, info.file_size)
  return places


def _content_start(file: io.FileIO, info: zipfile.ZipInfo, size: int) -> int:
  """The byte behind an entry's own header, whose padding varies."""
  if not 0 <= info.header_offset <= size - 30:
    raise ValueError(
      f"entry {info.filename!r:.200}: expected its header within the"
      f" {size} bytes of the file, found it at {info.header_offset}"
    )
  file.seek(info.header_offset)
  header = file.read(30)
  if len(header) != 30 or not header.startswith(_ZIP):
    raise ValueError(f"entry {info.filename!r:.200}: it has no header")
  name_length, extra_length = struct.unpack("<HH", header[26:])
  return info.header_offset + 30 + name_length + extra_length


def _content(file: io.FileIO, place: tuple[int, int]) -> bytes:
  """The bytes of an entry."""
  start, size = place
  file.seek(start)
  return file.read(size)


def _read_legacy(path: pathlib.Path) -> tuple[Any, Places]:
  """The pickled object and the storages of a file from before torch 1.6."""
  with path.open("rb") as file:
    stream = io.BytesIO(file.read(tensor_file.HEADER_LIMIT))
    start = bytes(stream.getbuffer()[:16])
    try:
      magic, _ = torch_pickle.load(stream)
    except ValueError:
      magic = None
    if _PLAIN_PICKLE.match(start) and magic != _MAGIC:
      raise ValueError(
        "expected a file that torch.save wrote, found a plain pickle; load it"
        " where it was made, and save its tensors with torch.save or"
        " safetensors"
      )
    if type(magic) is not int or magic != _MAGIC:
      raise ValueError(
        f"expected a file that torch.save wrote, found one that starts with"
        f" {start!r}: another format, or cut off"
      )
    protocol, _ = torch_pickle.load(stream)
    if type(protocol) is not int or protocol != _PROTOCOL:
      raise ValueError(f"expected format {_PROTOCOL} of torch, found another")
    torch_pickle.load(stream)  # sizes of C types, of no use
    value, storages = torch_pickle.load(stream)
    keys, _ = torch_pickle.load(stream)
    return value, _legacy_places(file, stream.tell(), keys, storages)


def _legacy_places(
  file: io.BufferedReader,
  at: int,
  keys: Any,
  storages: Mapping[str, torch_pickle.Storage],
) -> Places:
  """Where storages lie: from byte `at`, each behind its number of elements."""
  if type(keys) is not list or not all(type(k) is str for k in keys):
    raise ValueError("expected a list of the storages' keys")
  if sorted(keys) != sorted(storages):
    raise ValueError(
      f"expected the keys of {len(storages)} storages, found {len(keys)} others"
    )
  size = os.fstat(file.fileno()).st_size
  places: Places = {}
  for key in keys:
    file.seek(at)
    raw = file.read(8)
    expected = storages[key].count
    if len(raw) != 8 or struct.unpack("<q", raw) != (expected,):
      raise ValueError(
        f"storage {key!r:.40} at byte {at}: expected its {expected} elements,"
        f" found {raw!r}; cut off? fetch the file again"
      )
    places[key] = (at + 8, expected * storages[key].dtype.itemsize)
    at = sum(places[key])
    if expected < 0 or at > size:
      raise ValueError(
        f"storage {key!r:.40}: expected {expected} elements up to byte {at},"
        f" the file has {size} bytes; fetch it again"
      )
  return places


def open_torch(
  path: str | os.PathLike[str], key: str | None = None
) -> tensor_file.TensorFile:
  """Find the tensors of a file that `torch.save` wrote.

  Args:
    path: the file.
    key: take the dict under this name (`generator`) rather than the whole.

  Returns:
    Its tensors, dicts within dicts flattened with `.`; `values` holds the
    numbers, text and lists beside them.

  Raises:
    ValueError: it is damaged, of another format, or holds more than tensors and
      plain containers; names the file, the tensor, what was expected and found.
  """
  path = pathlib.Path(path)
  file_format.require(path, file_format.TORCH, "use the torch file")
  try:
    root, places = _read(path)
    spans: dict[str, tensor_file.Span] = {}
    values: dict[str, Any] = {}
    for name, value in _walk(_select(root, key)):
      tensor_file.check_name(name)
      if name in spans or name in values:
        raise ValueError(f"{name!r:.200} occurs twice")
      if type(value) is torch_pickle.Tensor:
        spans[name] = _span(path, name, value, places)
      else:
        values[name] = value
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if not spans:
    raise ValueError(f"{path}: expected tensors, found none")
  return tensor_file.TensorFile(source=str(path), spans=spans, values=values)


def _select(root: Any, key: str | None) -> dict[Any, Any]:
  """The dict of tensors, under `key` if one is given."""
  if type(root) is dict and key is not None:
    if key not in root:
      names = [f"{name!r:.60}" for name in itertools.islice(root, 5)]
      raise ValueError(
        f"expected the key {key!r}, found {len(root)} others:"
        f" {', '.join(names)}"
      )
    root = root[key]
  if type(root) is not dict:
    raise ValueError(
      f"expected a dict of tensors, found a {type(root).__name__}"
    )
  return root


def _walk(root: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
  """(name, value) of everything in dicts within dicts."""
  # A few dicts that hold each other twice would be millions of entries.
  entries = itertools.count(1)

  def visit(
    node: dict[Any, Any], prefix: str, above: tuple[int, ...]
  ) -> Iterator[tuple[str, Any]]:
    if id(node) in above or len(above) > _DEPTH:
      raise ValueError(
        f"expected dicts within dicts up to {_DEPTH} deep, none within itself;"
        f" found others under {prefix!r:.200}"
      )
    for key, value in node.items():
      if next(entries) > _ENTRIES:
        raise ValueError(f"expected at most {_ENTRIES} entries, found more")
      if type(value) is dict:
        yield from visit(value, f"{prefix}{key}.", (*above, id(node)))
      else:
        yield f"{prefix}{key}", value

  return visit(root, "", ())


def _span(
  path: pathlib.Path,
  name: str,
  tensor: torch_pickle.Tensor,
  places: Places,
) -> tensor_file.Span:
  """Where a tensor lies in the file, after a check of all its numbers."""
  try:
    start, size = _place(tensor.storage, places)
    count = tensor_file.shape_bytes(tensor.shape, tensor.dtype)
    numbers = (tensor.offset, *tensor.strides)
    if not all(tensor_file.is_size(n) for n in numbers):
      raise ValueError(
        "expected an offset and strides that are whole numbers from 0"
      )
    if len(tensor.strides) != len(tensor.shape):
      raise ValueError("expected one stride an axis")
    begin = tensor.offset * tensor.dtype.itemsize
    span = tensor_file.Span(
      path=path,
      dtype=tensor.dtype,
      shape=tensor.shape,
      start=start + begin,
      strides=_strides(tensor.shape, tensor.strides),
    )
    if max(begin + span.extent, count) > size:
      raise ValueError(
        f"expected {tensor.dtype} {tensor.shape} within a storage of"
        f" {size} bytes, found it to reach byte"
        f" {max(begin + span.extent, count)}; save it with .contiguous()"
      )
  except ValueError as error:
    raise ValueError(f"tensor {name!r:.200}: {error}") from error
  return span


def _place(storage: torch_pickle.Storage, places: Places) -> tuple[int, int]:
  """Start and length in bytes of the part of a storage tensors may use."""
  if storage.key not in places:
    raise ValueError(f"the file has no storage {storage.key!r:.40}")
  start, size = places[storage.key]
  item = storage.dtype.itemsize
  if storage.count * item != size:
    raise ValueError(
      f"expected a storage of {storage.count} {storage.dtype}, found"
      f" {size} bytes"
    )
  if storage.view is None:
    return start, size
  if not all(tensor_file.is_size(n) for n in storage.view):
    raise ValueError("expected a view of sizes that are whole numbers from 0")
  offset, count = storage.view
  if (offset + count) * item > size:
    raise ValueError(
      f"expected a view within {storage.count} elements, found one to"
      f" {offset + count}"
    )
  return start + offset * item, count * item


def _strides(
  shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...] | None:
  """The strides, or None if the elements lie one behind the other."""
  # The stride of an axis of one element is never used and may be anything.
  used = tuple(0 if n == 1 else s for n, s in zip(shape, strides, strict=True))
  dense = (
    0 if n == 1 else math.prod(shape[axis + 1 :])
    for axis, n in enumerate(shape)
  )
  return None if used == tuple(dense) else used


def save(
  path: str | os.PathLike[str],
  tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
  wrap: str | None = None,
) -> None:
  """Write a dict of tensors as `torch.save` does, one tensor at a time.

  The same tensors give the same bytes. Nothing stands under the final name
  before the file is whole.

  Args:
    path: the file.
    tensors: arrays by name, or pairs made while they are written.
    wrap: name under which the dict goes into another dict (`generator`).

  Raises:
    ValueError: torch has no such dtype, or a name occurs twice.
  """
  path = pathlib.Path(path)
  pairs: Any = tensors.items() if isinstance(tensors, Mapping) else tensors
  partial = path.with_name(f"{path.name}.partial")
  try:
    with partial.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
      _add_all(archive, file, pairs, wrap)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _add_all(
  archive: zipfile.ZipFile,
  file: io.BufferedWriter,
  pairs: Iterable[tuple[str, np.ndarray]],
  wrap: str | None,
) -> None:
  """Add the storages, then the pickle that names them."""
  items: dict[str, bytes] = {}
  for name, tensor in pairs:
    if name in items:
      raise ValueError(f"tensor {name!r} occurs twice")
    array = np.asarray(tensor, order="C")
    key = str(len(items))
    items[name] = _pickled_tensor(name, array, key)
    _add(archive, file, f"data/{key}", array.reshape(-1).view(np.uint8).data)
  pickled = _pickled_dict(items)
  if wrap is not None:
    pickled = _pickled_dict({wrap: pickled})
  _add(archive, file, "data.pkl", b"\x80\x02" + pickled + b".")
  _add(archive, file, ".format_version", b"1")
  _add(archive, file, ".storage_alignment", b"%d" % _ALIGNMENT)
  _add(archive, file, "byteorder", b"little")
  _add(archive, file, "version", b"3\n")


def _add(
  archive: zipfile.ZipFile,
  file: io.BufferedWriter,
  name: str,
  content: bytes | memoryview,
) -> None:
  """Add an entry whose content starts at a multiple of the alignment."""
  info = zipfile.ZipInfo(f"{_ROOT}/{name}", (1980, 1, 1, 0, 0, 0))
  info.create_system = 3
  info.external_attr = 0o600 << 16
  info.file_size = len(content)
  # 30 bytes of header, 20 for a size of 64 bits, 4 before the padding.
  taken = file.tell() + 30 + len(info.filename) + 20 + 4
  padding = -taken % _ALIGNMENT
  info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
  with archive.open(info, "w", force_zip64=True) as entry:
    entry.write(content)


def _pickled_tensor(name: str, array: np.ndarray, key: str) -> bytes:
  """The instructions that make torch rebuild `array` from storage `key`."""
  names = {d: f"torch.{n}" for n, d in torch_pickle.DTYPES.items()}
  if array.dtype not in names:
    raise ValueError(
      f"tensor {name!r}: torch has no dtype {array.dtype}; expected one of"
      f" {', '.join(torch_pickle.DTYPES)}"
    )
  kinds = {d: kind for kind, d in torch_pickle.STORAGES.items()}
  # torch has storages of the dtypes it had at first only.
  rebuild, kind, count, dtype = (
    ("torch._utils._rebuild_tensor_v2", kinds[array.dtype], array.size, b"")
    if array.dtype in kinds
    else (
      "torch._utils._rebuild_tensor_v3",
      torch_pickle.UNTYPED,
      array.nbytes,
      _global(names[array.dtype]),
    )
  )
  rest = (array.shape[axis + 1 :] for axis in range(array.ndim))
  strides = (math.prod(max(n, 1) for n in sizes) for sizes in rest)
  storage = (
    b"(" + _text("storage"),
    _global(kind),
    _text(key),
    _text("cpu"),
    _number(count) + b"tQ",
  )
  arguments = (
    *storage,
    _number(0),
    _numbers(array.shape),
    _numbers(strides),
    b"\x89",
    _global("collections.OrderedDict") + b")R",
    dtype,
  )
  return _global(rebuild) + b"(" + b"".join(arguments) + b"tR"


def _pickled_dict(items: Mapping[str, bytes]) -> bytes:
  """The instructions that make a dict of values already pickled."""
  pairs = (_text(name) + value for name, value in items.items())
  return b"}(" + b"".join(pairs) + b"u"


def _global(name: str) -> bytes:
  module, _, attribute = name.rpartition(".")
  return b"c%s\n%s\n" % (module.encode(), attribute.encode())


def _text(text: str) -> bytes:
  raw = text.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def _number(number: int) -> bytes:
  if number < 2**31:
    return b"J" + struct.pack("<i", number)
  return b"\x8a\x09" + number.to_bytes(9, "little")


def _numbers(numbers: Iterable[int]) -> bytes:
  return b"(" + b"".join(_number(n) for n in numbers) + b"t"
