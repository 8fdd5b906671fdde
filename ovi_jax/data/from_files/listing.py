"""Files to import with their captions, and what is refused before decoding.

In: a folder, and a table or text files beside the clips. Nothing is decoded.
"""

import dataclasses
import os
import pathlib
import unicodedata
from collections.abc import Iterator
from collections.abc import Sequence

from ovi_jax import files
from ovi_jax import prompt
from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.data import captions as captions_lib
from ovi_jax.data.from_files import settings as settings_lib

# fmt: off
VIDEOS = frozenset((
  ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts",
  ".m2ts", ".mts", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".3gp", ".dv", ".rm",
  ".gif",
))
SOUNDS = frozenset((
  ".wav", ".mp3", ".flac", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".w64",
  ".aif", ".aiff", ".au", ".caf", ".amr", ".ape", ".wv", ".wma", ".ac3",
))
# fmt: on
_MAX_TEXT = 1 << 20  # bytes of a text file with a caption


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
  """Why a file or a row was left out.

  Attributes:
    name: of the file relative to the folder, or the row's path.
    reason: what was found.
    advice: what to do.
  """

  name: str
  reason: str
  advice: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """A file to import.

  Attributes:
    name: relative to the folder of clips, or absolute outside of it.
    path: of the file.
    captions: as training reads them, at least one.
    split: "train", "test", or "" where nothing says.
    size: bytes.
    modified: time of the last change, nanoseconds.
  """

  name: str
  path: pathlib.Path
  captions: tuple[str, ...]
  split: str
  size: int
  modified: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
  """The files to import.

  Attributes:
    files: in order of their names.
    refusals: in order of theirs.
    notes: on captions: name of the file and what is unusual.
  """

  files: tuple[File, ...]
  refusals: tuple[Refusal, ...]
  notes: tuple[tuple[str, str], ...]


@dataclasses.dataclass(kw_only=True)
class _Captioned:
  """Captions of a file as they are found."""

  captions: list[str] = dataclasses.field(default_factory=list)
  splits: set[str] = dataclasses.field(default_factory=set)


def read(settings: settings_lib.Settings) -> Listing:
  """List the files that have captions.

  Raises:
    ValueError: the table cannot be read, or there is no caption at all.
    OSError: the folder cannot be read.
  """
  every = dict(_walk(settings.clips))
  wanted = VIDEOS | SOUNDS if settings.audio_only else VIDEOS
  media = {n: p for n, p in every.items() if _suffix(n) in wanted}
  refusals: list[Refusal] = []
  found: dict[str, _Captioned] = {}
  if settings.captions:
    rows = captions_lib.read(settings.captions)
    _match(settings, rows, every, media, found, refusals)
  _read_texts(every, media, found, refusals)
  refused = {refusal.name for refusal in refusals}
  if not found and not refused:
    _refuse_all(settings, media)
  for name in media:
    if name not in found and name not in refused:
      refusals.append(
        Refusal(
          name=name,
          reason="no caption",
          advice="add a row to the table, or a text file of the same name",
        )
      )
  files: list[File] = []
  notes: list[tuple[str, str]] = []
  for name in sorted(found):
    made = _file(settings, name, media[name], found[name], notes)
    if isinstance(made, File):
      files.append(made)
    else:
      refusals.append(made)
  return Listing(
    files=tuple(files),
    refusals=tuple(sorted(refusals, key=lambda r: r.name)),
    notes=tuple(notes),
  )


def _walk(folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
  """Relative names and paths of all files that are not hidden."""

  def fail(error: OSError) -> None:
    raise error

  for root, folders, names in os.walk(folder, onerror=fail):
    folders[:] = [f for f in folders if not f.startswith(".")]
    for name in names:
      if not name.startswith("."):
        path = pathlib.Path(root, name)
        yield files.text_of(path.relative_to(folder).as_posix()), path


def _suffix(name: str) -> str:
  return os.path.splitext(name)[1].lower()


def _match(
  settings: settings_lib.Settings,
  rows: Sequence[captions_lib.Row],
  every: dict[str, pathlib.Path],
  media: dict[str, pathlib.Path],
  found: dict[str, _Captioned],
  refusals: list[Refusal],
) -> None:
  """Give each row's caption to its file; files elsewhere join `media`."""
  index = captions_lib.Files.of(every)
  folder = settings.clips.resolve()
  here = pathlib.Path(settings.captions).resolve().parent
  for row in rows:
    names, path = index.find(row), None
    # An absolute path, or one that is relative to the table, as it is written;
    # a NUL or a name that is too long is no file.
    if row.is_absolute or not names:
      path = _existing(here, row.path)
    if path is None and not names:
      names = index.find(_within(folder, here, row))
    if path is not None:
      # A link in the folder, then what is in the folder by another path.
      places = path.parent.resolve() / path.name, path.resolve()
      inside = [p for p in places if p.is_relative_to(folder)]
      relative = inside[0].relative_to(folder).as_posix() if inside else ""
      name = files.text_of(relative or str(path))
      if name in every:
        path = every[name]
      names = [name]
    if len(names) != 1:
      refusals.append(_unmatched(settings, row, names))
      continue
    name = names[0]
    media.setdefault(name, path if path is not None else every[name])
    of_file = found.setdefault(name, _Captioned())
    of_file.captions.append(row.caption)
    if row.split:
      of_file.splits.add(row.split)


def _within(
  folder: pathlib.Path, here: pathlib.Path, row: captions_lib.Row
) -> captions_lib.Row:
  """A row whose path is relative to the table, or to the folder if within it.

  The names of the folders may be in other letter cases.
  """
  parts = pathlib.Path(os.path.abspath(here / row.path)).parts
  count = len(folder.parts)
  same = [part.casefold() for part in folder.parts]
  if [part.casefold() for part in parts[:count]] != same:
    return row
  return dataclasses.replace(row, path="/".join(parts[count:]))


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """The file of that name, relative to a folder; None if there is none."""
  try:
    path = files.find(pathlib.Path(os.path.abspath(folder / name)))
    return path if path is not None and path.is_file() else None
  except (OSError, ValueError):
    return None


def _unmatched(
  settings: settings_lib.Settings, row: captions_lib.Row, names: Sequence[str]
) -> Refusal:
  """The problem of a row that matches no file, or several."""
  if not names:
    return Refusal(
      name=row.path,
      reason="no such file",
      advice=f"add the file, or write its path relative to {settings.clips} in"
      f" {row.place}",
    )
  shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
  return Refusal(
    name=row.path,
    reason="several files are called so",
    advice=f"write the folder too in {row.place}: {shown}",
  )


def _read_texts(
  every: dict[str, pathlib.Path],
  media: dict[str, pathlib.Path],
  found: dict[str, _Captioned],
  refusals: list[Refusal],
) -> None:
  """Captions of files without a row, from text files of the same name."""
  texts = {n.casefold(): p for n, p in every.items() if _suffix(n) == ".txt"}
  for name in media:
    if name in found:
      continue
    stem = os.path.splitext(name)[0]
    for candidate in (f"{stem}.txt", f"{name}.txt"):
      path = texts.get(candidate.casefold())
      if path is None:
        continue
      try:
        caption = _text(path)
      except ValueError as error:
        refusals.append(
          Refusal(
            name=name,
            reason=f"its caption cannot be read: {error}",
            advice="save the text file as UTF-8",
          )
        )
      else:
        found[name] = _Captioned(captions=[caption])
      break


def _text(path: pathlib.Path) -> str:
  """The caption in a text file; its lines are joined."""
  if path.stat().st_size > _MAX_TEXT:
    raise ValueError(f"{path.name} has more than {_MAX_TEXT >> 20} MiB")
  caption = " ".join(tables.read_list(path))
  if any("\ud800" <= character <= "\udfff" for character in caption):
    raise ValueError(f"{path.name} is not UTF-8")
  return caption


def _refuse_all(
  settings: settings_lib.Settings, media: dict[str, pathlib.Path]
) -> None:
  """ValueError of a folder without clips, or without any caption."""
  kind = "audio or video" if settings.audio_only else "video"
  if not media:
    raise ValueError(
      f"--clips: {settings.clips} has no {kind} files"
      + ("" if settings.audio_only else "; for audio files add --audio_only")
    )
  raise ValueError(
    f"--clips: {settings.clips} has {len(media)} files and no caption; pass"
    " --captions=FILE.csv with the columns path and caption, or put a text"
    f" file beside each, such as {os.path.splitext(min(media))[0]}.txt"
  )


def _file(
  settings: settings_lib.Settings,
  name: str,
  path: pathlib.Path,
  of_file: _Captioned,
  notes: list[tuple[str, str]],
) -> File | Refusal:
  """A file with its captions in their final form."""
  if len(of_file.splits) > 1:
    return Refusal(
      name=name,
      reason=f"rows put it in {' and '.join(sorted(of_file.splits))}",
      advice="write one split in all of its rows",
    )
  for caption in of_file.captions:
    if problem := prompt.unreadable(caption):
      return Refusal(
        name=name,
        reason=f"its caption {problem}",
        advice="mend it in the table or text file",
      )
  variants = (settings.variant,) if settings.variant else ()
  captions, said = captions_lib.prompts(of_file.captions, variants)
  if not captions:
    return Refusal(
      name=name, reason="its caption is empty", advice="write one, or remove it"
    )
  notes += [(name, note) for note in said]
  try:
    if kind := untrusted.irregular(path):
      return Refusal(
        name=name,
        reason=f"not a regular file but {kind}",
        advice="put the media file itself there",
      )
    status = path.stat()
  except OSError as error:
    return Refusal(
      name=name,
      reason=f"cannot be read: {error.strerror}",
      advice="make it readable",
    )
  return File(
    name=unicodedata.normalize("NFC", name),
    path=path,
    captions=tuple(captions),
    split=next(iter(of_file.splits), ""),
    size=status.st_size,
    modified=status.st_mtime_ns,
  )


def shown(name: str) -> str:
  """A name for a terminal or a record: printable, surrogates escaped."""
  return untrusted.printable(name, 120)
