"""Read tables (CSV, TSV) and lists of lines, as spreadsheets save them.

Accepted: UTF-8 with or without a byte-order mark, UTF-16 and UTF-32 with one;
line ends LF, CR LF and CR. Blank lines and rows of empty cells are skipped.
There are no comments. Sizes are bounded, and every error is a `ValueError` that
names the file and, where it can, the row and the line.
"""

import csv
import dataclasses
import difflib
import errno
import io
import logging
import os
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TypeVar

from ovi_jax import storage
from ovi_jax import untrusted

_log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_BYTES = 256 << 20
_SHOWN = 10  # columns in an error
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = ",;\t"
# The longest mark first: that of UTF-32 begins like that of UTF-16.
_MARKS = (
  (b"\xff\xfe\x00\x00", "utf-32"),
  (b"\x00\x00\xfe\xff", "utf-32"),
  (b"\xff\xfe", "utf-16"),
  (b"\xfe\xff", "utf-16"),
)
# What is called .csv by mistake, by its first bytes.
_OTHERS = {
  b"PK\x03\x04": "a workbook or another zip file; export the sheet as CSV",
  b"\xd0\xcf\x11\xe0": "a workbook of Excel; export the sheet as CSV",
  b"%PDF": "PDF",
}
_LINE_END = re.compile(r"\r\n|\r|\n")
_SEPARATOR_LINE = re.compile(r"sep=([,;\t])\n", re.IGNORECASE)
_LINE_MARKS = re.compile("^\ufeff+", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """One row of a table.

  Attributes:
    number: from 1, without the header and skipped rows.
    line: of the file where the row begins, from 1.
    cells: text by column, as written, with LF between lines; every required
      and optional column is there, empty where the table or row has none.
  """

  number: int
  line: int
  cells: Mapping[str, str]

  def __str__(self) -> str:
    return f"row {self.number} (line {self.line})"


def read_table(
  path: str | os.PathLike[str],
  *,
  required: Sequence[str],
  optional: Sequence[str] = (),
) -> list[Row]:
  """Read a CSV or TSV file whose first row names the columns.

  Args:
    path: ends in .csv or .tsv. If the separator of that ending finds no header
      with the required columns, but one of comma, semicolon and tab does, that
      one is taken; a first line `sep=;`, as Excel writes it, decides.
    required: columns that the header must name, once each; case, surrounding
      spaces and the difference of space, `-` and `_` do not matter.
    optional: columns that it may name, at most once each. All others are
      ignored, with a note about a name that is like an absent one of these.

  Returns:
    The rows, at least one.

  Raises:
    ValueError: the file cannot be read, is too large, not text, malformed, has
      no rows, lacks a required column or names one twice, or rows have more
      cells than the header. All such rows are counted, the first ten listed.
  """
  path = storage.locate(path)
  name = untrusted.printable(str(path))
  delimiter = _DELIMITERS.get(path.suffix.lower())
  if delimiter is None:
    if path.is_dir():
      raise ValueError(f"{name} is a folder; expected a file")
    raise ValueError(
      f"{name} ends in {untrusted.printable(path.suffix) or 'nothing'!r};"
      f" expected {' or '.join(_DELIMITERS)}, as workbooks are exported"
    )
  text = _LINE_END.sub("\n", _decode(_read(path), name))
  if text.lstrip().startswith(('{"', "[{", "[\n")):
    raise ValueError(f"{name} is JSON; expected a table, with a header")
  if separator := _SEPARATOR_LINE.match(text):
    delimiters = separator[1]
    # The line stays, empty, so that lines are counted as the file has them.
    text = text[separator.end(1) :]
  else:
    delimiters = delimiter + _OTHER_DELIMITERS.replace(delimiter, "")
  columns = [*required, *optional]
  for delimiter in delimiters:
    header = _header(text, delimiter)
    if set(required) <= {_match(cell, columns) for cell in header}:
      break
  else:
    delimiter = delimiters[0]
  rows = _rows(text, delimiter, name, required, columns)
  _note_misspelt(name, _header(text, delimiter), columns)
  return rows


def _note_misspelt(
  name: str, header: Sequence[str], columns: Sequence[str]
) -> None:
  """Log columns that are ignored but named like one that is absent."""
  found = {cell: _match(cell, columns) for cell in header}
  absent = [column for column in columns if column not in found.values()]
  for cell in (cell for cell, match in found.items() if match not in columns):
    if near := difflib.get_close_matches(cell.strip().lower(), absent, n=1):
      _log.info(
        f"note: {name}: the column {untrusted.printable(cell)!r} is ignored"
        f" (did you mean {near[0]}?)"
      )


def parse_rows(
  path: str | os.PathLike[str],
  rows: Iterable[Row],
  parse: Callable[[Row], T],
) -> list[T]:
  """Make something of every row, and report all that fail at once.

  Args:
    path: the table, for the message.
    rows: from `read_table`.
    parse: raises ValueError, without naming the row, for one that will not do.

  Returns:
    What `parse` returns, in order.

  Raises:
    ValueError: rows failed; all are counted, the first ten listed.
  """
  parsed, problems = [], []
  for row in rows:
    try:
      parsed.append(parse(row))
    except ValueError as error:
      problems.append(f"{row}: {error}")
  _check(untrusted.printable(str(path)), problems)
  return parsed


def read_list(path: str | os.PathLike[str]) -> list[str]:
  """Read the lines of a text file that are not blank; see `parse_list`."""
  return parse_list(_read(storage.locate(path)), str(path))


def parse_list(data: bytes, name: str = "the list") -> list[str]:
  """Split the content of a text file into lines that are not blank.

  Args:
    data: text; without a byte-order mark, bytes that are not UTF-8 are kept as
      surrogates, since names of files may hold any.
    name: of the file, for the message.

  Returns:
    The lines without their ends; spaces are kept.

  Raises:
    ValueError: it is too large or holds NUL characters.
  """
  text = _decode(data, untrusted.printable(name), "surrogateescape")
  return [line for line in _LINE_END.split(text) if line.strip()]


def _read(path: storage.AnyPath) -> bytes:
  """The bytes of a file, one more than is allowed at most."""
  name = untrusted.printable(str(path))
  if not isinstance(path, pathlib.Path):
    try:
      return storage.read_bytes(path, MAX_BYTES + 1)
    except OSError as error:
      raise ValueError(
        f"{name}: {error.strerror or error}; expected a file"
      ) from error
  try:
    kind = untrusted.irregular(path)
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      name = f"{name} ({len(str(path))} characters)"
    raise ValueError(f"{name}: {error.strerror}; expected a file") from error
  except ValueError as error:
    # A NUL, or a character that the file system's encoding lacks.
    raise ValueError(f"{name!r} is no name of a file: {error}") from error
  if kind:
    raise ValueError(f"{name} is {kind}; expected a file")
  try:
    with path.open("rb") as file:
      return untrusted.read_at_most(file, MAX_BYTES + 1)
  except OSError as error:
    raise ValueError(f"{name}: {error.strerror}; expected a file") from error


def _decode(data: bytes, name: str, errors: str = "strict") -> str:
  """Text without its byte-order marks; ValueError if it is none."""
  if len(data) > MAX_BYTES:
    raise ValueError(f"{name} has more than {MAX_BYTES >> 20} MiB of text")
  for start, kind in _OTHERS.items():
    if data.startswith(start):
      raise ValueError(f"{name} is {kind}; expected lines of text")
  if found := untrusted.substitute(data[:512], prose=True):
    raise ValueError(f"{name} is {found}; expected lines of text")
  encoding = next((e for m, e in _MARKS if data.startswith(m)), "utf-8")
  try:
    text = data.decode(encoding, errors if encoding == "utf-8" else "strict")
  except UnicodeDecodeError as error:
    line = 1 + data[: error.start].count(b"\n")
    raise ValueError(
      f"{name} is not {encoding.upper()} (byte {error.start}, line {line});"
      ' save it as UTF-8 (in Excel: "CSV UTF-8")'
    ) from error
  if "\0" in text:
    line = 1 + text.count("\n", 0, text.index("\0"))
    raise ValueError(
      f"{name} holds a NUL character (line {line}): expected text; UTF-16"
      " needs a byte-order mark, better save it as UTF-8"
    )
  # Files that were put together from several have marks within.
  return _LINE_MARKS.sub("", text)


def _header(text: str, delimiter: str) -> list[str]:
  """The cells of the first row that is not empty."""
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
  try:
    return next((r for r in reader if any(c.strip() for c in r)), [])
  except csv.Error:
    return []


def _match(cell: str, columns: Sequence[str]) -> str | None:
  """The column that a cell of the header names."""
  wanted = {_plain(column): column for column in columns}
  return wanted.get(_plain(cell))


def _plain(name: str) -> str:
  """A column's name without case, and with one kind of space."""
  return re.sub(r"[\s_-]+", "_", name.strip().casefold())


def _rows(
  text: str,
  delimiter: str,
  name: str,
  required: Sequence[str],
  columns: Sequence[str],
) -> list[Row]:
  """The rows below the header, with cells by column."""
  table = _records(text, delimiter, name)
  needed = " and ".join(required)
  if not table:
    raise ValueError(f"{name} is empty; expected a header with {needed}")
  (_, header), *records = table
  names = [_match(cell, columns) for cell in header]
  if any(names.count(c) != 1 for c in required) or any(
    names.count(c) > 1 for c in columns
  ):
    shown = [untrusted.printable(cell.strip(), 40) for cell in header[:_SHOWN]]
    more = f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else ""
    also = [c for c in columns if c not in required]
    raise ValueError(
      f"{name} needs one column {needed}"
      + (f" and at most one each of {' and '.join(also)}" if also else "")
      + f"; its header has {shown}{more}"
      + ("" if len(header) > 1 else "; cells are separated by , ; or tab")
    )
  if not records:
    raise ValueError(f"{name} has a header but no rows")
  rows, problems = [], []
  for number, (line, record) in enumerate(records, 1):
    cells = dict.fromkeys(columns, "")
    cells |= {c: v for c, v in zip(names, record) if c is not None}
    rows.append(Row(number=number, line=line, cells=cells))
    if any(cell.strip() for cell in record[len(header) :]):
      problems.append(
        f"{rows[-1]}: {len(record)} cells for {len(header)} columns; put a"
        " cell that holds the separator in double quotes"
      )
  _check(name, problems)
  return rows


def _records(
  text: str, delimiter: str, name: str
) -> list[tuple[int, list[str]]]:
  """Rows that are not empty, header included, and the lines they begin at."""
  reader = csv.reader(
    io.StringIO(text, newline=""), delimiter=delimiter, strict=True
  )
  records: list[tuple[int, list[str]]] = []
  line = 1
  try:
    for record in reader:
      if any(cell.strip() for cell in record):
        records.append((line, record))
      line = reader.line_num + 1
  except csv.Error as error:
    row = f"row {len(records)}" if records else "the header"
    if "field limit" in str(error):
      limit = csv.field_size_limit()
      start = text.split("\n", line - 1)[-1][: limit + 1]
      raise ValueError(
        f"{name}: {row} (line {line}) has a cell of more than {limit}"
        " characters, the limit"
        + ("; is a double quote unclosed?" if '"' in start else "")
      ) from error
    raise ValueError(
      f"{name}: {row} (line {line}) is malformed: {error}; is a"
      " double quote unclosed, or one inside not doubled?"
    ) from error
  return records


def _check(name: str, problems: Sequence[str]) -> None:
  """ValueError that lists the first ten problems, if there are any."""
  if problems:
    lines = untrusted.shortened(problems, "more rows")
    raise ValueError("\n  ".join([f"{name}:", *lines]))
