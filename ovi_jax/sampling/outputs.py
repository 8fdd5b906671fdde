"""The output files of a clip: mp4, JSON with all settings, latents.

  <stem>.mp4   H.264 video and AAC audio, written last; of sound alone a .wav
  <stem>.json  prompt, settings, seed, digests of the weights, device, version
  <stem>.npz   video_THWC and audio_TC, with --save_latents

An mp4 (or wav) under its final name is complete and described by the JSON
beside it, so an interrupted run can be continued. Runs may share a directory:
a clip of another run is never replaced, unless that is asked for. The name is
taken by an empty file, created exclusively, before the files get their names.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import container
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.modality import AV

# Of a recipe, what does not decide what the clip will be.
_VERSION_FIELDS = ("ovi_jax", "first_frame", "device", "jax")
# Entries that a recipe may lack, which then means that they are empty.
_OPTIONAL_FIELDS = ("given", "loras", "latent_frames", "windows", "generate")
# Of clips by their endings.
MEDIA_TYPES = {".mp4": "video/mp4", ".wav": "audio/wav"}
# Endings that a directory of clips is not given on purpose.
_FILES = {
  *(".avi", ".gif", ".json", ".m4v", ".mkv", ".mov", ".mp3", ".mp4", ".npz"),
  *(".png", ".jpg", ".jpeg", ".wav", ".webm", ".webp"),
}

# Seconds without a change after which an unfinished file is removed. Another
# machine may be writing a newer one.
_ABANDONED = 24 * 3600.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Seen:
  """What had the name of a clip when the clip was planned.

  Attributes:
    version: of the file, see `storage.version`; `None` of none.
  """

  version: tuple[Any, ...] | None

  @classmethod
  def at(cls, path: storage.AnyPath) -> "Seen":
    """What has this name now."""
    return cls(storage.version(path))


class _MadeMeanwhileError(Exception):
  """Another run has written the same clip."""


def latents_of(clip: storage.AnyPath) -> storage.AnyPath:
  """The path of a clip's latents."""
  return clip.with_suffix(".npz")


def prompt_of(clip: storage.AnyPath) -> str:
  """Read the prompt from the JSON beside a clip.

  Args:
    clip: path of the mp4.

  Returns:
    The prompt.

  Raises:
    ValueError: there is no such file, or it has no prompt.
  """
  path = clip.with_suffix(".json")
  wanted = "expected the recipe that sample.py writes beside a clip"
  try:
    recipe = storage.read_json(path)
  except OSError as error:
    raise ValueError(f"{path}: {error.strerror or error}; {wanted}") from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}; {wanted}") from error
  prompt = recipe.get("prompt") if isinstance(recipe, dict) else None
  if not isinstance(prompt, str):
    raise ValueError(f"{path} has no prompt; {wanted}")
  return prompt


def check_directory(path: storage.AnyPath) -> None:
  """Create the output directory and check that it is writable.

  Args:
    path: of the directory.

  Raises:
    ValueError: it is a file or named like one, or cannot be created or written.
    OSError: it is in an object store that cannot be used.
  """
  if path.suffix.lower() in _FILES and not path.is_dir():
    raise ValueError(
      f"out: expected a directory, {path} is named like a file; each clip is"
      f" named after its prompt, so pass --out={path.with_suffix('')}"
    )
  if not isinstance(path, pathlib.Path):
    storage.check_access(path)
    return
  probe = path / f".{os.getpid()}.probe"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ValueError(
      f"out: cannot write to the directory {path} ({error.strerror}); choose"
      " another --out"
    ) from error
  _clear_abandoned(path)


def _clear_abandoned(path: pathlib.Path) -> None:
  """Remove what runs that have ended left unfinished; name what is newer."""
  left = files.abandoned(path)
  old = [p for p in left if time.time() - p.stat().st_mtime > _ABANDONED]
  for file in old:
    file.unlink(missing_ok=True)
  if old:
    count = untrusted.counted(len(old), "unfinished file")
    _log.info("note: removed %s of interrupted runs from %s", count, path)
  if recent := [p for p in left if p not in old]:
    _log.info(
      "note: %s has %s of interrupted runs, such as %s; delete them if no other"
      " machine is writing there",
      *(path, untrusted.counted(len(recent), "unfinished file")),
      untrusted.printable(recent[0].name),
    )


def is_complete(
  path: storage.AnyPath,
  recipe: Mapping[str, Any],
  beside: Sequence[storage.AnyPath] = (),
) -> bool:
  """Whether a clip and its files exist.

  Args:
    path: of the mp4.
    recipe: expected settings.
    beside: further files of the clip.

  Returns:
    Whether all files exist, the JSON has these settings, and the end of the mp4
    is there.

  Raises:
    ValueError: there is another clip under this name; lists the differences.
    OSError: the object store cannot be used.
  """
  if not storage.exists(path):
    return False
  if path.is_dir():
    raise ValueError(f"{path} is a folder; choose another --out")
  if not storage.size(path):
    return False  # nothing is lost
  try:
    found = storage.read_json(path.with_suffix(".json"))
  except (OSError, ValueError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(
      f"{path} has no readable JSON, so its settings are unknown; choose"
      " another --out, or replace it with --overwrite"
    )
  expected = {name: None for name in _OPTIONAL_FIELDS} | dict(recipe)
  different = [
    name
    for key, value in expected.items()
    if key not in _VERSION_FIELDS
    for name in _different(key, found.get(key), value)
  ]
  if different:
    raise ValueError(
      f"{path} was made with other settings ({', '.join(different)} differ);"
      " choose another --out, or --overwrite it"
    )
  try:
    container.check_whole(path)
  except container.DamagedError as error:
    _log.info("note: %s is made again: %s", path, error)
    return False
  return all(storage.exists(further) for further in beside)


def _different(key: str, found: Any, expected: Any) -> list[str]:
  """Names of what differs of an entry: of fields, if both have fields."""
  found, expected = _compared(key, found), _compared(key, expected)
  if found == expected:
    return []
  if not (isinstance(found, Mapping) and isinstance(expected, Mapping)):
    return [key]
  return [
    f"{key}.{field}"
    for field in dict.fromkeys([*expected, *found])
    if found.get(field) != expected.get(field)
  ]


def _compared(key: str, value: Any) -> Any:
  """A recipe's entry, as it is compared."""
  content = without_paths(value)
  return content or None if key in _OPTIONAL_FIELDS else content


def without_paths(value: Any) -> Any:
  """A recipe's entry without the paths of files, which have checksums."""
  if isinstance(value, Mapping):
    return {k: without_paths(v) for k, v in value.items() if k != "path"}
  if isinstance(value, (list, tuple)):
    return [without_paths(v) for v in value]
  return value


def write(
  path: storage.AnyPath,
  recipe: Mapping[str, Any],
  frames: Iterator[np.ndarray] | None,
  wave: Any,
  latents: Callable[[], AV[np.ndarray]] | None,
  *,
  seen: Seen | None = None,
  picture: storage.AnyPath | None = None,
) -> storage.AnyPath:
  """Write the files of a clip, the mp4 last, or the wav of sound alone.

  Args:
    path: of the mp4, or wav.
    recipe: contents of the JSON.
    frames: uint8 RGB [T, H, W, 3], in chunks; `None` for a wav.
    wave: mono in [-1, 1] at 16 kHz; or a function of its parts, see
      `mp4.write`; or `None` for a silent mp4.
    latents: video_THWC and audio_TC to save, called when all frames are
      written; or `None`.
    seen: replace this alone; a file that has come since stays. `None` replaces
      whatever there is.
    picture: a file to copy beside the clip, such as its first frame.

  Returns:
    The path; another one if another clip has come under this name.

  Raises:
    OSError: the disk is full or not writable; no partial mp4 is left.
  """
  taken, is_taken = path, False

  @functools.cache
  def named_path() -> storage.AnyPath:
    """Take the name, when all new files are whole but have no names yet.

    The old mp4 goes first: it must never stand beside the new one's JSON.
    """
    nonlocal taken, is_taken
    if seen is None:
      path.unlink(missing_ok=True)
    else:
      beside = [latents_of(path)] if latents is not None else []
      taken, is_taken = _take(path, recipe, beside, seen), True
    return taken

  def beside_it(name: Callable[[storage.AnyPath], storage.AnyPath]) -> Any:
    return files.atomic_path(name(path), lambda: name(named_path()))

  def describe() -> storage.AnyPath:
    with contextlib.ExitStack() as named:
      if picture is not None:
        ending = picture.suffix
        temporary = named.enter_context(
          beside_it(lambda clip: clip.with_suffix(ending))
        )
        with storage.local_copy(picture) as local:
          shutil.copyfile(local, temporary)
      if latents is not None:
        found = latents()
        names = {"video": "video_THWC", "audio": "audio_TC"}
        arrays = {names[n]: found_T for n, found_T in found.present().items()}
        temporary = named.enter_context(beside_it(latents_of))
        with temporary.open("wb") as file:
          np.savez(file, **arrays)  # type: ignore[arg-type]
      text = json.dumps(recipe, indent=1, ensure_ascii=False) + "\n"
      temporary = named.enter_context(
        beside_it(lambda clip: clip.with_suffix(".json"))
      )
      # Bytes of file names that are not UTF-8 become escapes of JSON.
      temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
    return named_path()

  try:
    if frames is None:
      wav.write(path, wave, before_naming=describe)
    else:
      mp4.write(path, frames, wave, before_naming=describe)
  except _MadeMeanwhileError:
    _log.info("already made by another run: %s", path)
    return path
  except BaseException:
    if is_taken:
      taken.unlink(missing_ok=True)
    raise
  if taken != path:
    _log.info(
      "note: another run has written %s meanwhile, with other settings; this"
      " clip is %s",
      *(path, taken),
    )
  return taken


def _take(
  path: storage.AnyPath,
  recipe: Mapping[str, Any],
  beside: Sequence[storage.AnyPath],
  seen: Seen,
) -> storage.AnyPath:
  """Create an empty file under the name of a clip, or under a similar one.

  Raises:
    _MadeMeanwhileError: there is the same clip.
  """
  if Seen.at(path) == seen:
    path.unlink(missing_ok=True)
    if storage.create(path):
      return path
  # ValueError: a clip with other settings.
  with contextlib.suppress(ValueError):
    if is_complete(path, recipe, beside):
      raise _MadeMeanwhileError
  for number in itertools.count(2):
    other = path.with_name(f"{path.stem}-{number}{path.suffix}")
    if storage.create(other):
      return other
  raise AssertionError("numbers do not end")
