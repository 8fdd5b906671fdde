"""Extractors: clips to named arrays, cached on disk.

The cache has a folder for each extractor, named by a hash of its version,
settings and weights, and in it a file for each content: the bytes of the clip,
what is changed of it, and its text if that is read. An interrupted extraction
resumes, a renamed clip keeps its features, and a changed one gets new ones.
"""

import dataclasses
import hashlib
import importlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import console
from ovi_jax import files
from ovi_jax.evaluation import clips as clips_lib

Arrays = Mapping[str, Any]  # NumPy arrays and numbers
Compute = Callable[[Sequence[clips_lib.Media]], Sequence[Arrays]]


def numbers(clip: Arrays, name: str, axes: int) -> np.ndarray | None:
  """An array of a clip, float64; None if the clip has none of this name.

  Args:
    clip: its arrays.
    name: of the array.
    axes: number of axes that it must have, besides those of length one that a
      number has.

  Raises:
    ValueError: it has other axes, or is not of numbers.
  """
  if name not in clip:
    return None
  try:
    array = np.asarray(clip[name], np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{name}: expected numbers: {error!s:.80}") from error
  if not axes and array.size == 1:
    array = array.reshape(())
  if array.ndim != axes:
    kinds = ("a number", "a list of numbers", "rows of numbers")
    raise ValueError(
      f"{name}: expected {kinds[axes]}, found shape {array.shape}"
    )
  return array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
  """Computes features of clips.

  Attributes:
    name: features are `name.array`.
    version: to be raised when the code changes its results.
    needs: of `clips.PICTURE`, `clips.SOUND` and `clips.TEXT`; a clip that lacks
      one has no features.
    load: makes the function from media to arrays, for example by reading
      weights; called only if a clip is not in the cache. Raises ValueError if
      it cannot.
    settings: what else decides the result: preprocessing, sizes; for JSON.
    weights: SHA-256 of the weights; "" without.
    batch_size: number of clips per call.
    missing: says what keeps it from running, with advice; "" if nothing does.
  """

  name: str
  version: int
  needs: tuple[str, ...]
  load: Callable[[], Compute]
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  weights: str = ""
  batch_size: int = 1
  missing: str = ""

  @property
  def folder_name(self) -> str:
    """Name of its folder in the cache."""
    return f"{self.name}-{hashlib.sha256(self._identity()).hexdigest()[:16]}"

  def _identity(self) -> bytes:
    """What decides the features of a content."""
    identity = {
      "name": self.name,
      "version": self.version,
      "settings": dict(self.settings),
      "weights": self.weights,
    }
    return json.dumps(identity, sort_keys=True).encode()

  def describe(self) -> dict[str, Any]:
    """Its identity, for the report."""
    return json.loads(self._identity())


def custom(name: str) -> Extractor:
  """An extractor by its dotted path.

  Args:
    name: `package.module:function`, a function without arguments that returns
      an `Extractor`.

  Raises:
    ValueError: it cannot be imported, or returns something else.
  """
  module, _, attribute = name.partition(":")
  try:
    found = getattr(importlib.import_module(module), attribute)()
  except (ImportError, AttributeError, TypeError) as error:
    raise ValueError(
      f"extractor {name!r}: expected package.module:function that makes an"
      f" extractor: {error}"
    ) from error
  if not isinstance(found, Extractor):
    raise ValueError(
      f"extractor {name!r}: expected an {Extractor.__name__}, got"
      f" {type(found).__name__}"
    )
  return found


def extract(
  extractors: Sequence[Extractor],
  sources: Sequence[clips_lib.Source],
  cache: pathlib.Path,
) -> list[dict[str, np.ndarray]]:
  """Compute features, or take them from the cache.

  Args:
    extractors: none of which is `missing` anything.
    sources: clips, or changed ones.
    cache: folder; made if absent.

  Returns:
    For each source its arrays by `extractor.array`; without those that need
    what the source has not.

  Raises:
    ValueError: weights or a clip cannot be read.
    OSError: the cache cannot be written.
  """
  tables: list[dict[str, np.ndarray]] = [{} for _ in sources]
  todo: dict[str, list[int]] = {}
  for extractor in extractors:
    for index, source in enumerate(sources):
      if not all(map(source.has, extractor.needs)):
        continue
      stored = _load(_path(cache, extractor, source))
      if stored is None:
        todo.setdefault(extractor.name, []).append(index)
      else:
        tables[index] |= _named(extractor, stored)
  if not todo:
    return tables
  computes = {e.name: e.load() for e in extractors if e.name in todo}
  total = sum(map(len, todo.values()))
  with console.progress(total=total, desc="features", unit="clip") as bar:
    for group in _groups(extractors, todo):
      _run_group(group, computes, todo, sources, cache, tables, bar)
  return tables


def _groups(
  extractors: Sequence[Extractor], todo: Mapping[str, Sequence[int]]
) -> list[list[Extractor]]:
  """Those of one clip per call share its media; others run alone."""
  needed = [e for e in extractors if e.name in todo]
  together = [e for e in needed if e.batch_size == 1]
  alone = [[e] for e in needed if e.batch_size > 1]
  return [together, *alone] if together else alone


def _run_group(
  group: Sequence[Extractor],
  computes: Mapping[str, Compute],
  todo: Mapping[str, Sequence[int]],
  sources: Sequence[clips_lib.Source],
  cache: pathlib.Path,
  tables: list[dict[str, np.ndarray]],
  bar: Any,
) -> None:
  indices = sorted({index for e in group for index in todo[e.name]})
  size = group[0].batch_size
  for start in range(0, len(indices), size):
    batch = indices[start : start + size]
    media = {index: clips_lib.Media(sources[index]) for index in batch}
    for extractor in group:
      wanted = [index for index in batch if index in set(todo[extractor.name])]
      if not wanted:
        continue
      found = computes[extractor.name]([media[index] for index in wanted])
      for index, arrays in zip(wanted, found, strict=True):
        plain: dict[str, Any] = {
          name: np.asarray(array) for name, array in arrays.items()
        }
        _save(_path(cache, extractor, sources[index]), plain)
        tables[index] |= _named(extractor, plain)
      bar.update(len(wanted))


def _named(extractor: Extractor, arrays: Arrays) -> dict[str, np.ndarray]:
  return {f"{extractor.name}.{key}": value for key, value in arrays.items()}


def _path(
  cache: pathlib.Path, extractor: Extractor, source: clips_lib.Source
) -> pathlib.Path:
  return cache / extractor.folder_name / f"{source.key(extractor.needs)}.npz"


def _save(path: pathlib.Path, arrays: Arrays) -> None:
  with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **arrays)


def _load(path: pathlib.Path) -> dict[str, np.ndarray] | None:
  """Stored arrays; None if there are none, or they are damaged."""
  try:
    # NumPy leaves a file that it opened itself open if it is damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
      return {name: stored[name] for name in stored.files}
  except FileNotFoundError:
    return None
  except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None
