"""What is given of a clip: files, masks over latents in time, latents.

One mask a modality says which latents are given; the others are generated, see
`denoise.Given`. A picture of the first frame gives the first video latent, a
video all of them, a sound file all audio latents, intervals some of both. A
reference voice is given besides: its latents are appended to those of the
sound, see `models.reference`, and are no part of the clip.

How given latents are shown to the model is a property of the weights. `CLEAN`
shows them at time 0, which the model must have been trained with. `RENOISE`
noises them to the level of each step, so that all latents have the one time
that the released weights saw in training; only the video's first latent is
clean, which these weights know from image-to-video. A reference is never
noised: `CLEAN` shows it at time 0, `RENOISE` at the time of the others, as the
weights of DreamID-Omni know it.
"""

import dataclasses
import math
import numbers
import os
import re
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.modality import AV
from ovi_jax.sampling import denoise

MODES = CLEAN, RENOISE = "clean", "renoise"
# A file may lack as many seconds of a clip's length: 5.00 s of video are 120
# of 121 frames.
TOLERANCE = 0.1
MIN_FRAMES = 1 + geometry.VIDEO_STRIDES[0]  # of a clip of another length
MIN_SECONDS = (MIN_FRAMES - 1) / geometry.FPS  # that are asked for
FILES = ("last_image", "video", "audio", "extend", "voice")
TRIMMED = FILES[1:]  # files of which a part may be used
# Latents of a reference voice: those of 1, 2 or 3 seconds, since each length
# compiles a program of its own.
VOICE_LATENTS = (31, 62, 93)
MAX_INTERVALS = 100
# Longest file that is extended: its sound is held in memory.
MAX_EXTENDED_SECONDS = 3600.0
_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
# A part of a file, as W3C's Media Fragments name it.
_PART = "#t="
_FRAGMENT = re.compile(
  rf"(.*){_PART}({_NUMBER})?(?:,({_NUMBER})?)?", re.ASCII | re.DOTALL
)
_INTERVAL = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*", re.ASCII)
_EPSILON = 1e-6  # seconds
_LIMIT = 10**6  # seconds

Interval = tuple[float, float]
ANY: Interval = (0.0, math.inf)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
  """Files that are given for a clip, besides the picture of its first frame.

  Attributes:
    last_image: picture of the last frame.
    video: file whose picture is given.
    audio: file whose sound is given.
    extend: file that is continued: its end is given.
    voice: file with the voice that speaks, 1 to 3 s of it.
    keep: intervals in seconds in which `video` and its sound, or `audio`, are
      given; empty for all of the picture of `video` and all of `audio`.
    keep_audio_until: seconds up to which the sound of `video` is given, too.
    spans: names of `TRIMMED` and the part of the file that is used; all times
      of what is given count from its start.
  """

  last_image: storage.AnyPath | None = None
  video: storage.AnyPath | None = None
  audio: storage.AnyPath | None = None
  extend: storage.AnyPath | None = None
  voice: storage.AnyPath | None = None
  keep: tuple[Interval, ...] = ()
  keep_audio_until: float | None = None
  spans: tuple[tuple[str, Interval], ...] = ()

  def span(self, name: str) -> Interval:
    """The part of a file that is used, in its seconds."""
    return dict(self.spans).get(name, ANY)

  @property
  def files(self) -> dict[str, storage.AnyPath]:
    """The files that are given, by name."""
    found = {name: getattr(self, name) for name in FILES}
    return {name: path for name, path in found.items() if path is not None}

  @property
  def media(self) -> tuple[str, ...]:
    """Names of the files of which the clip has a part: not of the voice."""
    return tuple(name for name in self.files if name != "voice")

  @property
  def uses_video_sound(self) -> bool:
    """Whether sound of `video`, or `extend`, is given."""
    until = self.keep_audio_until is not None
    return self.extend is not None or (
      self.video is not None
      and (until or bool(self.keep and self.audio is None))
    )

  def check(self, image: bool) -> None:
    """Check which files are combined.

    Args:
      image: whether a picture of the first frame is given.

    Raises:
      ValueError: they cannot be combined.
    """
    problems = []
    others = [*(["image"] if image else []), *self.media]
    others += ["keep"] if self.keep else []
    if self.extend is not None and len(others) > 1:
      others.remove("extend")
      problems.append(
        f"extend and {others[0]} cannot be combined: the end of the extended"
        " file is what is given; leave one out"
      )
    for name, there in (
      ("image", image),
      ("last_image", self.last_image is not None),
    ):
      if there and self.video is not None:
        problems.append(
          f"{name} and video cannot be combined: the frames of the video are"
          " given; leave one out"
        )
    if self.keep and self.video is None and self.audio is None:
      problems.append("keep names intervals of a given video or audio: add one")
    if self.keep_audio_until is not None:
      if self.video is None:
        problems.append("keep_audio_until needs video")
      elif self.audio is not None:
        problems.append(
          "keep_audio_until and audio cannot be combined: they give sound from"
          " two files"
        )
      elif self.keep:
        problems.append(
          "keep_audio_until and keep cannot be combined: keep gives sound in"
          " its intervals"
        )
      if not 0 < self.keep_audio_until < _LIMIT:  # also of NaN
        problems.append(
          "keep_audio_until must be a positive number of seconds, got"
          f" {self.keep_audio_until}"
        )
    if self.video is not None and self.audio is not None and not self.keep:
      problems.append(
        "video and audio give all of a clip, nothing is left to generate; leave"
        " one out, or name intervals with keep"
      )
    if self.voice is not None and self.audio is not None and not self.keep:
      problems.append(
        "voice and audio cannot be combined: all sound is given, none is"
        " generated; leave one out, or name intervals with keep"
      )
    if problems:
      raise ValueError("; ".join(problems))

  def metadata(
    self, digest: Callable[[storage.AnyPath], str]
  ) -> dict[str, Any]:
    """What is given, for the JSON beside a clip; empty if nothing is."""
    found: dict[str, Any] = {
      name: {"path": str(path), "sha256": digest(path)}
      for name, path in self.files.items()
    }
    for name, (start, end) in self.spans:
      found[name]["seconds"] = [start, end if end < _LIMIT else None]
    if self.keep:
      found["keep"] = [list(interval) for interval in self.keep]
    if self.keep_audio_until is not None:
      found["keep_audio_until"] = self.keep_audio_until
    return found


def split_span(
  path: str | os.PathLike[str],
) -> tuple[str | os.PathLike[str], Interval]:
  """A file and the part of it that is used, from FILE#t=START,END.

  Seconds, as in W3C's Media Fragments; START or END may be left out.

  Raises:
    ValueError: the part is empty.
  """
  match = _FRAGMENT.fullmatch(os.fspath(path))
  if match is None:
    return path, ANY
  start, end = float(match[2] or 0), float(match[3] or math.inf)
  if start >= end or match[2] is match[3] is None:
    raise ValueError(_expected_part(os.fspath(path)[len(match[1]) :]))
  return match[1], (start, end)


def unread_part(path: str | os.PathLike[str]) -> str:
  """What is wrong with the part that the name of a missing file may end in.

  Args:
    path: that `split_span` returned.

  Returns:
    The problem; empty if the name has no such end.
  """
  _, mark, part = os.fspath(path).rpartition(_PART)
  return _expected_part(mark + part) if mark else ""


def _expected_part(found: str) -> str:
  return (
    "expected a part FILE#t=START,END in seconds such as #t=1.5,4, START before"
    f" END, got {untrusted.printable(found, 40)!r}"
  )


def with_span(path: str | os.PathLike[str], span: Sequence[float]) -> str:
  """A file and the part of it that is used, as `split_span` reads it."""
  start, end = (f"{x:.6f}".rstrip("0").rstrip(".") for x in span)
  return f"{os.fspath(path)}#t={start},{end}"


def intervals(value: Any, name: str = "keep") -> tuple[Interval, ...]:
  """Intervals from a text, see `parse_intervals`, or pairs of seconds.

  Args:
    value: the text, or pairs.
    name: of the field, for errors.

  Raises:
    ValueError: it is something else.
  """
  if isinstance(value, str):
    return parse_intervals(value, name)
  if not isinstance(value, (Sequence, np.ndarray)):
    value = [value]
  if len(value) > MAX_INTERVALS:
    raise ValueError(f"{name}: at most {MAX_INTERVALS} intervals, got more")
  found = []
  for pair in value:
    is_pair = isinstance(pair, (Sequence, np.ndarray)) and len(pair) == 2
    # Also of NaN.
    if not (
      is_pair and all(map(_is_number, pair)) and 0 <= pair[0] < pair[1] < _LIMIT
    ):
      raise ValueError(
        f"{name}: expected a text such as '0-2,4-5', or pairs of seconds such"
        f" as [(0, 2), (4, 5)], got {untrusted.printable(repr(pair), 40)} in it"
      )
    found.append((float(pair[0]), float(pair[1])))
  return tuple(found)


def seconds(name: str, value: Any) -> float:
  """A number of seconds.

  Raises:
    ValueError: it is something else; a text is not read.
  """
  if not _is_number(value) or value >= _LIMIT:
    raise ValueError(
      f"{name} must be a number of seconds below {_LIMIT}, got"
      f" {untrusted.printable(repr(value), 40)}"
    )
  return float(value)


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def parse_intervals(text: str, name: str = "keep") -> tuple[Interval, ...]:
  """Intervals such as "0-2,4.5-5", in seconds.

  Args:
    text: the intervals.
    name: of the field, for errors.

  Raises:
    ValueError: it is something else.
  """
  parts = text.split(",")
  found = []
  for part in parts[: MAX_INTERVALS + 1]:
    match = _INTERVAL.fullmatch(part)
    if match is None or float(match[1]) >= float(match[2]):
      raise ValueError(
        f"{name}: expected intervals of seconds such as 0-2,4-5, got"
        f" {untrusted.printable(part, 40)!r}"
      )
    found.append((float(match[1]), float(match[2])))
  if len(parts) > MAX_INTERVALS:
    raise ValueError(f"{name}: at most {MAX_INTERVALS} intervals, got more")
  return tuple(found)


def parse_seconds(name: str, text: str) -> float | None:
  """A number of seconds in a cell; `None` of an empty one.

  Spreadsheets of many countries write 2.5 as `2,5`.

  Raises:
    ValueError: it is no number.
  """
  if not text.strip():
    return None
  number = re.sub(r"^(\d+),(\d{1,2})$", r"\1.\2", text.strip())
  if not re.fullmatch(_NUMBER, number, re.ASCII):
    raise ValueError(
      f"{name}: expected a number of seconds, got"
      f" {untrusted.printable(text, 40)!r}"
    )
  return float(number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voice:
  """The part of a file that is the reference voice.

  Attributes:
    start: seconds of the file at which it begins.
    latents: of `VOICE_LATENTS`.
  """

  start: float
  latents: int

  @property
  def seconds(self) -> float:
    """Length of the sound that is encoded."""
    return self.latents / geometry.AUDIO_LATENT_RATE


def voice(start: float, end: float) -> Voice:
  """What is used of a sound track between two times.

  Raises:
    ValueError: it is too short.
  """
  # A latent less than 1.00 s: a track that says 0.99 s is long enough.
  latents = round((end - start) * geometry.AUDIO_LATENT_RATE)
  fitting = [count for count in VOICE_LATENTS if count <= latents]
  if not fitting:
    raise ValueError(
      f"its sound lasts {max(0.0, end - start):.2f} s, a reference voice 1 to"
      " 3 s"
    )
  return Voice(start=start, latents=fitting[-1])


def latent_frames(seconds: float, longest: int) -> int:
  """Latent frames of a clip that is made from media of some length.

  Args:
    seconds: of the media.
    longest: latent frames of the longest clip.

  Returns:
    The most latent frames that the media fill, at most `longest`.

  Raises:
    ValueError: the media are too short.
  """
  stride = geometry.VIDEO_STRIDES[0]
  wanted = 1 + stride * (longest - 1)
  if seconds >= wanted / geometry.FPS - TOLERANCE:
    return longest
  count = math.floor(seconds * geometry.FPS + 1e-3)
  if count < MIN_FRAMES:
    raise ValueError(
      f"the file lasts {seconds:.2f} s; the shortest clip has"
      f" {MIN_FRAMES / geometry.FPS:.2f} s"
    )
  return geometry.latent_frames(count - (count - 1) % stride)


def nearest_latent_frames(seconds: float) -> int:
  """Latent frames of the clip of 1 + 4·k frames that is nearest to a length."""
  return 1 + max(1, round(seconds * geometry.FPS / geometry.VIDEO_STRIDES[0]))


def video_spans(count: int) -> np.ndarray:
  """[T, 2]: where the frames of each video latent begin and end, in seconds."""
  stride = geometry.VIDEO_STRIDES[0]
  ends = 1 + stride * np.arange(count)
  return np.stack([np.maximum(ends - stride, 0), ends], 1) / geometry.FPS


def audio_spans(count: int) -> np.ndarray:
  """[T, 2]: where each audio latent begins and ends, in seconds."""
  places = np.arange(count)
  return np.stack([places, places + 1], 1) / geometry.AUDIO_LATENT_RATE


def _within(spans: np.ndarray, intervals: Sequence[Interval]) -> np.ndarray:
  """Whether a latent lies within an interval, all of it."""
  kept = np.zeros(len(spans), bool)
  for start, end in intervals:
    begins, ends = (
      spans[:, 0] >= start - _EPSILON,
      spans[:, 1] <= end + _EPSILON,
    )
    kept |= begins & ends
  return kept


def masks(
  conditions: Conditions,
  image: bool,
  sound: Interval,
  clip: geometry.Clip,
) -> AV[np.ndarray]:
  """The latents in time that are given.

  Args:
    conditions: files and intervals.
    image: whether the first frame is given.
    sound: where the given file has sound, see `given_media.Found`.
    clip: sizes of the clip.

  Returns:
    given_T, bool, of each modality; `None` where nothing is given.
  """
  video_T = np.zeros(clip.latent_frames, bool)
  audio_T = np.zeros(clip.audio_latents, bool)
  sound_spans = audio_spans(clip.audio_latents)
  video_T[0] = image
  video_T[-1] |= conditions.last_image is not None
  all_of = ((0.0, math.inf),)
  if conditions.video is not None:
    spans = video_spans(clip.latent_frames)
    video_T |= _within(spans, conditions.keep or all_of)
  if conditions.audio is not None:
    audio_T |= _within(sound_spans, conditions.keep or all_of)
  elif conditions.uses_video_sound:
    until = (0.0, conditions.keep_audio_until or 0.0)
    audio_T |= _within(sound_spans, conditions.keep or (until,))
  audio_T &= _within(sound_spans, [_heard(sound, sound_spans[-1, 1])])
  pair: AV[Any] = AV(video_T, audio_T)
  return AV[Any](*(mask_T if mask_T.any() else None for mask_T in pair))


def _heard(sound: Interval, end: float) -> Interval:
  """Where a file has sound; shorter parts without it are given as silence."""
  start = sound[0] if sound[0] > TOLERANCE else 0.0
  return start, sound[1] if sound[1] < end - TOLERANCE else math.inf


def check_masks(
  conditions: Conditions,
  given: AV[np.ndarray],
  sound: Interval,
  clip: geometry.Clip,
  towers: int = 2,
) -> None:
  """Check that an interval gives latents, and that some are left.

  Args:
    conditions: files and intervals.
    given: see `masks`.
    sound: where the given file has sound, see `given_media.Found`.
    clip: sizes of the clip.

  Raises:
    ValueError: nothing of a clip is left to generate, or an interval holds no
      latent of a modality that it gives.
  """
  end = clip.frames / geometry.FPS
  late = [a for a, _ in conditions.keep if a >= end]
  if late:
    raise ValueError(
      f"keep: an interval begins at {late[0]:g} s, the clip ends at {end:.2f} s"
    )
  sound_spans = audio_spans(clip.audio_latents)
  spans: AV[Any] = AV(
    video_spans(clip.latent_frames) if conditions.video is not None else None,
    sound_spans if conditions.audio is not None or sound[1] else None,
  )
  for interval in conditions.keep:
    for name, spans_T in spans.present().items():
      if not _within(spans_T, [interval]).any():
        # Wherever an interval of two latents begins, it holds one.
        enough = 2 * (spans_T[-1, 1] - spans_T[-1, 0])
        raise ValueError(
          f"keep: {interval[0]:g}-{interval[1]:g} is too short for {name}; use"
          f" at least {math.ceil(100 * enough) / 100:.2f} s, before the end of"
          f" the clip at {spans_T[-1, 1]:.2f} s"
        )
  if conditions.audio is not None and given.audio is None:
    raise ValueError(
      f"audio: its sound begins at {sound[0]:.2f} s, and none of it is given;"
      " cut the silence before it"
    )
  until = conditions.keep_audio_until
  if until is not None and not _within(sound_spans, [(0.0, until)]).any():
    shortest = math.ceil(100 * sound_spans[0, 1]) / 100
    raise ValueError(
      f"keep_audio_until: {until:g} s is too short; use at least"
      f" {shortest:.2f} s, or leave it out"
    )
  if (
    conditions.voice is not None
    and given.audio is not None
    and given.audio.all()
  ):
    raise ValueError(
      "voice: all sound is given, none is generated; leave it out"
    )
  masks_of = given.present().values()
  if len(masks_of) == towers and all(mask_T.all() for mask_T in masks_of):
    raise ValueError(
      "all of the clip is input and nothing is left to generate; keep less"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extended:
  """The end of an extended file, with which a clip begins.

  Attributes:
    frames: of the used part of the file, at 24 a second.
    latent_frames: that are given, at the beginning of the clip.
    offset: seconds of the file at which the part begins.
  """

  frames: int
  latent_frames: int
  offset: float = 0.0

  @property
  def overlap(self) -> int:
    """Frames of the file that are given."""
    return 1 + geometry.VIDEO_STRIDES[0] * (self.latent_frames - 1)

  @property
  def start(self) -> float:
    """Seconds of the used part at which the clip begins."""
    return (self.frames - self.overlap) / geometry.FPS

  @property
  def audio_latents(self) -> int:
    """Audio latents that lie in the overlap."""
    return math.floor(
      self.overlap / geometry.FPS * geometry.AUDIO_LATENT_RATE + _EPSILON
    )

  def masks(self, sound: Interval, clip: geometry.Clip) -> AV[np.ndarray]:
    """given_T of each modality, see `masks`.

    Args:
      sound: where the file has sound.
      clip: sizes of the first window.
    """
    video_T = np.arange(clip.latent_frames) < self.latent_frames
    count = min(self.audio_latents, clip.audio_latents)
    spans = self.start + audio_spans(clip.audio_latents)
    audio_T = np.arange(clip.audio_latents) < count
    end = float(spans[count - 1, 1]) if count else 0.0
    audio_T &= _within(spans, [_heard(sound, end)])
    pair: AV[Any] = AV(video_T, audio_T if audio_T.any() else None)
    return pair


def extended(
  seconds: float, latent_frames: int, offset: float = 0.0
) -> Extended:
  """The end of a file that is given.

  Args:
    seconds: of the picture, of the part that is used.
    latent_frames: that are wanted.
    offset: seconds of the file at which the part begins.

  Raises:
    ValueError: the file has not one frame for each, or is too long.
  """
  if seconds > MAX_EXTENDED_SECONDS:
    raise ValueError(
      f"extend: the file lasts {seconds:.0f} s, at most"
      f" {MAX_EXTENDED_SECONDS:.0f} s can be extended; cut it"
    )
  count = math.floor(seconds * geometry.FPS + 1e-3)
  if count < 1:
    raise ValueError("extend: the file has no frames")
  possible = 1 + (count - 1) // geometry.VIDEO_STRIDES[0]
  return Extended(
    frames=count,
    latent_frames=min(latent_frames, possible),
    offset=offset,
  )


def split(
  given: AV[np.ndarray], mode: str
) -> AV[tuple[np.ndarray | None, np.ndarray | None]]:
  """Masks of clean and of renoised latents, by the mode of `MODES`."""

  def one(name: str, mask_T: np.ndarray) -> tuple[Any, Any]:
    clean_T = mask_T
    if mode == RENOISE:
      is_first = (np.arange(len(mask_T)) == 0) & (name == "video")
      clean_T = mask_T & is_first
    renoised_T = mask_T & ~clean_T
    clean, renoised = (m if m.any() else None for m in (clean_T, renoised_T))
    return clean, renoised

  return given.map(one)


def arrays(
  given: AV[np.ndarray],
  latents: AV[np.ndarray],
  noise: AV[np.ndarray],
  mode: str,
) -> AV[denoise.Given]:
  """What the denoiser is given of one clip, without a batch axis.

  Args:
    given: see `masks`.
    latents: clean latents of the clip where the masks say so.
    noise: the clip's initial noise; renoised latents move from it to their
      clean value along a straight line.
    mode: of `MODES`.
  """

  def one(name: str, parts: tuple[Any, Any]) -> denoise.Given:
    clean_T, renoised_T = parts
    clean: Any = np.asarray(getattr(latents, name), np.float32)
    return denoise.Given(
      clean,
      clean_T,
      renoised_T,
      None if renoised_T is None else getattr(noise, name),
    )

  return split(given, mode).map(one)


def stack(rows: Sequence[AV[Any]]) -> AV[Any]:
  """Conditions of a batch from those of its clips; all give the same parts."""
  return jax.tree.map(lambda *parts: np.stack(parts), *rows)
