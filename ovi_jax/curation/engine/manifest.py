"""The input manifest: assigns input files to shards, once per run.

`inputs/shard-00012.jsonl` has the files of a shard as clips, in the format of
`shard_store`. `inputs.json` is written last: number of files and shards, and a
hash of the names.
"""

import hashlib
import json
from collections.abc import Sequence

from ovi_jax import files
from ovi_jax import tables
from ovi_jax import untrusted
from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

_FILENAME = "inputs.json"
_MAX_NAMES_SHOWN = 5  # in an error message
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
  """Load the manifest, or create it from the inputs.

  Returns:
    The number of shards.

  Raises:
    ValueError: there are no inputs, or files or shard size differ from those
      of an earlier run.
  """
  existing = _read_existing(settings)
  if not settings.inputs:
    if existing:
      return existing["num_shards"]
    raise ValueError("inputs: give --config.inputs=\"('FOLDER',)\"")
  found = expand(settings.inputs)
  if not existing:
    if not found:
      raise ValueError(f"inputs: no file matches {list(settings.inputs)}")
    return _write(settings, found, first=0, files=0)
  if existing["shard_size"] != settings.shard_size:
    raise ValueError(
      f"shard_size: {settings.out} was created with {existing['shard_size']},"
      f" got {settings.shard_size}; use that, or another out"
    )
  if _hash_names(found) == existing["names_sha256"]:
    return existing["num_shards"]
  return _append_new(settings, found, existing)


def _append_new(
  settings: curation_settings.Settings, found: Sequence[str], existing: dict
) -> int:
  """Append new files, if allowed; ValueError if files are missing."""
  old = {
    clip.path
    for shard in range(existing["num_shards"])
    for clip in shard_store.read_clips(settings.shard_files(-1, shard))
  }
  gone, new = sorted(old - set(found)), sorted(set(found) - old)
  if gone:
    raise ValueError(
      f"inputs: {len(gone)} files of {settings.out} are not among the inputs:"
      f" {_preview(gone)}; add them, give no inputs to continue with the"
      " existing ones, or use another out"
    )
  if not new:
    return existing["num_shards"]
  if not settings.append:
    raise ValueError(
      f"inputs: {len(new)} files are not in {settings.out}: {_preview(new)};"
      " --config.append=True adds them as further shards"
    )
  return _write(settings, new, existing["num_shards"], existing["num_files"])


def expand(patterns: Sequence[str]) -> list[str]:
  """The input files, without duplicates, sorted by name.

  Args:
    patterns: files, folders, globs, or `@LIST`, a file with one name per line.

  Raises:
    ValueError: a pattern matches no file, or a list cannot be read.
  """
  found = set()
  for pattern in patterns:
    if pattern.startswith("@"):
      listed = _read_list(files.with_home(pattern[1:]))
      found.update(map(files.with_home, listed))
      continue
    pattern = files.with_home(pattern)
    matching = storage.list_files(pattern)
    if not matching:
      raise ValueError(
        f"inputs: {pattern!r} matches no file; expected a file, a folder, a"
        " glob or @LIST"
      )
    found.update(matching)
  return sorted(found)


def _read_list(url: str) -> list[str]:
  """The names in a list file."""
  try:
    with storage.open_file(url) as file:
      data = untrusted.read_at_most(file, tables.MAX_BYTES + 1)
  except (OSError, ValueError) as error:
    raise ValueError(f"inputs: @{url}: {error}") from error
  return tables.parse_list(data, f"inputs: @{url}")


def _read_existing(settings: curation_settings.Settings) -> dict | None:
  """The manifest of an earlier run; None if there is none."""
  return shard_store.read_stored_json(
    storage.join(settings.out, _FILENAME), _FIELDS
  )


def _write(
  settings: curation_settings.Settings,
  paths: Sequence[str],
  first: int,
  files: int,
) -> int:
  """Write shards from index `first` on, then `inputs.json`."""
  size = settings.shard_size
  shards = [paths[i : i + size] for i in range(0, len(paths), size)]
  for shard, paths_of_shard in enumerate(shards, first):
    with shard_store.open_output(settings.shard_files(-1, shard)) as opened:
      for path in paths_of_shard:
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
  """The id of a file before its content is hashed."""
  return hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:32]


def _hash_names(paths: Sequence[str]) -> str:
  """Hash of sorted names."""
  # File names cannot contain NUL.
  joined = "\0".join(paths).encode(errors="surrogateescape")
  return hashlib.sha256(joined).hexdigest()


def _preview(paths: Sequence[str]) -> str:
  """The first names, for a message."""
  more = ", …" if len(paths) > _MAX_NAMES_SHOWN else ""
  return ", ".join(repr(path) for path in paths[:_MAX_NAMES_SHOWN]) + more
