"""The two containers of torch files: a pickle, and where the storages lie.

Since torch 1.6 a file is a zip archive of uncompressed entries; before, it was
a row of pickles with the storages behind them. (Formats: PKWARE's APPNOTE and
`torch/serialization.py`.)
"""

import io
import os
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from ovi_jax.convert import torch_pickle
from ovi_jax.pretrained import tensor_file

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

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


def read(path: pathlib.Path) -> tuple[Any, Places]:
  """The pickled object of a torch file, and where its storages lie.

  Raises:
    ValueError: the file is damaged or of another format.
  """
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
  # What zipfile raises on damaged directories; NotImplementedError is its word
  # for a version number, read from the damaged bytes, that it does not know.
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
  if any(info.filename.endswith("/constants.pkl") for info in infos):
    raise ValueError(
      "expected tensors, found a TorchScript program; give the file of the"
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
    if type(magic) is not int or magic != _MAGIC:
      raise ValueError(
        f"expected a file that torch.save wrote, found one that starts with"
        f" {start!r}: a web page, a git-lfs pointer or cut off?"
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
