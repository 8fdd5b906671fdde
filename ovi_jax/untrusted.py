"""Reading text that somebody else wrote: JSON within limits, printable names.

Files that describe weights, datasets and checkpoints are downloaded and passed
on. Their JSON is bounded in bytes, depth and in the size of its numbers before
any value is used, and text from them is escaped before it reaches a terminal.
"""

import codecs
import itertools
import json
import math
import os
import pathlib
import re
import stat
import unicodedata
from collections.abc import Sequence
from typing import Any
from typing import BinaryIO

MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 64
_CHUNK = 1 << 20
_LISTED = 10  # problems in a message
_MAX_DIGITS = 40  # of an integer; 2**128 has 39
# How a web page begins. Sentences may begin with `<head>` or `<headline>`.
_PROSE_PAGE = re.compile(rb"<(!doctype|\?xml|html[\s>])", re.IGNORECASE)
_PAGE = re.compile(rb"<(!doctype|\?xml|(html|head)[\s>])", re.IGNORECASE)

# A string is matched whole, so that brackets within it do not count.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEPS = dict(zip(b"[{]}", (1, 1, -1, -1)))
_NO_BRACKETS = bytes(set(range(256)) - _STEPS.keys())


def read_json(
  path: str | os.PathLike[str],
  *,
  max_bytes: int = MAX_JSON_BYTES,
  max_depth: int = MAX_JSON_DEPTH,
  finite: bool = True,
) -> Any:
  """Read a JSON file of unknown origin.

  Args:
    path: the file.
    max_bytes: largest file that is read.
    max_depth: deepest nesting of lists and objects.
    finite: refuse NaN and infinity.

  Returns:
    The value, as `json.loads` gives it.

  Raises:
    ValueError: the file is larger or deeper than allowed, is not JSON, see
      `parse_json`, or is no regular file. The message does not name the file.
    OSError: it cannot be read.
  """
  return parse_json(
    read_regular(path, max_bytes),
    max_bytes=max_bytes,
    max_depth=max_depth,
    finite=finite,
  )


def substitute(start: bytes, prose: bool = False) -> str:
  """What a download has in place of a file, and what to do; "" if nothing.

  Args:
    start: the first bytes of the file, some hundred.
    prose: the file may hold sentences, which may begin with `<head>`.
  """
  start = start.removeprefix(codecs.BOM_UTF8).lstrip()
  if start.startswith(b"version https://git-lfs"):
    size = re.search(rb"size (\d{1,15})\b", start)
    gib = int(size[1]) / 2**30 if size else 0
    full = f" of {gib:.1f} GiB" if gib >= 0.1 else ""
    return (
      f"a git-lfs pointer to the file{full}; fetch the file itself, for example"
      " with `git lfs pull`"
    )
  page = _PROSE_PAGE if prose else _PAGE
  if page.match(start):
    return (
      "a web page: the address needs a login or is the page about the file;"
      " fetch the file itself"
    )
  return ""


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes:
  """The bytes of a regular file, of a larger one `max_bytes` + 1.

  Raises:
    ValueError: it is no regular file. The message does not name it.
    OSError: it cannot be read.
  """
  if kind := irregular(path):
    raise ValueError(f"expected a regular file, found {kind}")
  with pathlib.Path(path).open("rb") as file:
    return read_at_most(file, max_bytes + 1)


def irregular(path: str | os.PathLike[str]) -> str:
  """What is under a path if it is not a regular file: "a named pipe".

  To be asked before `open`, which waits for a writer of a pipe, and which some
  devices act on.

  Args:
    path: links are followed.

  Returns:
    A noun with its article; "" for a regular file.

  Raises:
    OSError: there is nothing.
    ValueError: the path has a NUL.
  """
  mode = os.stat(path).st_mode
  if stat.S_ISREG(mode):
    return ""
  kinds = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
  }
  return kinds.get(stat.S_IFMT(mode), "a device")


def read_at_most(file: BinaryIO, max_bytes: int) -> bytes:
  """Read up to `max_bytes` without a buffer larger than the file.

  `file.read(n)` allocates n bytes even if the file is short.
  """
  parts, left = [], max_bytes
  while left > 0 and (part := file.read(min(left, _CHUNK))):
    parts.append(part)
    left -= len(part)
  return b"".join(parts)


def parse_json(
  data: bytes | str,
  *,
  max_bytes: int = MAX_JSON_BYTES,
  max_depth: int = MAX_JSON_DEPTH,
  max_values: int | None = None,
  finite: bool = True,
) -> Any:
  """Parse JSON of unknown origin.

  Args:
    data: UTF-8 text, with or without a byte-order mark.
    max_bytes: most bytes that are parsed.
    max_depth: deepest nesting of lists and objects.
    max_values: most members of all lists and objects together; `None` for no
      limit but that of the bytes.
    finite: refuse NaN and infinity.

  Returns:
    The value, as `json.loads` gives it.

  Raises:
    ValueError: it is longer or deeper or has more values than allowed, is not
      UTF-8 or not JSON, names a key twice, or has an integer of more than 40
      digits or, with `finite`, a number that is not finite.
  """
  raw = data.encode() if isinstance(data, str) else data
  if len(raw) > max_bytes:
    raise ValueError(f"expected JSON of at most {max_bytes} bytes, found more")
  if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    raise ValueError("expected JSON in UTF-8, found UTF-16; save it as UTF-8")
  raw = raw.removeprefix(codecs.BOM_UTF8)  # as Windows' editors begin files
  structure = _STRING.sub(b"", raw)
  _check_count(structure, max_values)
  _check_depth(structure, max_depth)
  try:
    return json.loads(
      raw.decode(),
      object_pairs_hook=_unique,
      parse_int=_integer,
      parse_float=_finite if finite else float,
      parse_constant=_finite if finite else float,
    )
  except UnicodeDecodeError as error:
    raise ValueError(f"expected JSON in UTF-8: {error}") from error
  except json.JSONDecodeError as error:
    raise ValueError(f"expected JSON: {error}") from error


def _check_count(structure: bytes, max_values: int | None) -> None:
  """ValueError if JSON without its strings has more values than allowed."""
  if max_values is None:
    return
  # As many lists and objects may be empty.
  found = sum(map(structure.count, (b",", b"[", b"{")))
  if found > max_values:
    raise ValueError(
      f"expected JSON of at most {max_values} values, found {found}"
    )


def _check_depth(structure: bytes, max_depth: int) -> None:
  """ValueError if JSON without its strings nests deeper than allowed."""
  brackets = structure.translate(None, _NO_BRACKETS)
  depths = itertools.accumulate(map(_STEPS.__getitem__, brackets))
  if max(depths, default=0) > max_depth:
    raise ValueError(
      f"expected JSON nested at most {max_depth} deep, found more"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A dict of `pairs`, none named twice."""
  result = dict(pairs)
  if len(result) != len(pairs):
    seen: set[str] = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f"expected each key once, found {twice!r:.60} twice")
  return result


def _integer(text: str) -> int:
  if len(text.lstrip("-")) > _MAX_DIGITS:
    raise ValueError(
      f"expected numbers of at most {_MAX_DIGITS} digits, found {len(text)}"
    )
  return int(text)


def _finite(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"expected finite numbers, found {text:.40}")
  return value


def printable(text: str, limit: int = 200) -> str:
  """Escape what a terminal would act on, and cut long text.

  Args:
    text: from a file or a network.
    limit: most characters that are kept, before escaping.

  Returns:
    The text with control characters, line ends, surrogates and invisible
    format characters written as `\\x1b`, `\\n`, `\\u202e`.
  """
  return escape(text if len(text) <= limit else text[:limit] + "…")


def counted(number: int, noun: str) -> str:
  """A number and a noun whose plural ends in s: "1 tensor", "2 tensors"."""
  return f"{number} {noun}{'' if number == 1 else 's'}"


def shortened(lines: Sequence[str], noun: str = "more") -> list[str]:
  """The first ten lines, and how many more there are.

  Args:
    lines: problems or notes.
    noun: what the others are called.
  """
  more = len(lines) - _LISTED
  return [*lines[:_LISTED], *([f"and {more} {noun}"] if more > 0 else [])]


def escape(text: str, keep: str = "") -> str:
  """Escape what a terminal would act on.

  Args:
    text: from a file or a network.
    keep: control characters that stay as they are.

  Returns:
    See `printable`. Spaces of any width stay.
  """
  if text.isprintable():
    return text
  return "".join(
    c
    if c.isprintable() or c in keep or unicodedata.category(c) == "Zs"
    else c.encode("unicode_escape").decode()
    for c in text
  )
