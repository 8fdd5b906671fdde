"""Folders of clips, and the sources that features are computed of.

A clip is a video or sound file; its name is the file's name without suffix and
pairs it with the clips of other systems. A `Source` says what is seen and what
is heard of it, so that known distortions (the sound of another clip, a delay,
noise) need no files. `Media` decodes a source on demand.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epy

from ovi_jax import prompt as prompts
from ovi_jax import untrusted
from ovi_jax.evaluation import lists
from ovi_jax.media import container
from ovi_jax.media import mp4
from ovi_jax.media import probe

# SciPy takes a second to import; few programs reach what needs it.
with epy.lazy_imports():
  from scipy import signal

PICTURE, SOUND, TEXT = "picture", "sound", "text"
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aac")
_MAX_HEADER_SECONDS = mp4.MAX_SECONDS + 1
_MIN_RATE = 1000  # samples a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """A file and what it should show and sound.

  Attributes:
    name: of the file, without suffix.
    path: of the file.
    has_picture: whether it has video.
    has_sound: whether it has a sound track that is not empty.
    text: its prompt or caption; "" if unknown.
    sound_start: seconds from its first frame to its first sample.
    spoken: whether a text without tags is what is said.
  """

  name: str
  path: pathlib.Path
  has_picture: bool
  has_sound: bool
  text: str = ""
  sound_start: float = 0.0
  spoken: bool = True

  @property
  def speech(self) -> str:
    """What is said: the text between speech tags.

    All of a text without any tags, if such texts are `spoken`.
    """
    parts = prompts.parse(self.text)
    spoken = [part.text for part in parts if part.tag == prompts.SPEECH]
    if spoken or any(part.tag for part in parts):
      return " ".join(text.strip() for text in spoken)
    return self.text.strip() if self.spoken else ""


def read_folder(
  folder: pathlib.Path, table: lists.PromptTable | None = None
) -> list[Clip]:
  """List the clips of a folder, sorted by name.

  Args:
    folder: of video and sound files; other files are ignored.
    table: of prompts. A clip has the prompt of its name; a clip of sample.py,
      with a JSON file beside it, has the name of its prompt and seed. Without
      either, names are those of the files. Texts without tags are speech if
      they are of a table in which no text has tags.

  Raises:
    ValueError: there is no such folder, it has no clips, two have one name, or
      some cannot be read; all problems are named.
  """
  if not folder.is_dir():
    raise ValueError(f"{folder}: there is no such folder of clips")
  suffixes = VIDEO_SUFFIXES + SOUND_SUFFIXES
  paths = sorted(
    path
    for path in folder.iterdir()
    if path.suffix.lower() in suffixes and not path.name.startswith(".")
  )
  if not paths:
    raise ValueError(
      f"{folder}: expected clips ({', '.join(suffixes)}), found none"
    )
  clips: dict[str, Clip] = {}
  problems = []
  for path in paths:
    try:
      clip = read_clip(path, table or lists.PromptTable())
      if clip.name in clips:
        raise ValueError(
          f"two clips have the name {untrusted.printable(clip.name)};"
          " rename one, or keep them in two folders"
        )
      clips[clip.name] = clip
    except (ValueError, OSError) as error:
      problems.append(f"{untrusted.printable(path.name)}: {error}")
  if problems:
    raise ValueError(f"{folder}: " + "; ".join(untrusted.shortened(problems)))
  return sorted(clips.values(), key=lambda clip: clip.name)


def read_clip(path: pathlib.Path, table: lists.PromptTable) -> Clip:
  """A clip from its file; see `read_folder`.

  Raises:
    ValueError: it is no clip, or too long, or its sound cannot be measured.
    OSError: it cannot be read.
  """
  facts = probe.read(path)
  # Sounds without a length in their header are read to their end.
  if facts.duration > _MAX_HEADER_SECONDS:
    raise ValueError(
      f"expected at most {mp4.MAX_SECONDS:g} s, found {facts.duration:g} s;"
      " cut it"
    )
  if facts.has_video:
    mp4.check(path)
  sound = mp4.sound_header(path)
  if sound is not None:
    if sound.rate < _MIN_RATE:
      raise ValueError(
        f"expected sound of at least {_MIN_RATE} samples a second, found"
        f" {sound.rate}"
      )
    if not abs(sound.start) <= mp4.MAX_SECONDS:
      raise ValueError(
        f"expected sound that begins with the picture, found {sound.start:g} s"
        " between them"
      )
  name, text = path.stem, table.texts.get(path.stem)
  spoken = text is not None and not table.tagged
  if text is None:
    text, seed = _recipe(path)
    name = (table.name_of(text, seed) if text else None) or name
  return Clip(
    name=name,
    path=path,
    has_picture=facts.has_video,
    has_sound=sound is not None,
    text=text,
    sound_start=0.0 if sound is None else sound.start,
    spoken=spoken,
  )


def _recipe(path: pathlib.Path) -> tuple[str, object]:
  """Prompt and seed in the JSON file beside a clip; "" and None without one."""
  recipe_path = path.with_suffix(".json")
  if not recipe_path.exists():
    return "", None
  recipe = untrusted.read_json(recipe_path)
  if not isinstance(recipe, dict):
    return "", None
  text = recipe.get("prompt")
  return text if isinstance(text, str) else "", recipe.get("seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """What is seen and heard.

  Attributes:
    clip: whose pictures are seen.
    sound_of: whose sound is heard; the clip's own if None.
    delay: seconds by which the sound is late; it begins with silence.
    noise: random pixels, and noise as loud as the sound, in place of both.
  """

  clip: Clip
  sound_of: Clip | None = None
  delay: float = 0.0
  noise: bool = False

  @property
  def name(self) -> str:
    return self.clip.name

  def has(self, need: str) -> bool:
    """Whether there are pictures, sound or a text."""
    if need == PICTURE:
      return self.clip.has_picture
    if need == SOUND:
      return (self.sound_of or self.clip).has_sound and self.clip.has_sound
    return bool(self.clip.text)

  def key(self, needs: Sequence[str]) -> str:
    """Identifies the content of what is needed, in hexadecimal figures."""
    parts: dict[str, object] = {}
    if PICTURE in needs:
      parts[PICTURE] = [digest(self.clip.path), self.noise]
    if SOUND in needs:
      parts[SOUND] = [
        digest(self.clip.path),
        digest((self.sound_of or self.clip).path),
        self.delay,
        self.noise,
      ]
    if TEXT in needs:
      parts[TEXT] = [self.clip.text, self.clip.speech]
    value = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(value.encode()).hexdigest()[:32]


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, computed once while its size and time are the same."""
  found = path.stat()
  return _digest(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: pathlib.Path, size: int, modified: int) -> str:
  del size, modified
  return container.digest(path)


def _random(clip: Clip, array: np.ndarray) -> np.random.Generator:
  """Noise that differs between clips, and not between runs."""
  return np.random.default_rng([*array.shape, int(digest(clip.path), 16)])


def _read_sound(clip: Clip) -> tuple[np.ndarray, int]:
  """Sound from the first frame on [channels, samples], and its rate.

  Silence is added, or sound cut off, where it begins at another time.
  """
  wave_CA, rate = mp4.read_sound(clip.path)
  if wave_CA is None or rate is None:
    raise ValueError(f"{clip.path}: expected sound, none is decoded")
  start = round(clip.sound_start * rate)
  wave_CA = np.pad(wave_CA[:, max(0, -start) :], ((0, 0), (max(0, start), 0)))
  if not wave_CA.shape[1]:
    raise ValueError(f"{clip.path}: its sound ends before its picture begins")
  return wave_CA, rate


class Media:
  """Decoded media of a source; kept until the object is dropped."""

  def __init__(self, source: Source):
    self.source = source

  @functools.cached_property
  def _pictures(self) -> tuple[np.ndarray, float]:
    frames_THWC, fps, _, _ = mp4.read(self.source.clip.path)
    if self.source.noise:
      random = _random(self.source.clip, frames_THWC)
      frames_THWC = random.integers(256, size=frames_THWC.shape, dtype=np.uint8)
    # Of the times of frames: the average rate in headers may be lower.
    times = mp4.header(self.source.clip.path).times
    if len(times) > 1 and times[-1] > times[0]:
      fps = float((len(times) - 1) / (times[-1] - times[0]))
    return frames_THWC, fps

  @property
  def frames_THWC(self) -> np.ndarray:
    """uint8 RGB, all frames."""
    return self._pictures[0]

  @property
  def fps(self) -> float:
    """Mean frame rate, from the first to the last frame."""
    return self._pictures[1]

  @functools.cached_property
  def _sound(self) -> tuple[np.ndarray, int]:
    source = self.source
    wave_CA, rate = _read_sound(source.sound_of or source.clip)
    if source.sound_of is not None:
      # As long as the clip's own sound.
      own_CA, own_rate = _read_sound(source.clip)
      wanted = round(own_CA.shape[1] * rate / own_rate)
      wave_CA = np.pad(
        wave_CA[:, :wanted], ((0, 0), (0, max(0, wanted - wave_CA.shape[1])))
      )
    late = min(round(source.delay * rate), wave_CA.shape[1])
    if late:
      wave_CA = np.pad(wave_CA, ((0, 0), (late, 0)))[:, :-late]
    if source.noise:
      level = math.sqrt(float(np.square(wave_CA, dtype=np.float64).mean()))
      random = _random(source.clip, wave_CA)
      wave_CA = random.normal(0, level or 0.01, wave_CA.shape)
    return np.clip(wave_CA, -1, 1).astype(np.float32), rate

  @property
  def wave_CA(self) -> np.ndarray:
    """float32 in [-1, 1], all channels at the file's own rate."""
    return self._sound[0]

  @property
  def rate(self) -> int:
    return self._sound[1]

  def mono(self, rate: int | None = None) -> np.ndarray:
    """Mean of the channels [samples] at a rate, by polyphase filtering."""
    mono_A = self.wave_CA.mean(axis=0)
    if rate is None or rate == self.rate:
      return mono_A
    common = math.gcd(rate, self.rate)
    resampled = signal.resample_poly(
      mono_A.astype(np.float64), rate // common, self.rate // common
    )
    return np.clip(resampled, -1, 1).astype(np.float32)
