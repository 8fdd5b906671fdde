"""Captions that a person or another tool wrote, in a table, matched to files.

The table has the columns `path` and `caption`, and may have `split`. A path is
absolute, or relative to the folder of clips or to the table's own; separators
may be those of Windows. Several captions of one file are alternatives, among
which training picks.
"""

import dataclasses
import os
import pathlib
import unicodedata
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax import tables

COLUMNS = ("path", "caption")
TRAIN, TEST = "train", "test"
_SPLITS = {
  "": "",
  TRAIN: TRAIN,
  "training": TRAIN,
  TEST: TEST,
  "eval": TEST,
  "val": TEST,
  "valid": TEST,
  "validation": TEST,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A row of the table.

  Attributes:
    place: its number and line, for messages.
    path: as written, separators and Unicode form apart.
    caption: as written.
    split: "train", "test", or "" where the table does not say.
  """

  place: str
  path: str
  caption: str
  split: str = ""

  @property
  def parts(self) -> tuple[str, ...]:
    """Folders and name, without a drive and without "."."""
    return split_path(self.path)

  @property
  def is_absolute(self) -> bool:
    """Whether the path begins at a root or a drive."""
    return self.path.startswith("/") or self.path[1:2] == ":"


def split_path(path: str) -> tuple[str, ...]:
  """Folders and name of a path, without a drive, "." and empty parts."""
  if path[1:2] == ":":
    path = path[2:]
  return tuple(part for part in path.split("/") if part not in ("", "."))


def read(path: str | os.PathLike[str]) -> list[Row]:
  """Read a table of captions.

  Raises:
    ValueError: the file is no table with these columns, or rows lack a path or
      name an unknown split; all such rows are counted, the first ten listed.
  """
  rows = tables.read_table(path, required=COLUMNS, optional=("split",))
  return tables.parse_rows(path, rows, _row)


def _row(row: tables.Row) -> Row:
  """The row with a plain path and a known split."""
  name = row.cells["path"].strip()
  if not name:
    raise ValueError("no path")
  split = row.cells["split"].strip().casefold()
  if split not in _SPLITS:
    raise ValueError(
      f"split {row.cells['split'].strip()[:40]!r}; expected {TRAIN}, {TEST} or"
      " nothing"
    )
  return Row(
    place=str(row),
    path=normalize(files.with_home(files.unquoted(name))),
    caption=row.cells["caption"],
    split=_SPLITS[split],
  )


def normalize(path: str) -> str:
  """The path in NFC, with `/` between its parts."""
  return unicodedata.normalize("NFC", path).replace("\\", "/")


def _key(parts: Sequence[str]) -> tuple[str, ...]:
  """Parts without the difference of upper and lower case."""
  return tuple(part.casefold() for part in parts)


def _ends_with(parts: Sequence[str], tail: Sequence[str]) -> bool:
  return 0 < len(tail) <= len(parts) and (
    tuple(parts[len(parts) - len(tail) :]) == tuple(tail)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
  """Files by name, to find the one that a row means.

  Attributes:
    names: path relative to the folder of clips -> the file.
    by_name: last part, in lower case -> relative paths.
  """

  names: Mapping[str, pathlib.Path]
  by_name: Mapping[str, Sequence[str]]

  @classmethod
  def of(cls, names: Mapping[str, pathlib.Path]) -> "Files":
    """Index files by their last part."""
    by_name: dict[str, list[str]] = {}
    for name in names:
      parts = split_path(normalize(name))
      by_name.setdefault(parts[-1].casefold(), []).append(name)
    return cls(names=names, by_name=by_name)

  def find(self, row: Row) -> list[str]:
    """The files that a row may mean; one if it is clear, none if missing.

    In this order: the same path; the same but for case; of an absolute path
    of another machine, files whose relative path is its end; of a relative
    path, files that end with it.
    """
    parts = row.parts
    if not parts:
      return []
    found = [
      (name, split_path(normalize(name)))
      for name in self.by_name.get(parts[-1].casefold(), ())
    ]
    for same in (tuple, _key):
      wanted = same(parts)
      exact = [n for n, p in found if same(p) == wanted]
      if exact and not row.is_absolute:
        return exact
      ends = [
        (len(p), n)
        for n, p in found
        if (
          _ends_with(wanted, same(p))
          if row.is_absolute
          else _ends_with(same(p), wanted)
        )
      ]
      if ends and row.is_absolute:
        longest = max(length for length, _ in ends)
        return [n for length, n in ends if length == longest]
      if ends:
        return [n for _, n in ends]
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows, to find those of a file whose folder of clips is not known.

  Attributes:
    rows: by the last part of their path, in lower case.
  """

  rows: Mapping[str, Sequence[Row]]

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> "Table":
    """Read a table; ValueError as `read`."""
    rows: dict[str, list[Row]] = {}
    for row in read(path):
      if row.parts:
        rows.setdefault(row.parts[-1].casefold(), []).append(row)
    return cls(rows=rows)

  def find(self, path: str) -> list[Row]:
    """The rows of a file: of its path, or else of the longest end of it."""
    parts = split_path(normalize(path))
    if not parts:
      return []
    rows = self.rows.get(parts[-1].casefold(), ())
    found = []
    for row in rows:
      if row.is_absolute:
        if row.parts == parts:
          found.append((len(parts) + 1, row))
      elif _ends_with(parts, row.parts):
        found.append((len(row.parts), row))
    most = max((length for length, _ in found), default=0)
    return [row for length, row in found if length == most]


def prompts(
  captions: Iterable[str], variants: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
  """Captions as training reads them.

  Args:
    captions: as written.
    variants: released variants whose form of tags they are written in; none
      leaves the form as it is. Misspelt tags are repaired in any case.

  Returns:
    The cleaned captions, each once and none blank; and notes on their tags.
  """
  known = [geometry.variant(name) for name in variants] or [_ANY]
  made: dict[str, None] = {}
  notes: dict[str, None] = {}
  for caption in captions:
    for variant in known:
      formatted, said = prompt.format_for(caption, variant)
      if cleaned := prompt.clean(formatted):
        made[cleaned] = None
        notes.update(dict.fromkeys(said))
  return list(made), list(notes)


# Takes both forms of the sound's description.
_ANY = dataclasses.replace(
  geometry.variant("720x720_5s"), name="any variant", audio_tag=""
)
