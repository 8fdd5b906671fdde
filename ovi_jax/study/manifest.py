"""The folder of a study: what was built from the study file.

  study.json       settings, prompts, clips, items, gold items, the secret key
  media/NAME.mp4   re-encoded clips under opaque names
  votes.sqlite3    raters, assignments and votes (`database`)

`study.json` maps names of media to systems, so it must stay with the organizer.
"""

import dataclasses
import functools
import hashlib
import hmac
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ovi_jax import config as config_lib
from ovi_jax import files
from ovi_jax import untrusted
from ovi_jax.study import settings as settings_lib

FILE, MEDIA, VOTES = "study.json", "media", "votes.sqlite3"
VERSION = 1
_MEDIA = re.compile(r"[0-9a-f]{32}\.mp4")
_MAX_BYTES = 64 << 20
_TIME = 946_684_800  # seconds from 1970 to 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """What clips were made from.

  Attributes:
    name: that clips of the systems are matched by.
    text: shown to raters; "" if no JSON beside a clip has it.
  """

  name: str
  text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A clip of a system.

  Attributes:
    media: name of the re-encoded file.
    source: path of the original.
    sha256: of the original.
    seconds: its length.
    width: of its frames.
    height: likewise.
    fps: frames a second.
    sound: whether it has a sound track; without one, silence is added.
    audible: whether the sound has a finite loudness, which gold items of sound
      need.
  """

  media: str
  source: str
  sha256: str
  seconds: float
  width: int
  height: int
  fps: float
  sound: bool
  audible: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
  """A pair of systems for one prompt."""

  prompt: int
  first: str
  second: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gold:
  """A clip beside a corrupted copy of it.

  Attributes:
    prompt: number of the clip's prompt.
    system: that made the clip.
    kind: of the corruption, of `settings.GOLD`.
    clean: media name of the clip.
    corrupted: media name of the copy.
  """

  prompt: int
  system: str
  kind: str
  clean: str
  corrupted: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """All of a study but its votes.

  Attributes:
    settings: from the study file.
    key: secret, in hexadecimal digits; names, sides and orders depend on it.
    prompts: numbered from 0.
    clips: by system, one for each prompt.
    items: numbered from 0.
    gold: likewise.
  """

  settings: settings_lib.Settings
  key: str
  prompts: tuple[Prompt, ...]
  clips: Mapping[str, tuple[Clip, ...]]
  items: tuple[Item, ...]
  gold: tuple[Gold, ...]

  def media(self, item: int) -> tuple[str, str]:
    """Media names of the first and the second system of an item."""
    found = self.items[item]
    first, second = (
      self.clips[s][found.prompt].media for s in (found.first, found.second)
    )
    return first, second

  @functools.cached_property
  def media_names(self) -> frozenset[str]:
    """Names of all media."""
    return frozenset(
      [
        *(clip.media for clips in self.clips.values() for clip in clips),
        *(name for g in self.gold for name in (g.clean, g.corrupted)),
      ]
    )

  @functools.cached_property
  def hash(self) -> str:
    """Twelve digits that identify rules, clips and items in reports.

    They do not depend on the secret key or on where clips were.
    """
    values = {
      "settings": settings_lib.to_json(self.settings)
      | {"systems": sorted(self.clips)},
      "prompts": [dataclasses.asdict(prompt) for prompt in self.prompts],
      "clips": {s: [c.sha256 for c in self.clips[s]] for s in self.clips},
      "items": [dataclasses.astuple(item) for item in self.items],
      "gold": [[g.prompt, g.system, g.kind] for g in self.gold],
    }
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @functools.cached_property
  def counts(self) -> dict[str, int]:
    """Number of real, gold and repeated items of a session."""
    return settings_lib.session_counts(
      self.settings, len(self.items), len(self.gold)
    )


def derive(key: str, *parts: object) -> bytes:
  """32 pseudo-random bytes of a secret key and of what they are for."""
  text = json.dumps([str(part) for part in parts])
  return hmac.digest(bytes.fromhex(key), text.encode(), "sha256")


def reset_time(media: pathlib.Path) -> None:
  """Give a media file the time of all others.

  Web servers send it, and it says which clips were encoded together.
  """
  os.utime(media, (_TIME, _TIME))


def to_json(study: Study) -> dict[str, Any]:
  """The study as JSON holds it."""
  return {
    "version": VERSION,
    "key": study.key,
    "settings": settings_lib.to_json(study.settings),
    "prompts": [dataclasses.asdict(p) for p in study.prompts],
    "clips": {
      system: [dataclasses.asdict(clip) for clip in clips]
      for system, clips in study.clips.items()
    },
    "items": [dataclasses.asdict(item) for item in study.items],
    "gold": [dataclasses.asdict(gold) for gold in study.gold],
  }


def write(folder: pathlib.Path, study: Study) -> None:
  """Write `study.json`, readable by its owner alone."""
  text = json.dumps(to_json(study), indent=1, ensure_ascii=False) + "\n"
  with files.atomic_path(folder / FILE) as temporary:
    temporary.touch(mode=0o600)
    temporary.write_text(text, "utf-8")


def read(folder: str | os.PathLike[str]) -> Study:
  """Read the `study.json` of a folder.

  Raises:
    ValueError: there is none, or it is damaged; says what to do.
  """
  path = pathlib.Path(folder) / FILE
  name = untrusted.printable(str(path))
  try:
    values = untrusted.read_json(path, max_bytes=_MAX_BYTES)
  except OSError as error:
    raise ValueError(
      f"{name}: {error.strerror}; expected a folder that"
      " `python -m ovi_jax.study make` wrote"
    ) from error
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
  try:
    study = _from_json(values)
    _check(study)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{name}: expected a study of version {VERSION}, found"
      f" {untrusted.printable(repr(error))}; run make again into a new folder"
    ) from error
  return study


def _from_json(values: Any) -> Study:
  if values["version"] != VERSION:
    raise ValueError(f"version {values['version']!r:.20}")
  return Study(
    settings=settings_lib.from_json(values["settings"]),
    key=values["key"],
    prompts=_built(Prompt, values["prompts"]),
    clips={k: _built(Clip, v) for k, v in values["clips"].items()},
    items=_built(Item, values["items"]),
    gold=_built(Gold, values["gold"]),
  )


def _built(cls: Any, values: Any) -> tuple[Any, ...]:
  return tuple(config_lib.build(cls, dict(value)) for value in values)


def _check(study: Study) -> None:
  """ValueError if parts of a study do not belong together."""
  count = len(study.prompts)
  bytes.fromhex(study.key)
  if len(study.key) != 64:
    raise ValueError("key of another length")
  if study.clips.keys() != study.settings.systems.keys():
    raise ValueError("clips of other systems")
  if any(len(clips) != count for clips in study.clips.values()):
    raise ValueError("another number of clips than prompts")
  systems = study.settings.systems
  for item in study.items:
    if not 0 <= item.prompt < count or not {item.first, item.second} <= set(
      systems
    ):
      raise ValueError("an item of no prompt or system")
  if not study.items:
    raise ValueError("no items")
  for gold in study.gold:
    if not 0 <= gold.prompt < count or gold.kind not in settings_lib.GOLD:
      raise ValueError("a gold item of no prompt or kind")
  if wrong := [n for n in study.media_names if not _MEDIA.fullmatch(n)]:
    raise ValueError(f"media {wrong[0]!r:.60}")
