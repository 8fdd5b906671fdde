"""The format of a file of weights, by its content.

Files are downloaded under any name, and what is downloaded is not always the
file. Every reader of weights asks here first, so that a git-lfs pointer, a web
page or another format is named in the same words everywhere.
"""

import codecs
import pathlib

from ovi_jax import storage
from ovi_jax import untrusted

SAFETENSORS, TORCH, JSON = "safetensors", "torch", "json"
# What the formats are called in messages.
NAMES = {
  SAFETENSORS: "a safetensors file",
  TORCH: "a file that torch.save wrote, or another zip archive or pickle",
  JSON: "JSON, such as a config or the index of shards",
}
_START = 512  # bytes that are looked at
_SHOWN = 60  # characters of text in a message
# First bytes of what is downloaded in place of weights -> what it is.
_FOREIGN = {
  b"GGUF": "a GGUF file, whose tensors are quantized in blocks; use the"
  " safetensors or torch file of the same model",
  b"\x89HDF": "an HDF5 file; use the safetensors or torch file",
  b"\x93NUMPY": "a NumPy file; use the safetensors or torch file",
  b"\x00\x05\x16\x07": "what macOS keeps beside a file on other disks; the"
  " weights are in the file without `._` before its name",
  b"\x1f\x8b": "a gzip archive; unpack it",
  b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
  b"\xfd7zXZ": "an xz archive; unpack it",
  b"BZh": "a bzip2 archive; unpack it",
  b"7z\xbc\xaf": "a 7z archive; unpack it",
  b"Rar!": "a RAR archive; unpack it",
}


def detect(path: storage.AnyPath) -> str:
  """Find the format of a file.

  Args:
    path: of a file of this machine or of an object store.

  Returns:
    `SAFETENSORS`, `TORCH` or `JSON`; the file may still be damaged.

  Raises:
    ValueError: it is known to be something else than weights; names the file
      and what it is.
    OSError: it cannot be read.
  """
  start = _read_start(path)
  if not start:
    raise ValueError(f"{path}: expected weights, found an empty file")
  if start.startswith(b"PK\x03\x04"):
    return TORCH
  # A header's length comes first: read as one, text is a far larger number.
  length = int.from_bytes(start[:8], "little")
  if start[8:9] == b"{" and length < 2**32:
    return SAFETENSORS
  if what := _foreign(start):
    raise ValueError(f"{path}: expected weights, found {what}")
  text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
  if text.startswith((b"{", b"[")):
    return JSON
  if start.startswith(b"\x80"):
    return TORCH
  if said := _text(text):
    raise ValueError(
      f"{path}: expected weights, found text, which begins {said!r}; fetch the"
      " file itself"
    )
  if length < 2**32:
    return SAFETENSORS  # a damaged one
  raise ValueError(
    f"{path}: expected safetensors or a file that torch.save wrote, found one"
    f" that starts with {start[:16]!r}: another format, or damaged"
  )


def require(path: storage.AnyPath, wanted: str, hint: str) -> None:
  """Refuse a file of another format.

  Args:
    path: see `detect`.
    wanted: the format.
    hint: what to do with a file of another one.

  Raises:
    ValueError: names the file, the format and what was found.
    OSError: it cannot be read.
  """
  if (found := detect(path)) != wanted:
    raise ValueError(
      f"{path}: expected {NAMES[wanted]}, found {NAMES[found]}; {hint}"
    )


def _read_start(path: storage.AnyPath) -> bytes:
  """The first bytes of a file."""
  if isinstance(path, pathlib.Path):
    if kind := untrusted.irregular(path):
      raise ValueError(f"{path}: expected a regular file, found {kind}")
    with path.open("rb") as file:
      return file.read(_START)
  return storage.read_bytes(path, _START)


def _text(start: bytes) -> str:
  """The first line of text; "" if it is none."""
  try:
    # The last character may be cut.
    text = codecs.getincrementaldecoder("utf-8")().decode(start)
  except UnicodeDecodeError:
    return ""
  first = text.splitlines()[0][:_SHOWN] if text else ""
  return first if first.isprintable() and "\0" not in text else ""


def _foreign(start: bytes) -> str:
  """What a file is that is known to hold no weights; "" if it may."""
  for magic, what in _FOREIGN.items():
    if start.startswith(magic):
      return what
  if start[257:262] == b"ustar":
    return "a tar archive; unpack it"
  if what := untrusted.substitute(start):
    return what
  if not start.strip(b"\0"):
    return "zeros; the download was cut off"
  return ""
