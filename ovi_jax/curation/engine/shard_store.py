"""Reads and writes the output files of stages, shard by shard.

`<stage>-<key>/shard-00012.jsonl` has a line for each clip that the stage passed
on ({"clip": …}) or rejected ({"reject": …}), in order.
`shard-00012.artifacts.zip` has the artifacts of clips passed on, uncompressed,
as `<id>/<name>`. Both are written under temporary names; `shard-00012.done` is
written last: counts, sizes and sha256 of both, and the sha256 of the input
lines. If that differs from the current output of the previous stage, the shard
is outdated. The same clips always give the same bytes.
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
INPUTS = "inputs"  # folder of the input manifest
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that zip can store
_FILE_MODE = 0o644 << 16
_MAX_LINE_BYTES = 64 << 20  # bytes; lines of hour-long films are a few MiB
_MAX_COUNT = 2**53  # of a count; exact in every JSON reader


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFiles:
  """The output files of a stage for a shard.

  Attributes:
    folder: folder of the stage.
    shard: shard index.
  """

  folder: str
  shard: int

  def path(self, ending: str) -> str:
    """Path or URL of a file of this shard."""
    return storage.join(self.folder, f"shard-{self.shard:05d}.{ending}")

  @property
  def lines(self) -> str:
    """Clips and rejects."""
    return self.path("jsonl")

  @property
  def artifacts(self) -> str:
    """Artifacts of the clips."""
    return self.path("artifacts.zip")

  @property
  def done(self) -> str:
    """Completion marker."""
    return self.path("done")

  @property
  def excluded(self) -> str:
    """Clips that crash or hang the worker."""
    return self.path("excluded")

  @property
  def failed(self) -> str:
    """Error message of a failed shard."""
    return self.path("failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoneMarker:
  """The completion marker of a shard.

  Attributes:
    clips: number of clips passed on.
    rejects: number of rejects, including failures.
    failed: number of clips on which the stage failed.
    input_hash: sha256 of the input lines.
    files: suffix -> (bytes, sha256).
  """

  clips: int
  rejects: int
  failed: int
  input_hash: str
  files: Mapping[str, tuple[int, str]]

  @property
  def digest(self) -> str:
    """sha256 of the output lines."""
    return self.files["jsonl"][1]


def read_marker(files: ShardFiles) -> DoneMarker | None:
  """The marker of a shard; None if it is incomplete or files are missing.

  Raises:
    ValueError: the marker file is damaged.
  """
  values = read_stored_json(files.done, _MARKER_FIELDS)
  if values is None:
    return None
  stored = {name: tuple(entry) for name, entry in values.pop("files").items()}
  if any(
    storage.file_size(files.path(n)) != size for n, (size, _) in stored.items()
  ):
    return None
  return DoneMarker(**values, files=stored)


def read_stored_json(
  url: str, fields: Mapping[str, Callable[[Any], bool]]
) -> dict[str, Any] | None:
  """Read and validate a JSON object.

  Args:
    url: path or URL of the file.
    fields: expected names, each with a predicate for its value.

  Returns:
    The values; None if the file does not exist.

  Raises:
    ValueError: invalid or oversized JSON, or a missing, unknown or mistyped
      field.
  """
  try:
    with storage.open_file(url) as file:
      values = untrusted.parse_json(
        untrusted.read_at_most(file, untrusted.MAX_JSON_BYTES + 1)
      )
    check_fields(values, fields)
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(f"{url} is damaged: {error}; remove it") from error
  return values


def check_fields(
  values: Any, fields: Mapping[str, Callable[[Any], bool]]
) -> None:
  """ValueError unless an object has exactly these fields, all valid."""
  if not isinstance(values, dict) or set(values) != set(fields):
    found = sorted(values) if isinstance(values, dict) else values
    raise ValueError(
      f"expected an object of {', '.join(fields)}, found {found!r:.100}"
    )
  if wrong := [n for n, can_be in fields.items() if not can_be(values[n])]:
    raise ValueError(
      f"{wrong[0]}: invalid value, found {values[wrong[0]]!r:.100}"
    )


def is_text(value: Any) -> bool:
  """Whether a JSON value is a string."""
  return isinstance(value, str)


def is_count(value: Any) -> bool:
  """Whether a JSON value is a count of files, clips or bytes."""
  return type(value) is int and 0 <= value < _MAX_COUNT


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_facts(value: Any) -> bool:
  """Whether a JSON value is an object of objects."""
  return isinstance(value, dict) and all(
    isinstance(facts, dict) for facts in value.values()
  )


def _is_file_list(value: Any) -> bool:
  """Whether a JSON value has size and sha256 of a shard's files."""
  return (
    isinstance(value, dict)
    and "jsonl" in value
    and set(value) <= {"jsonl", "artifacts.zip"}
    and all(
      isinstance(entry, list)
      and len(entry) == 2
      and is_count(entry[0])
      and is_text(entry[1])
      for entry in value.values()
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
  """Serialize a line as JSON.

  Raises:
    TypeError, ValueError: a value is not JSON.
  """
  kind = "clip" if isinstance(line, clips.Clip) else "reject"
  # ASCII: file names may contain bytes that are not UTF-8.
  return json.dumps({kind: dataclasses.asdict(line)}, allow_nan=False)


def decode(text: str | bytes) -> Line:
  """Parse a line of `encode`; tuples become lists.

  Raises:
    ValueError: the line is not a clip or a reject.
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
  """A clip from JSON; ValueError if it is invalid."""
  check_fields(values, _CLIP_FIELDS)
  return clips.Clip(**values)


def read(files: ShardFiles) -> Iterator[Line]:
  """The lines of a completed shard.

  Raises:
    ValueError: the shard is incomplete, or its file is damaged.
  """
  marker = read_marker(files)
  if marker is None:
    raise ValueError(f"{files.lines} is not complete; run its pass first")
  value = storage.read(files.lines)
  if hashlib.sha256(value).hexdigest() != marker.digest:
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
  """The clips that a completed shard passed on."""
  for line in read(files):
    if isinstance(line, clips.Clip):
      yield line


class Writer:
  """Writes lines and artifacts of a shard."""

  def __init__(self, lines: TextIO, artifacts: zipfile.ZipFile):
    self._lines, self._artifacts = lines, artifacts
    self._ids = set()
    self.clips = self.rejects = 0
    self.tracebacks: list[str] = []

  @property
  def failed(self) -> int:
    """Number of clips on which the stage failed."""
    return len(self.tracebacks)

  def add(
    self,
    input_clip: clips.Clip,
    lines: Sequence[Line],
    artifacts: Mapping[str, bytes],
  ) -> None:
    """Write the output for a clip.

    Args:
      input_clip: the clip that the stage was given.
      lines: the output of the stage.
      artifacts: stored files by name; dropped if the clip was rejected.
    """
    for line in lines:
      self._lines.write(encode(line) + "\n")
    rejects = [line for line in lines if isinstance(line, clips.Reject)]
    self.clips += len(lines) - len(rejects)
    self.rejects += len(rejects)
    self.tracebacks += [r.detail or r.reason for r in rejects if r.failed]
    if rejects or input_clip.id in self._ids:
      return  # Copies of a file have the same id and bytes.
    self._ids.add(input_clip.id)
    for name, value in sorted(artifacts.items()):
      self._artifacts.writestr(_zip_info(f"{input_clip.id}/{name}"), value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOutput:
  """The open output of a shard.

  Attributes:
    writer: writes lines and artifacts.
    commit: publishes the files and the marker; takes the sha256 of the input
      lines and returns the marker.
  """

  writer: Writer
  commit: Callable[[str], DoneMarker]


@contextlib.contextmanager
def open_output(files: ShardFiles) -> Iterator[ShardOutput]:
  """Open the output of a shard; discarded unless committed."""
  with contextlib.ExitStack() as stack:
    parts = {
      "jsonl": stack.enter_context(storage.atomic_write_file(files.lines)),
      "artifacts.zip": stack.enter_context(
        storage.atomic_write_file(files.artifacts)
      ),
    }
    lines = stack.enter_context(open(parts["jsonl"][0], "w", encoding="ascii"))
    artifacts = stack.enter_context(
      zipfile.ZipFile(parts["artifacts.zip"][0], "w")
    )
    writer = Writer(lines, artifacts)

    def commit(input_hash: str) -> DoneMarker:
      lines.close()
      empty = not artifacts.namelist()
      artifacts.close()
      if empty:
        del parts["artifacts.zip"]
      # The marker must not describe files that are about to change.
      storage.remove(files.done)
      storage.remove(files.artifacts)
      written = {}
      for ending, (temporary, publish) in parts.items():
        written[ending] = (temporary.stat().st_size, _digest(temporary))
        publish()
      marker = DoneMarker(
        clips=writer.clips,
        rejects=writer.rejects,
        failed=writer.failed,
        input_hash=input_hash,
        files=written,
      )
      write_marker(files, marker)
      return marker

    yield ShardOutput(writer=writer, commit=commit)


def write_marker(files: ShardFiles, marker: DoneMarker) -> None:
  """Write the completion marker of published files."""
  text = json.dumps(dataclasses.asdict(marker), indent=1, sort_keys=True)
  storage.write(files.done, text.encode() + b"\n")


@contextlib.contextmanager
def open_artifacts(
  folders: Sequence[str], shard: int
) -> Iterator[ArtifactReader]:
  """A reader of the artifacts of a shard's clips.

  Args:
    folders: folders of the stages, in order; later ones take precedence.
    shard: shard index.

  Yields:
    (clip, name) -> bytes; KeyError if no stage stored it.

  Raises:
    OSError: an archive cannot be read, or is damaged.
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

    def read_artifact(clip: clips.Clip, name: str) -> bytes:
      for archive, url in opened:
        with contextlib.suppress(KeyError), _archive_errors(url):
          return archive.read(_stored_entry(archive, f"{clip.id}/{name}"))
      raise KeyError(f"no stage stored {name!r} of clip {clip.id}")

    yield read_artifact


def _stored_entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
  """An uncompressed entry; a compressed one could expand to any size."""
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
def _archive_errors(url: str) -> Iterator[None]:
  """Convert zipfile errors to OSError with the file name."""
  try:
    yield
  # zipfile raises NotImplementedError for versions and compression methods that
  # it does not support, which damaged bytes may name.
  except (NotImplementedError, zipfile.BadZipFile, EOFError) as error:
    raise OSError(
      errno.EIO, f"damaged ({error}); remove it and run again", url
    ) from error


def _digest(path: pathlib.Path) -> str:
  """sha256 of a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _zip_info(name: str) -> zipfile.ZipInfo:
  """A zip entry without time stamp and platform."""
  info = zipfile.ZipInfo(name, _EPOCH)
  info.create_system, info.external_attr = 3, _FILE_MODE
  return info
