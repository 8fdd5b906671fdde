"""Builds the folder of a study: clips matched, checked and re-encoded alike.

All clips get the same encoder settings, 48 kHz mono sound of one loudness, no
metadata, and an opaque name. Size, frame rate and length are kept;
where systems differ in them, the log says so, since raters may notice.
"""

import dataclasses
import functools
import itertools
import logging
import math
import pathlib
import re
import secrets
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import signal

from ovi_jax import console
from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import container as containers
from ovi_jax.media import loudness
from ovi_jax.media import mp4
from ovi_jax.media import probe
from ovi_jax.study import bundle
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import settings as settings_lib

_log = logging.getLogger(__name__)

RATE = 48_000  # Hz, of all sound
ENDINGS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi"))
_MAX_BYTES = mp4.MAX_BYTES
_SHIFT = 1.0  # seconds, at most
_NOISE = 60.0  # standard deviation, of 255
_MAX_GAIN = 30.0  # dB
_PEAK = 10 ** (-1 / 20)
_KEY = ".key"
_MAX_PROMPT = 4000  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
  """A clip before it is re-encoded."""

  path: storage.AnyPath
  prompt: str
  facts: probe.Facts
  audible: bool
  sha256: str


def build(
  settings: settings_lib.Settings, folder: pathlib.Path
) -> manifest.Study:
  """Write the folder of a study; finished media are reused.

  Args:
    settings: of the study.
    folder: to write to.

  Returns:
    The study.

  Raises:
    ValueError: systems lack clips, clips cannot be used (all are listed, before
      anything is encoded), or the folder has votes or a bundle of another
      study.
    OSError: the disk is full, or the folder is not writable.
  """
  names, sources = _sources(settings)
  _check_prompts(names, sources)
  _log_differences(sources)
  folder.mkdir(parents=True, exist_ok=True)
  key = _key(folder)
  prompts = tuple(
    manifest.Prompt(name=name, text=_text(settings, sources, number))
    for number, name in enumerate(names)
  )
  clips = {
    system: tuple(_clip(key, settings, system, source) for source in found)
    for system, found in sources.items()
  }
  study = manifest.Study(
    settings=settings,
    key=key,
    prompts=prompts,
    clips=clips,
    items=tuple(items(settings, len(names))),
    gold=tuple(gold(key, settings, clips)),
  )
  _bind(folder, study)
  _encode(folder, study, sources)
  manifest.write(folder, study)
  return study


def _key(folder: pathlib.Path) -> str:
  """The secret key of a folder, made once."""
  path = folder / _KEY
  if path.exists():
    key = untrusted.read_regular(path, 100).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", key):
      raise ValueError(f"{path} holds no key; delete it, or choose another out")
    return key
  key = secrets.token_hex(32)
  with files.atomic_path(path) as temporary:
    temporary.touch(mode=0o600)
    temporary.write_text(key + "\n", "ascii")
  return key


def _bind(folder: pathlib.Path, study: manifest.Study) -> None:
  """Refuse a folder whose raters or bundle are of another study.

  A database without raters becomes one of this study; servers that have it open
  refuse requests from then on.

  Raises:
    ValueError: there are such raters, or there is such a bundle.
  """
  published = bundle.published(folder)
  if published is not None and published != study.hash:
    raise ValueError(
      f"{folder} has a bundle of study {published}, this is {study.hash}: study"
      " file or clips have changed, and codes of that bundle could not be"
      f" imported; choose another --out, or delete {folder / bundle.FILE} if"
      " the bundle was never published"
    )
  path = folder / manifest.VOTES
  if path.exists():
    database.Database(path, study, replace=True)


def _sources(
  settings: settings_lib.Settings,
) -> tuple[list[str], dict[str, list[_Source]]]:
  """Names of prompts, and the clips of each system in their order."""
  listed = {
    system: _listed(system, folder, settings.match)
    for system, folder in settings.systems.items()
  }
  every = sorted(set().union(*listed.values()))
  names = [n for n in every if all(n in clips for clips in listed.values())]
  lacking = [
    f"{system} has no clip of {untrusted.printable(name, 80)!r}"
    for name in every
    for system, clips in listed.items()
    if name not in clips
  ]
  if lacking:
    lines = untrusted.shortened(lacking)
    if settings.incomplete_prompts == "refuse" or not names:
      raise ValueError(
        f"systems have different clips: {'; '.join(lines)}; add the clips, or"
        ' set "incomplete_prompts": "skip" (clips are matched by'
        f" {settings.match}, {len(names)} in all systems)"
      )
    _log.warning(
      "%d prompts are skipped: %s", len(every) - len(names), "; ".join(lines)
    )
  sources: dict[str, list[_Source]] = {}
  problems: list[str] = []
  for system, clips in listed.items():
    sources[system] = []
    for name in names:
      try:
        sources[system].append(_source(*clips[name]))
      except ValueError as error:
        problems.append(str(error))
  if problems:
    raise ValueError("\n  ".join(["clips:", *untrusted.shortened(problems)]))
  return names, sources


def _listed(
  system: str, folder: str, match: str
) -> dict[str, tuple[storage.AnyPath, str]]:
  """Path and prompt of each clip of a system, by what it is matched by."""
  root = storage.locate(folder)
  if not root.is_dir():
    raise ValueError(f"systems.{system}: {folder} is not a folder")
  paths = sorted(
    (p for p in root.iterdir() if p.suffix.lower() in ENDINGS),
    key=lambda p: p.name,
  )
  if not paths:
    raise ValueError(
      f"systems.{system}: {folder} has no clips ({', '.join(sorted(ENDINGS))})"
    )
  found: dict[str, tuple[storage.AnyPath, str]] = {}
  numbers: dict[str, int] = {}
  for path in paths:
    prompt = _prompt(path)
    name = path.stem
    if match == "prompt":
      if not prompt:
        raise ValueError(
          f"{path}: no prompt in a JSON file beside it; add it, or match clips"
          ' by their names: "match": "name"'
        )
      numbers[prompt] = number = numbers.get(prompt, 0) + 1
      name = prompt if number == 1 else f"{prompt} #{number}"
    if name in found:
      raise ValueError(
        f"systems.{system}: {found[name][0].name} and {path.name} have the"
        " same name; remove one"
      )
    found[name] = path, prompt
  return found


def _prompt(path: storage.AnyPath) -> str:
  """The prompt in the JSON beside a clip; "" if there is none."""
  beside = path.with_suffix(".json")
  if not beside.exists():
    return ""
  try:
    recipe = storage.read_json(beside)
  except ValueError as error:
    raise ValueError(f"{beside}: {error}") from error
  prompt = recipe.get("prompt") if isinstance(recipe, dict) else None
  if prompt is None:
    return ""
  if not isinstance(prompt, str) or len(prompt) > _MAX_PROMPT:
    raise ValueError(
      f"{beside}: expected a prompt of at most {_MAX_PROMPT} characters"
    )
  return prompt


def _source(path: storage.AnyPath, prompt: str) -> _Source:
  """Properties of a clip; ValueError with its path if it cannot be used."""
  name = untrusted.printable(str(path), 500)
  try:
    with storage.local_copy(path) as copy:
      facts = probe.read(copy)
      if not facts.has_video or not facts.fps > 0:
        raise containers.DamagedError("expected a video, found none")
      aspect = mp4.header(copy).aspect
      audible = facts.has_audio and _is_audible(copy)
      digest = containers.digest(copy)
  except containers.DamagedError as error:
    raise ValueError(f"{name}: {error}") from error
  if abs(aspect - 1) > 0.01:
    raise ValueError(
      f"{name}: expected square pixels, their aspect is {aspect:g}; re-encode"
      " the clip"
    )
  if facts.duration > mp4.MAX_SECONDS:
    raise ValueError(
      f"{name}: lasts {facts.duration:.1f} s, expected at most"
      f" {mp4.MAX_SECONDS:g} s; cut it"
    )
  if facts.unsupported:
    raise ValueError(f"{name}: {facts.unsupported}; convert it to H.264")
  held = math.ceil(facts.duration * facts.fps) * facts.width * facts.height * 3
  if held > _MAX_BYTES:
    raise ValueError(
      f"{name}: its frames are {held / 1e6:.0f} MB, expected at most"
      f" {_MAX_BYTES / 1e6:.0f} MB; make it smaller"
    )
  return _Source(
    path=path, prompt=prompt, facts=facts, audible=audible, sha256=digest
  )


def _is_audible(path: pathlib.Path) -> bool:
  """Whether the sound of a clip, mixed down to mono, has a loudness."""
  wave_CA, rate = mp4.read_sound(path)
  if wave_CA is None or not rate:
    return False
  mono_CA = wave_CA.mean(0, keepdims=True)
  return math.isfinite(loudness.integrated(mono_CA, rate))


def _check_prompts(
  names: Sequence[str], sources: Mapping[str, Sequence[_Source]]
) -> None:
  """ValueError if clips of one name were made from different prompts."""
  problems = []
  for number, name in enumerate(names):
    found = {
      system: of_system[number].prompt for system, of_system in sources.items()
    }
    if len({*filter(None, found.values())}) > 1:
      texts = ", ".join(
        f"{system} {untrusted.printable(prompt, 60)!r}"
        for system, prompt in found.items()
        if prompt
      )
      problems.append(f"{untrusted.printable(name, 80)}: {texts}")
  if problems:
    raise ValueError(
      "\n  ".join(
        [
          "clips of one name have different prompts in the JSON beside them;"
          ' rename them, or set "match": "prompt":',
          *untrusted.shortened(problems),
        ]
      )
    )


def _log_differences(sources: Mapping[str, Sequence[_Source]]) -> None:
  """Warn of properties by which raters could recognize a system."""
  kinds = {
    "size": lambda f: f"{f.width}x{f.height}",
    "frame rate": lambda f: f"{f.fps:g}",
    "length": lambda f: f"{f.duration:.1f} s",
    "sound": lambda f: "sound" if f.has_audio else "no sound",
  }
  for what, describe in kinds.items():
    values = {
      system: sorted({describe(source.facts) for source in found})
      for system, found in sources.items()
    }
    if len({tuple(value) for value in values.values()}) > 1:
      text = "; ".join(
        f"{system}: {', '.join(untrusted.shortened(value))}"
        for system, value in values.items()
      )
      _log.warning("systems differ in %s, raters may notice it: %s", what, text)


def _text(
  settings: settings_lib.Settings,
  sources: Mapping[str, Sequence[_Source]],
  number: int,
) -> str:
  """The prompt that raters see, by the first system that has it."""
  if not settings.show_prompt:
    return ""
  found = (of_system[number].prompt for of_system in sources.values())
  return next(filter(None, found), "")


def _clip(
  key: str, settings: settings_lib.Settings, system: str, source: _Source
) -> manifest.Clip:
  facts = source.facts
  return manifest.Clip(
    media=_name(key, "clip", system, source, settings.loudness),
    source=str(source.path),
    sha256=source.sha256,
    seconds=float(facts.duration),
    width=facts.width,
    height=facts.height,
    fps=float(facts.fps),
    sound=facts.has_audio,
    audible=source.audible,
  )


def _name(key: str, *parts: object) -> str:
  """A name that depends on the content, by a secret function."""
  plain = [p.sha256 if isinstance(p, _Source) else p for p in parts]
  return f"{manifest.derive(key, 'media', *plain).hex()[:32]}.mp4"


def items(
  settings: settings_lib.Settings, prompts: int
) -> Iterator[manifest.Item]:
  """Pairs of systems for each prompt."""
  systems = sorted(settings.systems)
  every = [tuple(sorted(pair)) for pair in settings.pairs] or [
    *itertools.combinations(systems, 2)
  ]
  is_part = not settings.pairs and len(systems) > settings_lib.ALL_PAIRS
  for prompt in range(prompts):
    pairs: Any = every
    if is_part:
      # A circle in random order: connected, and two pairs for each system.
      random = np.random.default_rng([settings.seed, prompt])
      circle = [systems[i] for i in random.permutation(len(systems))]
      pairs = [tuple(sorted(p)) for p in zip(circle, circle[1:] + circle[:1])]
    for first, second in pairs:
      yield manifest.Item(prompt=prompt, first=first, second=second)


def gold(
  key: str,
  settings: settings_lib.Settings,
  clips: Mapping[str, tuple[manifest.Clip, ...]],
) -> Iterator[manifest.Gold]:
  """Gold items: each corruption that a question names equally often."""
  kinds = [
    kind
    for kind in settings_lib.GOLD
    if any(q.gold == kind for q in settings.questions)
  ]
  if not kinds or not settings.gold_share:
    return
  size = math.ceil(settings.gold_share * settings.items_per_session)
  prompts = len(next(iter(clips.values())))
  places = [(s, p) for s in sorted(clips) for p in range(prompts)]
  random = np.random.default_rng([settings.seed, 1 << 20])
  places = [places[i] for i in random.permutation(len(places))]
  for number, kind in enumerate(kinds):
    usable = [
      (system, prompt)
      for system, prompt in places
      if kind == settings_lib.VIDEO_NOISE
      or (
        clips[system][prompt].audible
        and (
          kind != settings_lib.AUDIO_SWAP
          or _other(clips[system], prompt) is not None
        )
      )
    ]
    if not usable:
      _log.warning("no clip is fit for gold items of kind %s", kind)
      continue
    # As many of a kind as a session has gold items, on different clips.
    wanted = min(len(usable), max(1, size))
    start = number * wanted % len(usable)
    for system, prompt in (usable + usable)[start : start + wanted]:
      clean = clips[system][prompt].media
      yield manifest.Gold(
        prompt=prompt,
        system=system,
        kind=kind,
        clean=clean,
        corrupted=_name(key, "gold", kind, clean),
      )


def _other(clips: Sequence[manifest.Clip], prompt: int) -> int | None:
  """The next prompt whose clip is audible too."""
  following = [*range(prompt + 1, len(clips)), *range(prompt)]
  return next((p for p in following if clips[p].audible), None)


def _encode(
  folder: pathlib.Path,
  study: manifest.Study,
  sources: Mapping[str, Sequence[_Source]],
) -> None:
  """Write the media that are not there."""
  media = folder / manifest.MEDIA
  media.mkdir(exist_ok=True)
  places = {
    (system, prompt): found
    for system, of_system in sources.items()
    for prompt, found in enumerate(of_system)
  }
  golds: dict[tuple[str, int], list[manifest.Gold]] = {}
  for each in study.gold:
    golds.setdefault((each.system, each.prompt), []).append(each)
  read = functools.partial(_read, target=study.settings.loudness)
  for (system, prompt), source in console.progress(
    places.items(), desc="media", unit="clip"
  ):
    clip = study.clips[system][prompt]
    wanted = [
      g
      for g in golds.get((system, prompt), ())
      if not (media / g.corrupted).exists()
    ]
    is_written = (media / clip.media).exists()
    if is_written and not wanted:
      continue
    frames_THWC, fps, wave_A = read(source.path)
    if not is_written:
      _write(media / clip.media, frames_THWC, fps, wave_A)
    for each in wanted:
      other_A = None
      if each.kind == settings_lib.AUDIO_SWAP:
        other = _other(study.clips[system], prompt)
        assert other is not None
        other_A = read(sources[system][other].path)[2]
      frames, wave = corrupt(each.kind, frames_THWC, wave_A, other_A)
      _write(media / each.corrupted, frames, fps, wave)
  for name in study.media_names:
    manifest.reset_time(media / name)


def _read(
  path: storage.AnyPath, target: float | None
) -> tuple[np.ndarray, float, np.ndarray]:
  """Upright frames of even size, their rate, and sound at `RATE`."""
  with storage.local_copy(path) as copy:
    frames_THWC, fps, wave_A, rate = mp4.read(copy)
    turn = mp4.header(copy).orientation
  if turn.transposed:
    frames_THWC = frames_THWC.swapaxes(1, 2)
  frames_THWC = frames_THWC[
    :, :: -1 if turn.rows else 1, :: -1 if turn.columns else 1
  ]
  rows, columns = (side - side % 2 for side in frames_THWC.shape[1:3])
  frames_THWC = frames_THWC[:, :rows, :columns]
  if wave_A is None or not rate or not wave_A.size:
    silence_A = np.zeros(round(len(frames_THWC) / fps * RATE), np.float32)
    return frames_THWC, fps, silence_A
  common = math.gcd(RATE, rate)
  wave_A = signal.resample_poly(wave_A, RATE // common, rate // common)
  if target is not None:
    wave_A = normalize(wave_A, target)
  return frames_THWC, fps, np.asarray(wave_A, np.float32)


def normalize(wave_A: np.ndarray, target: float) -> np.ndarray:
  """Scale a sound to a loudness.

  Args:
    wave_A: mono at `RATE`, in [-1, 1].
    target: LUFS.

  Returns:
    The wave, float32. The gain is at most 30 dB and leaves peaks 1 dB below
    full scale; sounds without a loudness are returned as they are.
  """
  found = loudness.integrated(wave_A[None], RATE)
  if not math.isfinite(found):
    return np.asarray(wave_A, np.float32)
  gain = 10 ** (min(target - found, _MAX_GAIN) / 20)
  peak = float(np.abs(wave_A).max())
  return np.asarray(wave_A * min(gain, _PEAK / peak), np.float32)


def _write(
  path: pathlib.Path, frames_THWC: np.ndarray, fps: float, wave_A: np.ndarray
) -> None:
  mp4.write(path, [frames_THWC], wave_A, fps, RATE)


def corrupt(
  kind: str,
  frames_THWC: np.ndarray,
  wave_A: np.ndarray,
  other_A: np.ndarray | None = None,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Make a clip clearly worse in one respect.

  Args:
    kind: of `settings.GOLD`.
    frames_THWC: uint8 RGB.
    wave_A: float32 at `RATE`.
    other_A: sound of another clip, for `AUDIO_SWAP`.
    seed: of noise.

  Returns:
    Frames and wave, one of them new.
  """
  random = np.random.default_rng(seed)
  if kind == settings_lib.VIDEO_NOISE:
    noisy_THWC = np.empty(frames_THWC.shape, np.uint8)
    for index, frame_HWC in enumerate(frames_THWC):
      noise_HWC = random.normal(0, _NOISE, frame_HWC.shape)
      noisy_THWC[index] = np.clip(frame_HWC + noise_HWC, 0, 255)
    return noisy_THWC, wave_A
  if kind == settings_lib.AUDIO_NOISE:
    level = max(float(np.sqrt(np.mean(wave_A**2))), 1e-3)
    noise_A = random.normal(0, level, wave_A.size)
    return frames_THWC, np.clip(wave_A + noise_A, -1, 1).astype(np.float32)
  if kind == settings_lib.AUDIO_SHIFT:
    # Around the end: nothing of the sound is missing. Half the clip is the most
    # that a sound can be shifted so.
    shift = min(round(_SHIFT * RATE), wave_A.size // 2)
    return frames_THWC, np.roll(wave_A, shift)
  assert kind == settings_lib.AUDIO_SWAP and other_A is not None
  return frames_THWC, np.resize(other_A, wave_A.shape)
