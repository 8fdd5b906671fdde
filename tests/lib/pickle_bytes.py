"""Pickles written byte by byte as torch writes them, without torch."""

import struct
import zipfile

import numpy as np

# The header of the format before torch 1.6: magic number, version, C types.
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."
FLOATS = np.arange(6, dtype=np.float32)
STORAGES = (FLOATS.tobytes(),)


def text(value):
  """The instruction that makes a string."""
  return b"X" + struct.pack("<I", len(value)) + value.encode()


def plain(value):
  """The instructions that make a whole number or a tuple of them.

  Instructions are left as they are, so that a test may give others.
  """
  if isinstance(value, bytes):
    return value
  if isinstance(value, tuple):
    return b"(" + b"".join(plain(v) for v in value) + b"t"
  raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(raw)]) + raw


def storage(count=6, kind="torch\nFloatStorage", key="0", view=b""):
  """The reference to a storage, by default of 6 float32."""
  head = text("storage") + b"c" + kind.encode() + b"\n" + text(key)
  return b"(" + head + text("cpu") + plain(count) + view + b"tQ"


def tensor(source=None, offset=0, shape=(6,), strides=(1,), rest=b""):
  """The instructions that make a tensor of a storage."""
  numbers = plain(offset) + plain(shape) + plain(strides)
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n("
    + (storage() if source is None else source)
    + numbers
    + b"\x89ccollections\nOrderedDict\n)R"
    + rest
    + b"tR"
  )


def mapping(**items):
  """The instructions that make a dict."""
  body = b"".join(text(name) + plain(value) for name, value in items.items())
  return b"}(" + body + b"u"


def zipped(path, value, storages=STORAGES, extra=(), **kwargs):
  """A file of the zip format that holds the pickle of `value`."""
  with zipfile.ZipFile(path, "w", **kwargs) as archive:
    archive.writestr("model/data.pkl", b"\x80\x02" + value + b".")
    for key, content in enumerate(storages):
      archive.writestr(f"model/data/{key}", content)
    for name, content in extra:
      archive.writestr(name, content)
  return path


def legacy(path, value, keys=("0",), storages=STORAGES, itemsize=4):
  """A file of the older format."""
  listed = b"\x80\x02](" + b"".join(text(k) for k in keys) + b"e."
  body = b"".join(struct.pack("<q", len(s) // itemsize) + s for s in storages)
  path.write_bytes(LEGACY + b"\x80\x02" + value + b"." + listed + body)
  return path
