"""A dummy release: names and file formats of the release, small random weights.

Every value is a fixed function of the tensor's name, so the release needs no
download and outputs computed on it elsewhere stay comparable.
"""

import functools
import json
import pathlib
import zlib
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent


@functools.cache
def manifest() -> dict[str, Any]:
  """Seed, architecture sizes (`config`) and tensors of each file (`files`)."""
  return json.loads((HERE / "manifest.json").read_text())


def tensors(file: str) -> dict[str, np.ndarray]:
  """All tensors of one file of the dummy release, float32, by name."""
  entries = manifest()["files"][file]
  return {name: values(name, entry) for name, entry in entries.items()}


def values(
  name: str, entry: dict[str, Any], seed: int | None = None
) -> np.ndarray:
  """The float32 tensor `name`, as its manifest entry says to make it.

  The legacy `RandomState` is meant: its stream never changes.

  Args:
    name: of the tensor.
    entry: its `shape`, `kind` and, for some kinds, `std` or `value`.
    seed: of the weights; by default the manifest's.
  """
  shape, kind = tuple(entry["shape"]), entry["kind"]
  if kind == "value":
    return np.asarray(entry["value"], np.float32).reshape(shape)
  if kind == "scalar":
    return np.full(shape, 0.1, np.float32)
  if seed is None:
    seed = int(manifest()["seed"])
  stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
  noise = stream.standard_normal(shape)
  noise = noise.astype(np.float32)
  match kind:
    case "matrix":
      fan_in = np.prod(shape[1:])
      # In this order of operations, to the bit.
      return noise * np.float32(entry["std"]) / np.float32(fan_in**0.5)
    case "gain":
      return (np.float32(entry["std"]) * (1 + 0.1 * noise)).astype(np.float32)
    case "scale":
      return (1 + 0.2 * noise).astype(np.float32)
    case "small":
      return (0.1 * noise).astype(np.float32)
  raise ValueError(f"manifest kind of {name}: {kind!r} is not known")
