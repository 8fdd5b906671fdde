"""Reads and writes SyncNet weights.

Our format is safetensors with the sizes in its header. The public torch file,
`syncnet_v2.model` (robots.ox.ac.uk/~vgg/software/lipsync), is read directly or
converted (`python -m ovi_jax.curation.sync.convert`).
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ovi_jax import untrusted
from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.convert import torch_file
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row
from ovi_jax.curation.models import syncnet
from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights

_SIZES = "syncnet"  # key of the header
_PLACES = (
  0,
  4,
  8,
  11,
  14,
  18,
)  # indices of the convolutions in both layer lists
_FIRST = Rearrange("o i t h w -> t h w i o")
_FRAMES = Rearrange("o i 1 h w -> h w i o")
_PICTURE = Rearrange("o i h w -> h w i o")
_COUNTER = ".num_batches_tracked"  # newer versions of torch add these


def rows() -> list[Row]:
  """The table of the public file, the same for all sizes."""
  table: list[Row] = []
  for theirs, head, ours in (
    ("netcnnlip", "netfclip", "lips"),
    ("netcnnaud", "netfcaud", "sound"),
  ):
    for number, place in enumerate(_PLACES):
      layout = _PICTURE if ours == "sound" else _FRAMES if number else _FIRST
      name, path = f"{theirs}.{place}", f"{ours}/layer_{number}"
      table += [
        Row(f"{name}.weight", f"params/{path}/conv/kernel", layout),
        Row(f"{name}.bias", f"params/{path}/conv/bias"),
        *_norm(f"{theirs}.{place + 1}", f"{path}/norm"),
      ]
    table += [
      *mapping.linear(f"{head}.0", f"params/{ours}/head/in"),
      *_norm(f"{head}.1", f"{ours}/head/norm"),
      *mapping.linear(f"{head}.3", f"params/{ours}/head/out"),
    ]
  return table


def _norm(torch: str, ours: str) -> list[Row]:
  return [
    Row(f"{torch}.weight", f"params/{ours}/scale"),
    Row(f"{torch}.bias", f"params/{ours}/bias"),
    Row(f"{torch}.running_mean", f"batch_stats/{ours}/mean"),
    Row(f"{torch}.running_var", f"batch_stats/{ours}/var"),
  ]


def load(
  path: str | os.PathLike[str],
) -> tuple[syncnet.SyncNetConfig, dict[str, Any]]:
  """Read weights in either format.

  Args:
    path: of a file in our format, or of the public one.

  Returns:
    The sizes, and the variables of `syncnet.SyncNet`, float32.

  Raises:
    ValueError: the file is missing, damaged, or of another network.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f"expected SyncNet's weights at {path}, found no such file; give the"
      " public syncnet_v2.model, or train with"
      " python -m ovi_jax.curation.sync.train"
    )
  tensors = reader.open_tensors(path)
  sizes = tensors.values.get(_SIZES)
  if not isinstance(sizes, str):
    return _load_public(path, tensors)
  try:
    config = syncnet.SyncNetConfig.from_json(untrusted.parse_json(sizes))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: its sizes are not SyncNet's: {error!s:.200}"
    ) from error
  _check(path, weights.shapes(path), config)
  return config, weights.load(path, dtype=np.float32)


def _check(
  path: pathlib.Path, found: Mapping[str, Any], config: syncnet.SyncNetConfig
) -> None:
  """ValueError unless the parameters match the header."""
  wanted = {p: x.shape for p, x in _flat_shapes(config).items()}
  got = {p: tuple(x.shape) for p, x in found.items()}
  if wrong := sorted(
    p for p in wanted.keys() | got.keys() if wanted.get(p) != got.get(p)
  ):
    raise ValueError(
      f"{path}: {len(wrong)} parameters are not those of its header, the"
      f" first is {wrong[0]}; convert or train it again"
    )


def _load_public(
  path: pathlib.Path, tensors: tensor_file.TensorFile
) -> tuple[syncnet.SyncNetConfig, dict[str, Any]]:
  """Sizes and variables from tensors with the public file's names."""
  shapes = {n: s for n, s in tensors.shapes.items() if not n.endswith(_COUNTER)}
  config = _config(shapes)
  ours = {p: x.shape for p, x in _flat_shapes(config).items()}
  try:
    mapping.check(rows(), shapes, ours)
  except ValueError as error:
    raise ValueError(f"{path} is no SyncNet: {error}") from error
  flat = mapping.gather(rows(), tensors.read)
  typed = {p: np.asarray(x, np.float32) for p, x in flat.items()}
  return config, mapping.nest(typed)


def _config(shapes: Mapping[str, tuple[int, ...]]) -> syncnet.SyncNetConfig:
  """The sizes implied by tensor shapes; the public ones where missing."""
  full = syncnet.SyncNetConfig()

  def size(name: str, default: int) -> int:
    shape = shapes.get(f"{name}.weight", ())
    return shape[0] if shape and shape[0] else default

  return syncnet.SyncNetConfig(
    lip_channels=tuple(
      size(f"netcnnlip.{p}", n)
      for p, n in zip(_PLACES, full.lip_channels, strict=True)
    ),
    audio_channels=tuple(
      size(f"netcnnaud.{p}", n)
      for p, n in zip(_PLACES, full.audio_channels, strict=True)
    ),
    hidden_dim=size("netfclip.0", full.hidden_dim),
    embedding_dim=size("netfclip.3", full.embedding_dim),
  )


def _flat_shapes(
  config: syncnet.SyncNetConfig,
) -> dict[str, jax.ShapeDtypeStruct]:
  return mapping.flatten(syncnet.shapes(config))


def save(
  path: str | os.PathLike[str],
  config: syncnet.SyncNetConfig,
  variables: Mapping[str, Any],
) -> None:
  """Write weights in our format, atomically.

  Args:
    path: to write, `.safetensors`.
    config: the sizes.
    variables: of `syncnet.SyncNet`.

  Raises:
    ValueError: another suffix, or variables of other sizes.
    OSError: the disk is full, or the folder is not writable.
  """
  path = pathlib.Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"expected a name that ends in .safetensors, got {path}")
  flat = mapping.flatten(variables)
  _check(path, flat, config)
  sizes = {_SIZES: json.dumps(dataclasses.asdict(config), sort_keys=True)}
  with weights.Writer(path, _flat_shapes(config), sizes) as writer:
    for name in sorted(flat):
      writer.write(name, None, np.asarray(flat[name]))


def export(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
  """Write weights under the public file's names, for torch to read."""
  flat = mapping.flatten(variables)
  read = {p: np.asarray(x) for p, x in flat.items()}
  torch_file.save(path, mapping.to_torch(rows(), lambda p, _: read[p]))
