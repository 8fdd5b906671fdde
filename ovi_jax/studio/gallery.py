"""The clips of an output folder, whoever made them: `sample.py` or the studio.

A clip is an mp4, or a wav of sound alone, with a JSON file beside it (see
`sampling.outputs`). The files
may have been changed by anyone: JSON is bounded, of values of other kinds only
a printable text is shown, and paths of files are left out.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import stat
import threading
from collections.abc import Mapping
from typing import Any

from ovi_jax import files
from ovi_jax import untrusted
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import outputs

SUFFIXES = tuple(outputs.MEDIA_TYPES)
MAX_RECIPE_BYTES = 1 << 20
MAX_PROMPT = 2**14
_SHOWN = 200  # characters of a setting
# Fields of a recipe's config that are shown, with their labels.
_CONFIG = {
  "num_steps": "Steps",
  "solver": "Solver",
  "flow_shift": "Flow shift",
  "guidance_scale": "Guidance",
  "negative_prompt": "Negative prompt",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A clip in the folder.

  Attributes:
    name: of the mp4 or wav.
    version: changes when the file does.
    changed: seconds since 1970 when the JSON was written.
    recipe: contents of the JSON, without paths.
  """

  name: str
  version: str
  changed: float
  recipe: Mapping[str, Any]

  @property
  def stem(self) -> str:
    """The name without its ending."""
    return pathlib.Path(self.name).stem

  @property
  def is_sound(self) -> bool:
    """Whether it is sound alone."""
    return self.name.endswith(".wav")

  @property
  def prompt(self) -> str:
    """As the user wrote it."""
    found = self.recipe.get("prompt")
    return found[:MAX_PROMPT] if isinstance(found, str) else self.name

  @property
  def seed(self) -> int:
    """Of the noise; 0 if the JSON has none."""
    found = self.recipe.get("seed")
    return found if type(found) is int and 0 <= found < 2**32 else 0

  @property
  def settings(self) -> list[tuple[str, str]]:
    """Labels and values to show."""
    recipe = self.recipe
    config = _mapping(recipe.get("config"))
    moment = datetime.datetime.fromtimestamp(self.changed)
    found: list[tuple[str, Any]] = [
      ("Seed", recipe.get("seed")),
      ("Size", f"{_text(recipe.get('width'))}x{_text(recipe.get('height'))}"),
      ("Generated", recipe.get("generate")),
      ("Latent frames", recipe.get("latent_frames")),
      *((label, config.get(name)) for name, label in _CONFIG.items()),
      ("First frame", "given" if recipe.get("image") else None),
    ]
    for name, value in _mapping(recipe.get("given")).items():
      if name not in ("latent_frames", "conditioning"):
        # Of files there is only a checksum.
        if isinstance(value, Mapping):
          part = value.get("seconds")
          value = f"seconds {_text(part)}" if part else "given"
        found.append((f"Given {name}", value))
    loras = recipe.get("loras")
    for lora in loras if isinstance(loras, list) else ():
      found.append(("LoRA", _mapping(lora).get("strength")))
    weights = _mapping(recipe.get("weights"))
    variant = weights.get("variant")
    if variant == weights_dir.CUSTOM:
      variant = "custom weights"
    found.append(("Weights", variant))
    found.append(("Made", f"{moment:%Y-%m-%d %H:%M}"))
    shown = [(_text(label), _text(value)) for label, value in found]
    return [(label, value) for label, value in shown if value]

  def matches(self, words: list[str]) -> bool:
    """Whether prompt, name, seed or settings have all words, in lower case."""
    values = (f"{label} {value}" for label, value in self.settings)
    text = "\n".join([self.prompt, self.name, *values]).casefold()
    return all(word in text for word in words)


class Gallery:
  """The clips of a folder; what was read is kept until a file changes."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._lock = threading.Lock()
    self._known: dict[str, Clip] = {}

  def clips(self) -> list[Clip]:
    """All clips, the newest first."""
    with self._lock:
      self._known = {
        name: self._clip(name, version, changed)
        for name, (version, changed) in self._versions().items()
      }
      found = list(self._known.values())
    return sorted(found, key=lambda clip: (clip.changed, clip.name))[::-1]

  def search(self, query: str) -> list[Clip]:
    """Clips whose prompt, name, seed or settings have all words of a query."""
    words = query.casefold().split()
    return [clip for clip in self.clips() if clip.matches(words)]

  def find(self, name: str) -> Clip:
    """A clip by its name.

    Raises:
      ValueError: there is none.
    """
    versions = self._versions()
    if name not in versions:
      raise ValueError("there is no such clip; it may have been removed")
    return self._clip(name, *versions[name])

  def find_stem(self, stem: str) -> Clip:
    """A clip by its name without the ending; ValueError if there is none."""
    versions = self._versions()
    names = [f"{stem}{suffix}" for suffix in SUFFIXES]
    return self.find(next((n for n in names if n in versions), stem))

  def path(self, name: str) -> pathlib.Path:
    """The file of a clip; ValueError if there is none."""
    return self.folder / self.find(name).name

  def latents(self, clip: Clip) -> pathlib.Path | None:
    """The latents of a clip; `None` if they were not saved."""
    path = outputs.latents_of(self.folder / clip.name)
    try:
      files.inside(self.folder, path.name)
    except (OSError, ValueError):
      return None
    return pathlib.Path(path)

  def _versions(self) -> dict[str, tuple[str, float]]:
    """Version and time of each clip that has a JSON file beside it."""
    found: dict[str, os.stat_result] = {}
    with os.scandir(self.folder) as entries:
      for entry in entries:
        shown = entry.name.isprintable() and entry.name[0] != "."
        if shown and entry.name.endswith((*SUFFIXES, ".json")):
          with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
              found[entry.name] = status
    made = {}
    for name, status in found.items():
      recipe = found.get(f"{pathlib.Path(name).stem}.json")
      if name.endswith(SUFFIXES) and recipe is not None:
        version = f"{status.st_mtime_ns:x}-{recipe.st_mtime_ns:x}"
        made[name] = version, recipe.st_mtime
    return made

  def _clip(self, name: str, version: str, changed: float) -> Clip:
    known = self._known.get(name)
    if known is not None and known.version == version:
      return known
    try:
      path = files.inside(self.folder, f"{pathlib.Path(name).stem}.json")
      found = untrusted.read_json(path, max_bytes=MAX_RECIPE_BYTES)
      json.dumps(found, ensure_ascii=False).encode()
    except (OSError, ValueError):  # also of lone surrogates
      found = None
    recipe = outputs.without_paths(_mapping(found))
    return Clip(name=name, version=version, changed=changed, recipe=recipe)


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
  """A value as a short text; empty for none."""
  if value is None or value == {}:
    return ""
  if isinstance(value, Mapping):
    parts = (f"{key} {_text(each)}" for key, each in value.items() if each)
    return untrusted.printable(", ".join(parts), _SHOWN)
  if isinstance(value, float):
    return f"{value:g}"
  return untrusted.printable(str(value), _SHOWN)
