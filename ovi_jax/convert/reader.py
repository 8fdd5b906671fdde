"""Opens weight files of a release, of any format and number.

Reads safetensors and torch files, and shards of them given as a list, pattern,
directory or `*.index.json`, as one `TensorFile`. The format is detected by
content, not by file name. Does not know models or names of tensors. (Index
files: the Transformers library's sharded checkpoints.)
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

from ovi_jax import untrusted
from ovi_jax.convert import mapping
from ovi_jax.convert import torch_file
from ovi_jax.pretrained import file_format
from ovi_jax.pretrained import tensor_file

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"
_DISTRIBUTED = ".distcp"  # of torch.distributed.checkpoint
# The name of a shard, perhaps with the number that browsers add to a copy.
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)((?: ?\(\d+\))?\..*)")
_LISTED = 5  # names in a message
_START = 4096  # bytes of a tensor, of which one is hardly ever not zero

Path = str | os.PathLike[str]


def open_tensors(
  paths: Path | Sequence[Path], key: str | None = None
) -> tensor_file.TensorFile:
  """Open a weight file, or the shards of one model.

  Args:
    paths: a file; a list of shards; a pattern such as `model-*.safetensors`;
      the `*.index.json` beside shards; or a directory with one of these.
    key: of a torch file, read the dict under this name (`generator`).

  Returns:
    The tensors, to be read one by one.

  Raises:
    ValueError: a file is missing, damaged or of an unknown format, or two files
      have the same tensor; names the file, what was expected and what was
      found.
  """
  if isinstance(paths, (str, os.PathLike)):
    path = _within(pathlib.Path(paths))
    files = _matches(path)
    if (
      len(files) == 1
      and file_format.detect(_existing(files[0])) == file_format.JSON
    ):
      return _open_index(files[0])
  else:
    files = [pathlib.Path(p) for p in paths]
  if not files:
    raise ValueError("expected at least one file of weights, got an empty list")
  return _merge([_open_one(_existing(f), key) for f in files])


def _open_one(path: pathlib.Path, key: str | None) -> tensor_file.TensorFile:
  """The tensors of one file, by its content."""
  found = file_format.detect(path)
  if found == file_format.TORCH:
    return torch_file.open_torch(path, key)
  if found == file_format.JSON:
    raise ValueError(f"{path}: expected a file of weights, found JSON")
  if key is not None:
    raise ValueError(
      f"{path}: safetensors have no key {key!r}; use the torch file"
    )
  return tensor_file.open_safetensors(path)


def _existing(path: pathlib.Path) -> pathlib.Path:
  """`path` if it is a file, else an error that says what is there."""
  if path.is_file():
    return path
  if path.exists():
    kind = untrusted.irregular(path)
    raise ValueError(f"expected a file of weights, {path} is {kind}")
  found = "no such directory"
  if path.parent.is_dir():
    names = sorted(p.name for p in path.parent.iterdir())
    more = ", …" if len(names) > _LISTED else ""
    listed = untrusted.printable(", ".join(names[:_LISTED]) or "nothing")
    found = f"only {listed}{more} in it"
  raise ValueError(
    f"expected the weights {path.name} in {path.parent}, found {found}"
  )


def _within(path: pathlib.Path) -> pathlib.Path:
  """The one index, set of shards or file of weights in a directory.

  Safetensors come first where a directory has them and torch files of the same
  name. Hidden files do not count, such as macOS' `._model.safetensors`.
  """
  if not path.is_dir():
    return path
  files = sorted(
    p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")
  )
  if any(p.suffix == _DISTRIBUTED for p in files):
    raise ValueError(
      f"{path}: expected weights, found a checkpoint that is sharded over"
      " processes; join it with `python -m"
      " torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE`"
    )
  indices = [p for p in files if p.name.endswith(_INDEX)]
  weights = [p for p in files if p.suffix in _SUFFIXES]
  folder = pathlib.Path(glob.escape(str(path)))
  sets = {
    folder / f"{glob.escape(m[1])}-*-of-{m[3]}{glob.escape(m[4])}"
    if m
    else weight
    for weight in weights
    for m in [SHARD.fullmatch(weight.name)]
  }
  safetensors = {each for each in sets if each.suffix == _SUFFIXES[0]}
  same = len(set(map(_stem, sets))) == 1
  for found in (indices, sets, safetensors if same else ()):
    if len(found) == 1:
      return found.pop()
  names = sorted(each.name for each in indices or sets)
  listed = untrusted.printable(", ".join(names[:_LISTED]))
  more = ", …" if len(names) > _LISTED else ""
  raise ValueError(
    f"expected one file of weights in {path}, found {len(names) or 'none'}"
    f"{f' ({listed}{more})' if names else ''}; name the file"
  )


def _stem(path: pathlib.Path) -> str:
  """The name that a model has as safetensors and as a torch file."""
  stem = re.sub(r"-\*-of-.*", "", path.stem)
  return "model" if stem == "pytorch_model" else stem


def exists(path: str) -> bool:
  """Whether a path or pattern matches a file."""
  return os.path.exists(path) or bool(glob.has_magic(path) and glob.glob(path))


def _matches(path: pathlib.Path) -> list[pathlib.Path]:
  """The files of a pattern, all shards of one model; or just `path`."""
  if path.exists() or not glob.has_magic(str(path)):
    return [path]
  files = [pathlib.Path(f) for f in sorted(glob.glob(str(path)))]
  if not files:
    return [path]
  numbered = [m for m in map(SHARD.fullmatch, map(str, files)) if m]
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
          " pass the shards of one model"
        )
      spans[name] = span
    values |= part.values
  source = f"{parts[0].source} and {len(parts) - 1} more"
  return tensor_file.TensorFile(source=source, spans=spans, values=values)


def _open_index(path: pathlib.Path) -> tensor_file.TensorFile:
  """The shards an index names, checked against it."""
  try:
    index = untrusted.read_json(path)
  except ValueError as error:
    raise ValueError(
      f"{path}: expected weights or the index of shards, found other text:"
      f" {error}"
    ) from error
  places = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(places, dict) or not places:
    raise ValueError(
      f"{path}: expected weights or the index of shards (a weight_map), found"
      " other JSON"
    )
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
    listed = ", ".join(f"{n!r:.60}" for n in wrong[:_LISTED])
    raise ValueError(
      f"{path}: expected each tensor in the shard that it names, and no"
      f" others; {len(wrong)} not so: {listed}"
    )
  return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digest:
  """Reads tensors and computes their digest in the same pass.

  Attributes:
    source: reads a tensor by its name.
    digests: sha256 of each tensor that was read, by name.
    zeros: names of those with two or more axes that hold zeros alone.
  """

  source: mapping.Read
  digests: dict[str, str] = dataclasses.field(default_factory=dict)
  zeros: list[str] = dataclasses.field(default_factory=list)

  def read(self, name: str) -> np.ndarray:
    """Read the tensor `name`; name, dtype, shape and bytes enter the digest."""
    array = self.source(name)
    head = json.dumps([name, str(array.dtype), list(array.shape)])
    digest = hashlib.sha256(head.encode())
    raw = array.reshape(-1).view(np.uint8)
    digest.update(raw.data)
    # As numbers: a scale of 0 makes -0 of negative ones.
    flat = array.reshape(-1)
    if array.ndim > 1 and not (flat[:_START].any() or flat.any()):
      self.zeros.append(name)
    self.digests[name] = digest.hexdigest()
    return array

  def content(self) -> str:
    """The sha256 of all tensors read so far, in any order and format."""
    lines = "".join(f"{d}\n" for d in sorted(self.digests.values()))
    return hashlib.sha256(lines.encode()).hexdigest()
