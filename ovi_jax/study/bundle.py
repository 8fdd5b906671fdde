"""A static copy of the page for crowd platforms, and its importer.

  BUNDLE/index.html page.js page.css   the page, from any static web host
  BUNDLE/media/                        clips under opaque names
  BUNDLE/sessions.json                 texts; for each session its pairs

Each worker opens `index.html#session=N` and gets a code at the end, which the
platform collects. `import` reads a table with the column `code`. What the
sessions consist of stays in the study's folder, in bundle.json.
"""

import base64
import binascii
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from ovi_jax import console
from ovi_jax import files
from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import server

FILE, SESSIONS = "bundle.json", "sessions.json"
MAX_SESSIONS = 10_000
_MAX_CODE = 64 << 10
_MAX_BYTES = 256 << 20
_RUN = re.compile("[0-9a-f]{16}")
_LETTERS = {choice[0]: choice for choice in database.CHOICES}


class Imported(NamedTuple):
  """Result of an import: numbers of sessions, and one line for each problem."""

  new: int
  known: int
  problems: tuple[str, ...]


def sessions(
  study: manifest.Study, number: int
) -> list[list[database.Assignment]]:
  """Sessions that together judge every item equally often, as the server's.

  Args:
    study: of the sessions.
    number: of sessions.

  Returns:
    The items of each session in order.
  """
  judged = dict.fromkeys(range(len(study.items)), 0)
  balance = dict.fromkeys(range(len(study.items)), 0)
  found = []
  for index in range(number):
    rater = f"session {index}"
    items: list[database.Assignment] = []
    golds = iter(assignment.gold(study, rater))
    for position, kind in enumerate(assignment.plan(study, rater)):
      chosen, flipped = None, False
      real = {a.number: a for a in items if a.kind == assignment.REAL}
      if kind == assignment.GOLD:
        chosen = next(golds)
        flipped = assignment.is_flipped(study, rater, kind, chosen)
      elif kind == assignment.REPEAT:
        had = {a.number for a in items if a.kind == assignment.REPEAT}
        left = [(a.position, n) for n, a in real.items() if n not in had]
        chosen = assignment.choose_repeat(study, rater, left, position)
        flipped = chosen is not None and not real[chosen].flipped
      if chosen is None:
        kind = assignment.REAL
        chosen = assignment.choose(study, rater, judged, real)
        if chosen is None:
          break
        flipped = assignment.is_flipped(
          study, rater, kind, chosen, balance[chosen]
        )
        judged[chosen] += 1
        balance[chosen] += 2 * flipped - 1
      items.append(
        database.Assignment(
          id=str(position),
          position=position,
          kind=kind,
          number=chosen,
          flipped=flipped,
        )
      )
    if not any(item.kind == assignment.REAL for item in items):
      break
    found.append(items)
  return found


def write(
  folder: pathlib.Path, study: manifest.Study, out: pathlib.Path
) -> int:
  """Write a bundle whose sessions judge every item as often as wanted.

  Args:
    folder: of the study.
    study: what it says.
    out: folder to write; it must be empty or a bundle of this study.

  Returns:
    The number of sessions.

  Raises:
    ValueError: `out` holds other files or a bundle of another study, or is in
      the study's folder.
    OSError: the disk is full.
  """
  if out.resolve().is_relative_to(folder.resolve()):
    raise ValueError(
      f"--bundle: {out} is in the study's folder, whose files must not be"
      " published; choose another one"
    )
  ours = {*server.PAGE, manifest.MEDIA, SESSIONS}
  if out.exists() and (more := {p.name for p in out.iterdir()} - ours):
    raise ValueError(f"--bundle: {out} has other files, such as {min(more)}")
  _check_sessions(out / SESSIONS, study)
  real = study.counts[assignment.REAL]
  judgements = len(study.items) * study.settings.raters_per_item
  # The last ones may be short: a rater judges an item only once.
  most = -(-judgements // real) + study.settings.raters_per_item
  found = sessions(study, min(most, MAX_SESSIONS))
  listed = [
    [[*_media(item, study), item.prompt(study)] for item in items]
    for items in found
  ]
  (out / manifest.MEDIA).mkdir(parents=True, exist_ok=True)
  names = {name for s in found for i in s for name in i.media(study)}
  for name in console.progress(sorted(names), desc="media", unit="clip"):
    target = out / manifest.MEDIA / name
    if not target.exists():
      files.link(folder / manifest.MEDIA / name, target)
    manifest.reset_time(target)
  page = server.read_page()
  page["index.html"] = page["index.html"].replace(
    b'data-mode="server"', b'data-mode="bundle"'
  )
  public = {"texts": server.texts(study), "sessions": listed}
  contents = {out / name: content for name, content in page.items()}
  write_private(folder, study, found)
  contents[out / SESSIONS] = json.dumps(public).encode()
  for path, content in contents.items():
    with files.atomic_path(path) as temporary:
      temporary.write_bytes(content)
  return len(found)


def _check_sessions(path: pathlib.Path, study: manifest.Study) -> None:
  """ValueError if the sessions of an existing bundle are of another study."""
  if not path.exists():
    return
  try:
    texts = untrusted.read_json(path, max_bytes=_MAX_BYTES)["texts"]
    is_same = texts["id"] == study.hash
  except (ValueError, KeyError, TypeError):
    is_same = False
  if not is_same:
    raise ValueError(
      f"--bundle: {path} is not of study {study.hash}; choose another folder,"
      " since workers may have links to that one"
    )


def published(folder: pathlib.Path) -> str | None:
  """The hash of the study whose bundle was made from a folder, or None.

  Raises:
    ValueError: bundle.json is damaged.
  """
  path = folder / FILE
  if not path.exists():
    return None
  try:
    values = untrusted.read_json(path, max_bytes=_MAX_BYTES)
    return str(values["study"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is damaged: {untrusted.printable(repr(error))}"
    ) from error


def write_private(
  folder: pathlib.Path,
  study: manifest.Study,
  found: Sequence[Sequence[database.Assignment]],
) -> None:
  """Write what sessions consist of to the study's folder."""
  private = {
    "study": study.hash,
    "sessions": [[dataclasses.astuple(i)[1:] for i in s] for s in found],
  }
  with files.atomic_path(folder / FILE) as temporary:
    temporary.write_text(json.dumps(private), "ascii")


def _media(item: database.Assignment, study: manifest.Study) -> list[str]:
  return [f"{manifest.MEDIA}/{name}" for name in item.media(study)]


def checksum(text: str) -> str:
  """FNV-1a with 32 bits, as the page computes it."""
  value = 0x811C9DC5
  for byte in text.encode("latin-1", "replace"):
    value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
  return f"{value:08x}"


def import_sessions(
  folder: pathlib.Path, path: str | os.PathLike[str]
) -> Imported:
  """Store the sessions of a table of codes; each code counts once.

  Args:
    folder: of the study.
    path: CSV or TSV with the column `code`.

  Returns:
    What was stored; codes that cannot be read do not keep others from it.

  Raises:
    ValueError: the table or the study's bundle.json cannot be read.
    OSError: the database cannot be written.
  """
  study = manifest.read(folder)
  known = read_private(folder, study)
  rows = tables.read_table(path, required=["code"])
  store = database.Database(folder / manifest.VOTES, study)
  counts, problems = {True: 0, False: 0}, []
  for row in rows:
    if not row.cells["code"].strip():
      continue  # a worker who did not finish
    try:
      origin, items, answers, headphones = _parse(
        study, known, row.cells["code"]
      )
    except ValueError as error:
      problems.append(f"{row}: {error}")
      continue
    counts[store.add_session(origin, items, answers, headphones)] += 1
  return Imported(counts[True], counts[False], tuple(problems))


def read_private(
  folder: pathlib.Path, study: manifest.Study
) -> list[list[database.Assignment]]:
  """The sessions that `write_private` wrote.

  Raises:
    ValueError: there are none, or they are damaged or of another study.
  """
  path = folder / FILE
  try:
    values = untrusted.read_json(path, max_bytes=_MAX_BYTES)
  except OSError as error:
    raise ValueError(
      f"{path}: {error.strerror}; expected the file that `make --bundle` wrote"
    ) from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  if not isinstance(values, dict) or values.get("study") != study.hash:
    raise ValueError(f"{path} is of another study; expected {study.hash}")
  sizes = {
    assignment.REAL: len(study.items),
    assignment.REPEAT: len(study.items),
    assignment.GOLD: len(study.gold),
  }
  try:
    found = [
      [
        database.Assignment(
          id=str(position),
          position=position,
          kind=kind,
          number=number,
          flipped=bool(flipped),
        )
        for position, kind, number, flipped in session
      ]
      for session in values["sessions"]
    ]
    is_sound = all(0 <= i.number < sizes[i.kind] for s in found for i in s)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is damaged: {error!r}") from error
  if not is_sound:
    raise ValueError(f"{path} is damaged: an item is not of the study")
  return found


def _parse(
  study: manifest.Study,
  known: Sequence[Sequence[database.Assignment]],
  code: str,
) -> tuple[
  str, Sequence[database.Assignment], list[database.Answer], int | None
]:
  """Origin, items, answers and sound check of a code; it may be hostile."""
  code = "".join(code.split())
  if len(code) > _MAX_CODE:
    raise ValueError("the code is too long")
  encoded, _, total = code.partition(".")
  try:
    text = base64.b64decode(encoded, altchars=b"-_", validate=True).decode(
      "ascii"
    )
  except (binascii.Error, ValueError) as error:
    raise ValueError("expected a code of the page") from error
  if checksum(text) != total:
    raise ValueError("the code was not copied completely")
  values = untrusted.parse_json(text, max_bytes=_MAX_CODE, max_depth=4)
  if not isinstance(values, list) or len(values) != 5:
    raise ValueError("expected a code of the page")
  name, number, run, headphones, answered = values
  if name != study.hash:
    raise ValueError("the code is of another study")
  if type(number) is not int or not 0 <= number < len(known):
    raise ValueError("the code is of no session of the bundle")
  if not isinstance(run, str) or not _RUN.fullmatch(run):
    raise ValueError("expected a code of the page")
  trials = study.settings.headphone_trials
  if headphones is not None and not (
    type(headphones) is int and 0 <= headphones <= trials
  ):
    raise ValueError("the result of the sound check is out of range")
  items = known[number]
  if not isinstance(answered, list) or not 0 < len(answered) <= len(items):
    raise ValueError(f"expected up to {len(items)} answers")
  answers = [_answer(study, each) for each in answered]
  return f"bundle {number} {run}", items, answers, headphones


def _answer(study: manifest.Study, values: Any) -> database.Answer:
  questions = study.settings.questions
  if (
    not isinstance(values, list)
    or len(values) != 4
    or not isinstance(values[0], str)
    or len(values[0]) != len(questions)
    or not set(values[0]) <= _LETTERS.keys()
    or not all(type(v) is int and v >= 0 for v in values[1:])
    or values[1] > server.MAX_SECONDS
    or max(values[2:]) > server.MAX_PLAYS
  ):
    raise ValueError("an answer is malformed")
  letters, seconds, *plays = values
  return database.Answer(
    choices={q.id: _LETTERS[c] for q, c in zip(questions, letters)},
    seconds=float(seconds),
    plays=(plays[0], plays[1]),
  )
