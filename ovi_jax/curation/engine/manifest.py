"""The inputs, numbered into shards once and for all.

`inputs/shard-00012.jsonl` has the files of a shard as clips, in the form of
`store`, as if a first stage had passed them on. `inputs.json` comes last: how
many there are, and a hash of their names.
"""

import hashlib
import json
from collections.abc import Sequence

from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

_FILENAME = "inputs.json"
_MAX_NAMES_SHOWN = 5  # names in an error
_MAX_SHARDS = 10**7
_FIELDS = {
  "shard_size": lambda value: shard_store.is_count(value) and value > 0,
  "num_shards": lambda value: (
    shard_store.is_count(value) and value <= _MAX_SHARDS
  ),
  "num_files": shard_store.is_count,
  "names_sha256": shard_store.is_text,
}


def load_or_create(settings: curation_settings.Settings) -> int:
  """See that the inputs are numbered.

  Returns:
    How many shards there are.

  Raises:
    ValueError: there are none, they are other files than those of an earlier
      run, or it had another size of shards.
  """
  before = _read_existing(settings)
  if not settings.inputs:
    if before:
      return before["num_shards"]
    raise ValueError("inputs: give --config.inputs=\"('FOLDER',)\"")
  found = expand(settings.inputs)
  if not before:
    if not found:
      raise ValueError(f"inputs: no file is named by {list(settings.inputs)}")
    return _write(settings, found, first=0, files=0)
  if before["shard_size"] != settings.shard_size:
    raise ValueError(
      f"shard_size: {settings.out} was begun with {before['shard_size']}, got"
      f" {settings.shard_size}; take that, or another out"
    )
  if _hash_names(found) == before["names_sha256"]:
    return before["num_shards"]
  return _append_new(settings, found, before)


def _append_new(
  settings: curation_settings.Settings, found: Sequence[str], before: dict
) -> int:
  """Append what an earlier run had not, if that is wanted and all there is."""
  old = {
    clip.path
    for shard in range(before["num_shards"])
    for clip in shard_store.read_clips(settings.shard_files(-1, shard))
  }
  gone, new = sorted(old - set(found)), sorted(set(found) - old)
  if gone:
    raise ValueError(
      f"inputs: {settings.out} was begun with {len(gone)} files that are not"
      f" named any more: {_preview(gone)}; name them, give no inputs to go on with"
      " those it has, or take another out"
    )
  if not new:
    return before["num_shards"]
  if not settings.append:
    raise ValueError(
      f"inputs: {len(new)} files were not there when {settings.out} was begun:"
      f" {_preview(new)}; --config.append=True makes further shards of them"
    )
  return _write(settings, new, before["num_shards"], before["num_files"])


def expand(patterns: Sequence[str]) -> list[str]:
  """The files that inputs name, each once, in order of their names.

  Args:
    patterns: files, folders, globs, or `@LIST`, a file with a name a line.

  Raises:
    ValueError: a pattern names no file, or a list cannot be read.
  """
  found = set()
  for pattern in patterns:
    if pattern.startswith("@"):
      found.update(_read_list(pattern[1:]))
      continue
    files = storage.list_files(pattern)
    if not files:
      raise ValueError(
        f"inputs: {pattern!r} names no file; expected a file, a folder, a glob"
        " or @LIST"
      )
    found.update(files)
  return sorted(found)


def _read_list(place: str) -> list[str]:
  """The names in a list."""
  try:
    with storage.open_file(place) as file:
      data = untrusted.read_at_most(file, tables.MAX_BYTES + 1)
  except (OSError, ValueError) as error:
    raise ValueError(f"inputs: @{place}: {error}") from error
  return tables.parse_list(data, f"inputs: @{place}")


def _read_existing(settings: curation_settings.Settings) -> dict | None:
  """What an earlier run numbered; None if there was none."""
  return shard_store.read_stored_json(
    storage.join(settings.out, _FILENAME), _FIELDS
  )


def _write(
  settings: curation_settings.Settings,
  paths: Sequence[str],
  first: int,
  files: int,
) -> int:
  """Write shards from number `first` on; the list, last, makes them count."""
  size = settings.shard_size
  shards = [paths[i : i + size] for i in range(0, len(paths), size)]
  for shard, part in enumerate(shards, first):
    with shard_store.open_output(settings.shard_files(-1, shard)) as opened:
      for path in part:
        clip = clips.Clip(id=_path_id(path), path=path)
        opened.writer.add(clip, [clip], {})
      opened.commit("")
  names = sorted(
    [
      clip.path
      for shard in range(first)
      for clip in shard_store.read_clips(settings.shard_files(-1, shard))
    ]
    + list(paths)
  )
  listed = {
    "shard_size": size,
    "num_shards": first + len(shards),
    "num_files": files + len(paths),
    "names_sha256": _hash_names(names),
  }
  text = json.dumps(listed, indent=1, sort_keys=True) + "\n"
  storage.write(storage.join(settings.out, _FILENAME), text.encode())
  return listed["num_shards"]


def _path_id(path: str) -> str:
  """What a file is called until its content is known."""
  return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]


def _hash_names(paths: Sequence[str]) -> str:
  """Hash of names, sorted."""
  # No name of a file holds a zero byte.
  joined = "\0".join(paths).encode(errors="surrogateescape")
  return hashlib.sha256(joined).hexdigest()


def _preview(paths: Sequence[str]) -> str:
  """The first names of a list."""
  more = ", …" if len(paths) > _MAX_NAMES_SHOWN else ""
  return ", ".join(repr(path) for path in paths[:_MAX_NAMES_SHOWN]) + more
