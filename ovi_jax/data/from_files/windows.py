"""One file as clips of the size that training reads.

In: a file. Out: windows of it: an mp4 at 24 fps by time stamps and PCM at
16 kHz, mono, or PCM alone; or why there is none. The same file and settings
give the same bytes on any machine. Memory does not grow with the file.
"""

import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ovi_jax import geometry
from ovi_jax.data import clips
from ovi_jax.data.from_files import settings as settings_lib
from ovi_jax.media import container as containers
from ovi_jax.media import decode
from ovi_jax.media import fitting
from ovi_jax.media import images
from ovi_jax.media import mp4
from ovi_jax.media import probe

VERSION = 1  # raised when the same file would give other bytes
# Seconds that a clip may lack of a record's length and still count as long
# enough: 5.00 s of video are 120 of 121 frames.
TOLERANCE = 0.1
MAX_PIXELS = 8192 * 8192
MAX_ASPECT = 8.0
MAX_WINDOWS = 10_000  # of one file
THUMBNAIL = (96, 160)  # most rows and columns of a picture on the sheet
_THUMBNAILS = 3
_GIF = b"GIF8"


class Unfit(ValueError):
  """A file that is not imported.

  Attributes:
    reason: what was found.
    advice: what to do.
  """

  def __init__(self, reason: str, advice: str):
    super().__init__(f"{reason}; {advice}")
    self.reason, self.advice = reason, advice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
  """One clip of a file.

  Attributes:
    start: seconds from the file's beginning.
    frames: of the video; 0 without one.
    height: pixels.
    width: pixels.
    seconds: length.
    video: mp4, or None.
    audio: PCM, or None.
    picture: PNG for the contact sheet.
  """

  start: float
  frames: int = 0
  height: int = 0
  width: int = 0
  seconds: float
  video: bytes | None = None
  audio: bytes | None = None
  picture: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """The windows of a file.

  Attributes:
    facts: of the file.
    spans: where windows begin and how long they are, seconds.
  """

  facts: probe.Facts
  spans: tuple[tuple[float, float], ...]


def plan(path: pathlib.Path, settings: settings_lib.Settings) -> Plan:
  """Examine a file; nothing but its first frame is decoded.

  Raises:
    Unfit: nothing can be made of it.
    OSError: it cannot be read.
  """
  try:
    facts = probe.read(path, video=not settings.audio_only)
    kind = "audio" if settings.audio_only else "video"
    length = probe.seconds(path, kind)
  except containers.DamagedError as error:
    raise _damaged(path, error) from error
  if settings.audio_only:
    _check_audio(facts)
  else:
    _check_video(facts, settings)
  return Plan(facts=facts, spans=tuple(_spans(length, settings)))


def cut(
  path: pathlib.Path,
  span: tuple[float, float],
  settings: settings_lib.Settings,
) -> Window:
  """Decode and encode one window of a file.

  Raises:
    Unfit: it is damaged there.
    OSError: it cannot be read, or the disk is full.
  """
  try:
    if settings.audio_only:
      return _audio(path, *span)
    return _video(path, *span, settings)
  except containers.DamagedError as error:
    raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: containers.DamagedError) -> Unfit:
  """The problem of a file that cannot be read."""
  with open(path, "rb") as file:
    head = file.read(len(_GIF))
  if head == _GIF:
    return Unfit(
      "a GIF", "convert it: ffmpeg -i IN.gif -pix_fmt yuv420p OUT.mp4"
    )
  if not head:
    return Unfit("an empty file", "copy it again")
  return Unfit(
    f"damaged, or no media file ({_brief(error)})",
    "copy it again, or convert it to mp4 with ffmpeg",
  )


def _brief(error: Exception) -> str:
  """An error's message without the list of all formats."""
  text = str(error)
  if "one of the formats" in text:
    text = text.rpartition(": ")[2]
  return text


def _check_video(facts: probe.Facts, settings: settings_lib.Settings) -> None:
  """Unfit if the video cannot be imported."""
  if not facts.has_video:
    raise Unfit("no video", "import audio only with --audio_only")
  if settings.require_audio and not facts.has_audio:
    raise Unfit("no audio track", "add one, or leave out --require_audio")
  if facts.unsupported:
    raise Unfit(
      f"unsupported colour format ({facts.unsupported})",
      "convert it: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4",
    )
  sides = facts.height, facts.width
  size = f"{facts.width}x{facts.height}"
  if sides[0] * sides[1] > MAX_PIXELS:
    raise Unfit(f"{size} is too large", "make it smaller with ffmpeg")
  if max(sides) > MAX_ASPECT * min(sides):
    raise Unfit(f"{size} is too long and narrow", "crop it with ffmpeg")
  scale = _fit(*sides, settings).scale
  if settings.max_upscale and scale > settings.max_upscale:
    raise Unfit(
      f"{size} would be enlarged {scale:.2f} times",
      "use a larger file, a smaller --size, or a larger --max_upscale",
    )


def _check_audio(facts: probe.Facts) -> None:
  """Unfit if there is no audio."""
  if not facts.has_audio:
    raise Unfit("no audio track", "remove it, or import without --audio_only")


def _spans(
  length: float, settings: settings_lib.Settings
) -> list[tuple[float, float]]:
  """Start and length of each window, in seconds."""
  wanted = settings.length
  if length <= 0:
    raise Unfit("no length", "convert it to mp4 with ffmpeg")
  if length < wanted - TOLERANCE:
    if settings.short_clips == "refuse":
      raise Unfit(
        f"{length:.2f} s, a record has {wanted:.2f} s",
        "use --short_clips=keep or pad, or a smaller --frames or --seconds",
      )
    kept = wanted if settings.short_clips == "pad" else length
    return [(0.0, kept)]
  if settings.long_clips == "center":
    start = max(0.0, (length - wanted) / 2)
    # A frame's time: what is shown there does not depend on rounding.
    return [(math.floor(start * geometry.FPS) / geometry.FPS, wanted)]
  count = 1
  if settings.long_clips == "split":
    count = max(1, math.floor((length + TOLERANCE) / wanted))
  if count > MAX_WINDOWS:
    raise Unfit(
      f"{count} windows of one file", f"cut it; {MAX_WINDOWS} are the limit"
    )
  return [(number * wanted, wanted) for number in range(count)]


def _fit(
  rows: int, columns: int, settings: settings_lib.Settings
) -> fitting.Fit:
  """How pictures of the file are resized to frames."""
  height, width = settings.height, settings.width
  if settings.fit == "keep":
    return fitting.keep(rows, columns, height * width)
  how = fitting.crop if settings.fit == "crop" else fitting.pad
  return how(rows, columns, height, width)


def _video(
  path: pathlib.Path,
  start: float,
  wanted: float,
  settings: settings_lib.Settings,
) -> Window:
  """A window of frames with their audio.

  Where the file ends before, its last frame is repeated, in silence.
  """
  count = _frames(wanted)
  seconds = count / geometry.FPS
  fits: list[fitting.Fit] = []

  def resize(rows: int, columns: int) -> tuple[int, int]:
    fits.append(_fit(rows, columns, settings))
    return fits[0].resized

  shown = {round(n) for n in np.linspace(0, count - 1, _THUMBNAILS)}
  pictures: list[np.ndarray] = []

  def chunks() -> Iterator[np.ndarray]:
    decoded = decode.frames(path, start, count, resize)
    for number, whole_HWC in enumerate(decoded):
      frame_HWC = fits[0].apply(whole_HWC)
      if number in shown:
        pictures.append(frame_HWC)
      yield frame_HWC[None]

  video = mp4.to_bytes(chunks(), preset=mp4.FAST)
  audio_A = decode.audio(path, start, seconds)
  return Window(
    start=start,
    frames=count,
    height=fits[0].height,
    width=fits[0].width,
    seconds=seconds,
    video=video,
    audio=clips.pcm(audio_A) if audio_A.size else None,
    picture=_png(_strip(pictures)),
  )


def _frames(seconds: float) -> int:
  """The most frames, 1 + 4·k, that a length has."""
  stride = geometry.VIDEO_STRIDES[0]
  count = max(1, math.floor(seconds * geometry.FPS + 1e-3))
  return count - (count - 1) % stride


def _audio(path: pathlib.Path, start: float, wanted: float) -> Window:
  """A window of audio only; silence where the file ends before it."""
  audio_A = decode.audio(path, start, wanted)
  least = geometry.SAMPLES_PER_AUDIO_LATENT
  if audio_A.size < least:
    raise Unfit(
      f"{audio_A.size} samples at 16 kHz", f"a record has {least} or more"
    )
  rows, columns = THUMBNAIL
  picture = images.waveform_png(
    audio_A, geometry.SAMPLE_RATE, _THUMBNAILS * columns, rows
  )
  return Window(
    start=start,
    seconds=audio_A.size / geometry.SAMPLE_RATE,
    audio=clips.pcm(audio_A),
    picture=_png(picture),
  )


def _strip(frames: list[np.ndarray]) -> Image.Image:
  """Small frames side by side."""
  small = []
  for frame_HWC in frames:
    image = Image.fromarray(np.ascontiguousarray(frame_HWC))
    rows, columns = THUMBNAIL
    image.thumbnail((columns, rows))
    small.append(image)
  strip = Image.new("RGB", (sum(i.width for i in small), small[0].height))
  left = 0
  for image in small:
    strip.paste(image, (left, 0))
    left += image.width
  return strip


def _png(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "PNG")
  return file.getvalue()
