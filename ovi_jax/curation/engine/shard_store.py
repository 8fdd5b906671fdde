"""What stages leave on disk, shard by shard, and how it is read again.

`<stage>-<key>/shard-00012.jsonl` has a line for each clip that a stage passed
on ({"clip": …}) or refused ({"reject": …}), in the order they came.
`shard-00012.artifacts.zip` has the bytes it kept of clips it passed on, stored, as
`<id>/<name>`. Both are written under another name; `shard-00012.done` comes
last: counts, sizes and sha256 of both, and the sha256 of the lines that the
stage read. Where that is another than what the stage before says now, the shard
counts as not done. The same clips make the same bytes, at any time, anywhere.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TextIO

from ovi_jax import untrusted
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import storage

Line = clips.Clip | clips.Reject
ArtifactReader = Callable[[clips.Clip, str], bytes]
INPUTS = "inputs"  # folder of the files, numbered
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that zip can say
_FILE_MODE = 0o644 << 16
_MAX_LINE_BYTES = 64 << 20  # bytes; curves of an hour-long film are a few
_MAX_COUNT = 2**53  # of a count; what JSON readers agree on


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFiles:
  """The files of a shard of a stage.

  Attributes:
    folder: of the stage.
    shard: its number.
  """

  folder: str
  shard: int

  def path(self, ending: str) -> str:
    """Where a file of this shard lies."""
    return storage.join(self.folder, f"shard-{self.shard:05d}.{ending}")

  @property
  def lines(self) -> str:
    """Clips and rejects."""
    return self.path("jsonl")

  @property
  def artifacts(self) -> str:
    """Bytes that the stage kept of its clips."""
    return self.path("artifacts.zip")

  @property
  def done(self) -> str:
    """That both are whole."""
    return self.path("done")

  @property
  def excluded(self) -> str:
    """Clips that end or hang the process that works on them."""
    return self.path("excluded")

  @property
  def failed(self) -> str:
    """Why the shard could not be done."""
    return self.path("failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoneMarker:
  """What a finished shard says of itself.

  Attributes:
    clips: passed on.
    rejects: refused, failures among them.
    failed: could not be judged.
    input_hash: sha256 of the lines that were read.
    files: ending -> (bytes, sha256).
  """

  clips: int
  rejects: int
  failed: int
  input_hash: str
  files: Mapping[str, tuple[int, str]]

  @property
  def digest(self) -> str:
    """sha256 of the lines."""
    return self.files["jsonl"][1]


def read_marker(files: ShardFiles) -> DoneMarker | None:
  """What a shard says of itself; None if it is not done, or files are gone.

  Raises:
    ValueError: its file is damaged; names it.
  """
  values = read_stored_json(files.done, _MARKER_FIELDS)
  if values is None:
    return None
  there = {name: tuple(said) for name, said in values.pop("files").items()}
  if any(
    storage.file_size(files.path(n)) != size for n, (size, _) in there.items()
  ):
    return None
  return DoneMarker(**values, files=there)


def read_stored_json(
  place: str, fields: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any] | None:
  """Read what an earlier run said in JSON.

  Args:
    place: of the file.
    fields: all names that it has, and whether a value can be theirs.

  Returns:
    The values; None if there is no such file.

  Raises:
    ValueError: it is no JSON within limits, or a field is missing, unknown or
      of another type; names the file.
  """
  try:
    with storage.open_file(place) as file:
      values = untrusted.parse_json(
        untrusted.read_at_most(file, untrusted.MAX_JSON_BYTES + 1)
      )
    check_fields(values, fields)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(f"{place} is damaged: {error}; remove it") from error
  return values


def check_fields(
  values: Any, fields: Mapping[str, Callable[[Any], bool]]
) -> None:
  """ValueError unless an object has these fields, all as they can be."""
  if not isinstance(values, dict) or set(values) != set(fields):
    found = sorted(values) if isinstance(values, dict) else values
    raise ValueError(
      f"expected an object of {', '.join(fields)}, found {found!r:.100}"
    )
  if wrong := [n for n, can_be in fields.items() if not can_be(values[n])]:
    raise ValueError(
      f"{wrong[0]}: expected another value, found {values[wrong[0]]!r:.100}"
    )


def is_text(value: Any) -> bool:
  """Whether JSON is a text."""
  return isinstance(value, str)


def is_count(value: Any) -> bool:
  """Whether JSON is a number of files, clips or bytes."""
  return type(value) is int and 0 <= value < _MAX_COUNT


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_facts(value: Any) -> bool:
  """Whether JSON is a mapping of mappings."""
  return isinstance(value, dict) and all(
    isinstance(facts, dict) for facts in value.values()
  )


def _is_file_list(value: Any) -> bool:
  """Whether JSON gives size and sha256 of the files that a shard has."""
  return (
    isinstance(value, dict)
    and "jsonl" in value
    and set(value) <= {"jsonl", "artifacts.zip"}
    and all(
      isinstance(said, list)
      and len(said) == 2
      and is_count(said[0])
      and is_text(said[1])
      for said in value.values()
    )
  )


_MARKER_FIELDS = {
  "clips": is_count,
  "rejects": is_count,
  "failed": is_count,
  "input_hash": is_text,
  "files": _is_file_list,
}
_CLIP_FIELDS = {
  "id": is_text,
  "path": is_text,
  "start": _is_number,
  "seconds": _is_number,
  "facts": _is_facts,
  "scores": lambda value: (
    isinstance(value, dict) and all(map(_is_number, value.values()))
  ),
}
_REJECT_FIELDS = {
  "clip": lambda value: True,
  "stage": is_text,
  "reason": is_text,
  "score": lambda value: value is None or _is_number(value),
  "detail": is_text,
  "failed": lambda value: isinstance(value, bool),
}


def encode(line: Line) -> str:
  """A line of JSON.

  Raises:
    TypeError, ValueError: a stage left something that JSON does not know.
  """
  kind = "clip" if isinstance(line, clips.Clip) else "reject"
  # ASCII: names of files may hold bytes that are no text.
  return json.dumps({kind: dataclasses.asdict(line)}, allow_nan=False)


def decode(text: str | bytes) -> Line:
  """What `encode` was given; tuples have become lists.

  Raises:
    ValueError: the line is no clip and no reject.
  """
  values = untrusted.parse_json(text, max_bytes=_MAX_LINE_BYTES)
  if not isinstance(values, dict) or set(values) not in ({"clip"}, {"reject"}):
    raise ValueError(f"expected a clip or a reject, found {values!r:.100}")
  if "clip" in values:
    return _clip(values["clip"])
  values = values["reject"]
  check_fields(values, _REJECT_FIELDS)
  return clips.Reject(**{**values, "clip": _clip(values["clip"])})


def _clip(values: Any) -> clips.Clip:
  """A clip of JSON; ValueError if it is none."""
  check_fields(values, _CLIP_FIELDS)
  return clips.Clip(**values)


def read(files: ShardFiles) -> Iterator[Line]:
  """The lines of a finished shard.

  Raises:
    ValueError: they are not what was written.
  """
  found = read_marker(files)
  if found is None:
    raise ValueError(f"{files.lines} is not done; run its pass first")
  value = storage.read(files.lines)
  if hashlib.sha256(value).hexdigest() != found.digest:
    raise ValueError(
      f"{files.lines} is damaged: its sha256 is not the one in {files.done};"
      " remove both and run again"
    )
  for number, line in enumerate(value.splitlines(), 1):
    try:
      yield decode(line)
    except ValueError as error:
      raise ValueError(
        f"{files.lines}, line {number}: {error}; remove it and {files.done} and"
        " run again"
      ) from error


def read_clips(files: ShardFiles) -> Iterator[clips.Clip]:
  """The clips that a finished shard passed on."""
  for line in read(files):
    if isinstance(line, clips.Clip):
      yield line


class Writer:
  """Writes a shard of a stage; nothing stands until `commit`."""

  def __init__(self, lines: TextIO, kept: zipfile.ZipFile):
    self._lines, self._kept = lines, kept
    self._ids = set()
    self.clips = self.rejects = 0
    self.tracebacks: list[str] = []

  @property
  def failed(self) -> int:
    """Rejects that say nothing of the clip."""
    return len(self.tracebacks)

  def add(
    self, came: clips.Clip, lines: Sequence[Line], kept: Mapping[str, bytes]
  ) -> None:
    """Write what became of a clip.

    Args:
      came: the clip that the stage was given.
      lines: what it returned.
      kept: what it kept, by name; dropped if the clip was refused.
    """
    for line in lines:
      self._lines.write(encode(line) + "\n")
    rejects = [line for line in lines if isinstance(line, clips.Reject)]
    self.clips += len(lines) - len(rejects)
    self.rejects += len(rejects)
    self.tracebacks += [r.detail or r.reason for r in rejects if r.failed]
    if rejects or came.id in self._ids:
      return  # Copies of a file in one shard have the same id and bytes.
    self._ids.add(came.id)
    for name, value in sorted(kept.items()):
      self._kept.writestr(_zip_info(f"{came.id}/{name}"), value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOutput:
  """A shard that is being written.

  Attributes:
    writer: takes its lines.
    commit: called with the sha256 of the lines that were read, gives the files
      their names, marks the shard done and returns the mark.
  """

  writer: Writer
  commit: Callable[[str], DoneMarker]


@contextlib.contextmanager
def open_output(files: ShardFiles) -> Iterator[ShardOutput]:
  """A shard to write; nothing is left of it unless it is committed."""
  with contextlib.ExitStack() as stack:
    parts = {
      "jsonl": stack.enter_context(storage.atomic_write_file(files.lines)),
      "artifacts.zip": stack.enter_context(
        storage.atomic_write_file(files.artifacts)
      ),
    }
    lines = stack.enter_context(open(parts["jsonl"][0], "w", encoding="ascii"))
    kept = stack.enter_context(zipfile.ZipFile(parts["artifacts.zip"][0], "w"))
    writer = Writer(lines, kept)

    def commit(input_hash: str) -> DoneMarker:
      lines.close()
      empty = not kept.namelist()
      kept.close()
      if empty:
        del parts["artifacts.zip"]
      # What stands under these names is from now on not what it says.
      storage.remove(files.done)
      storage.remove(files.artifacts)
      written = {}
      for ending, (temporary, publish) in parts.items():
        written[ending] = (temporary.stat().st_size, _digest(temporary))
        publish()
      made = DoneMarker(
        clips=writer.clips,
        rejects=writer.rejects,
        failed=writer.failed,
        input_hash=input_hash,
        files=written,
      )
      write_marker(files, made)
      return made

    yield ShardOutput(writer=writer, commit=commit)


def write_marker(files: ShardFiles, made: DoneMarker) -> None:
  """Say that a shard is done, of files that stand."""
  said = json.dumps(dataclasses.asdict(made), indent=1, sort_keys=True)
  storage.write(files.done, said.encode() + b"\n")


@contextlib.contextmanager
def open_artifacts(
  folders: Sequence[str], shard: int
) -> Iterator[ArtifactReader]:
  """A reader of what stages kept of a shard's clips.

  Args:
    folders: of the stages, first to last; the last one's word counts.
    shard: number.

  Yields:
    (clip, name) -> bytes; KeyError if none kept something of that name.

  Raises:
    OSError: what was kept cannot be read, or is damaged.
  """
  with contextlib.ExitStack() as stack:
    opened: list[tuple[zipfile.ZipFile, str]] = []
    for folder in reversed(folders):
      files = ShardFiles(folder=folder, shard=shard)
      if storage.file_size(files.artifacts) is not None:
        file = stack.enter_context(storage.open_file(files.artifacts))
        with _archive_errors(files.artifacts):
          archive = stack.enter_context(zipfile.ZipFile(file))
        opened.append((archive, files.artifacts))

    def kept(clip: clips.Clip, name: str) -> bytes:
      for archive, place in opened:
        with contextlib.suppress(KeyError), _archive_errors(place):
          return archive.read(_stored_entry(archive, f"{clip.id}/{name}"))
      raise KeyError(f"no stage kept {name!r} of clip {clip.id}")

    yield kept


def _stored_entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
  """An entry that is as `Writer` makes it; what is compressed may be huge."""
  info = archive.getinfo(name)
  encrypted = info.flag_bits & 1
  if (
    info.compress_type != zipfile.ZIP_STORED
    or info.compress_size != info.file_size
    or encrypted
  ):
    raise zipfile.BadZipFile(
      f"{untrusted.printable(name)}: expected a stored entry"
    )
  return info


@contextlib.contextmanager
def _archive_errors(place: str) -> Iterator[None]:
  """What zipfile says of damage, as an error that names the file."""
  try:
    yield
  except (NotImplementedError, zipfile.BadZipFile, EOFError) as error:
    raise OSError(
      errno.EIO, f"damaged ({error}); remove it and run again", place
    ) from error


def _digest(path: pathlib.Path) -> str:
  """sha256 of a file of any size."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _zip_info(name: str) -> zipfile.ZipInfo:
  """An entry that says nothing of when and where it was written."""
  info = zipfile.ZipInfo(name, _EPOCH)
  info.create_system, info.external_attr = 3, _FILE_MODE
  return info
