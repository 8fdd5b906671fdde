"""Open the weights of a release, whatever the format and number of files.

Takes `.safetensors`, `.pth` and `.pt` files, shards of them by list, by pattern
or by `*.index.json`, and gives one `TensorFile` to read tensor by tensor. Knows
neither models nor names of tensors. (Index files: the Transformers library's
sharded checkpoints.)
"""

import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax.checkpoint import tensor_file
from ovi_jax.convert import torch_file

_TORCH = (".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)(\..*)")
_LISTED = 5  # names in a message

Path = str | os.PathLike[str]


def open_tensors(
  paths: Path | Sequence[Path], key: str | None = None
) -> tensor_file.TensorFile:
  """Find the tensors of a file, or of the shards of one model.

  Args:
    paths: a file; a list of shards; a pattern such as `model-*.safetensors`; or
      the `*.index.json` beside shards.
    key: of a torch file, take the dict under this name (`generator`).

  Raises:
    ValueError: a file is missing, damaged, of an unknown format, or two hold
      the same tensor; names the file, what was expected and what was found.
  """
  if isinstance(paths, (str, os.PathLike)):
    path = pathlib.Path(paths)
    if path.name.endswith(_INDEX):
      return _open_index(_existing(path))
    files = _matches(path)
  else:
    files = [pathlib.Path(p) for p in paths]
  if not files:
    raise ValueError("expected at least one file of weights, got an empty list")
  return _merge([_open_one(_existing(f), key) for f in files])


def _open_one(path: pathlib.Path, key: str | None) -> tensor_file.TensorFile:
  """The tensors of one file, by its suffix."""
  if path.suffix in _TORCH:
    return torch_file.open_torch(path, key)
  if path.suffix != ".safetensors":
    raise ValueError(
      f"{path}: expected a file of weights, .safetensors or one of"
      f" {', '.join(_TORCH)}"
    )
  if key is not None:
    raise ValueError(f"{path}: safetensors have no key {key!r}; leave it out")
  return tensor_file.open_safetensors(path)


def _existing(path: pathlib.Path) -> pathlib.Path:
  """`path` if it is a file, else an error that says what is there."""
  if path.is_file():
    return path
  if path.is_dir():
    raise ValueError(f"expected a file of weights, {path} is a directory")
  found = "no such directory"
  if path.parent.is_dir():
    names = sorted(p.name for p in path.parent.iterdir())
    more = ", …" if len(names) > _LISTED else ""
    found = f"only {', '.join(names[:_LISTED]) or 'nothing'}{more} in it"
  raise ValueError(
    f"expected the weights {path.name} in {path.parent}, found {found}"
  )


def _matches(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a pattern, all shards of one model; or just `path`."""
  if path.exists() or not glob.has_magic(str(path)):
    return [path]
  files = [pathlib.Path(f) for f in sorted(glob.glob(str(path)))]
  if not files:
    return [path]
  numbered = [m for m in map(_SHARD.fullmatch, map(str, files)) if m]
  if numbered:
    stem, _, total, suffix = numbered[0].groups()
    expected = [
      f"{stem}-{n:0{len(total)}}-of-{total}{suffix}"
      for n in range(1, min(int(total), 10_000) + 1)
    ]
    if [str(f) for f in files] != expected:
      raise ValueError(
        f"expected the {int(total)} shards of one model as {path}, found"
        f" {len(files)} files: {', '.join(f.name for f in files[:_LISTED])}"
      )
  return files


def _merge(parts: list[tensor_file.TensorFile]) -> tensor_file.TensorFile:
  """The tensors of several files as of one."""
  if len(parts) == 1:
    return parts[0]
  spans: dict[str, tensor_file.Span] = {}
  values: dict[str, Any] = {}
  for part in parts:
    for name, span in part.spans.items():
      if name in spans:
        raise ValueError(
          f"tensor {name!r:.200} is in {spans[name].path} and in {span.path};"
          " give the shards of one model"
        )
      spans[name] = span
    values |= part.values
  source = f"{parts[0].source} and {len(parts) - 1} more"
  return tensor_file.TensorFile(source=source, spans=spans, values=values)


def _open_index(path: pathlib.Path) -> tensor_file.TensorFile:
  """The shards an index names, checked against it."""
  if path.stat().st_size > tensor_file.HEADER_LIMIT:
    raise ValueError(
      f"{path}: expected an index of at most {tensor_file.HEADER_LIMIT} bytes"
    )
  try:
    index = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path}: expected JSON: {error}") from error
  places = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(places, dict) or not places:
    raise ValueError(f"{path}: expected a weight_map of tensors, found none")
  for file in places.values():
    # A name with a directory could lead anywhere.
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise ValueError(f"{path}: expected file names beside it, found others")
  files = sorted(set(places.values()))
  merged = _merge([_open_one(_existing(path.parent / f), None) for f in files])
  found = {name: span.path.name for name, span in merged.spans.items()}
  if wrong := sorted(
    name
    for name in places.keys() | found.keys()
    if places.get(name) != found.get(name)
  ):
    raise ValueError(
      f"{path}: {len(wrong)} tensors are not in the shard that it names, or"
      f" not in it: {', '.join(f'{n!r:.60}' for n in wrong[:_LISTED])}"
    )
  return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digest:
  """Reads tensors and knows, without a second pass, the identity of the read.

  Attributes:
    file: where the tensors come from.
    digests: SHA-256 of each tensor that was read, by name.
  """

  file: tensor_file.TensorFile
  digests: dict[str, str] = dataclasses.field(default_factory=dict)

  def read(self, name: str) -> np.ndarray:
    """The tensor `name`; its name, dtype, shape and bytes are noted."""
    array = self.file.read(name)
    head = json.dumps([name, str(array.dtype), list(array.shape)])
    digest = hashlib.sha256(head.encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    self.digests[name] = digest.hexdigest()
    return array

  def content(self) -> str:
    """SHA-256 of all tensors read so far, whatever the order or the format."""
    lines = "".join(f"{d}\n" for d in sorted(self.digests.values()))
    return hashlib.sha256(lines.encode()).hexdigest()
