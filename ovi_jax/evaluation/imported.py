"""Features that were computed elsewhere, in a folder of ours.

`EXTRACTOR.npz` has an array `ARRAY/CLIP` for each clip. `av_benchmark` converts
the caches of av-benchmark to this form.
"""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ovi_jax import files

SUFFIX = ".npz"
# Clip name -> array name -> array.
Table = Mapping[str, Mapping[str, np.ndarray]]


def write(folder: pathlib.Path, extractor: str, table: Table) -> None:
  """Write the features of an extractor.

  Raises:
    OSError: the folder cannot be written, or the disk is full.
  """
  arrays: dict[str, Any] = {
    f"{array}/{clip}": np.asarray(value)
    for clip, found in table.items()
    for array, value in found.items()
  }
  path = folder / f"{extractor}{SUFFIX}"
  with files.atomic_path(path) as temporary, open(temporary, "wb") as file:
    np.savez(file, **arrays)


def read(folder: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """Read all features of a folder.

  Returns:
    For each clip its arrays by `extractor.array`.

  Raises:
    ValueError: there is no such folder, or a file of it is damaged, or has
      numbers that are not finite, or arrays of anything but numbers and text.
  """
  paths = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
  if not paths:
    raise ValueError(
      f"{folder}: expected a folder that import-features wrote, found no"
      f" *{SUFFIX}"
    )
  tables: dict[str, dict[str, np.ndarray]] = {}
  for path in paths:
    try:
      with (
        open(path, "rb") as file,
        np.load(file, allow_pickle=False) as stored,
      ):
        for key in stored.files:
          array, slash, clip = key.partition("/")
          if not slash:
            raise ValueError(f"expected names ARRAY/CLIP, found {key!r:.80}")
          table = tables.setdefault(clip, {})
          table[f"{path.stem}.{array}"] = _checked(key, stored[key])
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
      raise ValueError(f"{path}: {error}; import it again") from error
  return tables


def _checked(key: str, array: np.ndarray) -> np.ndarray:
  if array.dtype.kind not in "biufU":
    raise ValueError(
      f"{key!r:.80}: expected numbers or text, found {array.dtype}"
    )
  if array.dtype.kind != "U" and not np.isfinite(array).all():
    raise ValueError(f"{key!r:.80}: expected finite numbers, found NaN or inf")
  return array


def extractors(folder: pathlib.Path) -> list[str]:
  """Names of the extractors of a folder."""
  return sorted(path.stem for path in folder.glob(f"*{SUFFIX}"))
