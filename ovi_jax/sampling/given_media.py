"""Given media: what their headers say, and their clean latents.

Files are checked before weights are loaded and decoded once these are there;
pictures are fitted to the size of a clip, sound is mono at 16 kHz.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import container as containers
from ovi_jax.media import decode
from ovi_jax.media import fitting
from ovi_jax.media import images
from ovi_jax.media import probe
from ovi_jax.pretrained import encoders
from ovi_jax.sampling import conditions as conditions_lib

_MIN_ENCODED = 16  # audio latents encoded at once
_UNNOTED = 0.2  # seconds of a voice that are left out without a note
_SILENT = 1e-3  # peak of a sound without a voice, 60 dB below a full sine
_STATIC_FRAMES = 1 + geometry.VIDEO_STRIDES[0]  # encoded of a last image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What the headers of given media say.

  Attributes:
    size: rows and columns of the video's upright frames; `None` without one.
    seconds: length of the shortest used part of the given files; `None` without
      media.
    sound: where the sound track of the file whose sound is given begins and
      ends, in seconds of the part; ends at 0 without one, and is `ANY` without
      such a file.
    voice: the part of the reference voice; `None` without one.
    notes: to show the user.
  """

  size: tuple[int, int] | None = None
  seconds: float | None = None
  sound: conditions_lib.Interval = conditions_lib.ANY
  voice: conditions_lib.Voice | None = None
  notes: tuple[str, ...] = ()


def inspect(conditions: conditions_lib.Conditions) -> Found:
  """Read the headers of given media; one frame and the sound are decoded.

  Raises:
    ValueError: a file is damaged, or has not what is wanted of it; names it.
  """
  size, lengths, sound = None, [], conditions_lib.ANY
  notes: list[str] = []
  name = "video" if conditions.extend is None else "extend"
  file = conditions.files.get(name)
  if file is not None:
    with _opened(name, file) as path:
      containers.check_whole(path)
      facts = probe.read(path)
      if not facts.has_video:
        raise containers.DamagedError("it has no picture")
      if facts.unsupported:
        raise containers.DamagedError(
          f"unsupported colour format ({facts.unsupported}); convert it:"
          " ffmpeg -i IN -pix_fmt yuv420p OUT.mp4"
        )
      geometry.check_aspect(facts.height, facts.width)
      size = facts.height, facts.width
      span = conditions.span(name)
      lengths.append(_used(probe.seconds(path, "video"), span))
      if conditions.uses_video_sound:
        track = probe.span(path, "audio") if facts.has_audio else (0.0, 0.0)
        sound = _track(track, span)
        if sound[1]:
          _check_sound(path, span)
    if not sound[1]:
      if conditions.keep_audio_until is not None:
        raise ValueError(
          "keep_audio_until: the video has no sound track; leave it out"
        )
      notes.append(f"{name}: it has no sound track, all sound is generated")
    if facts.fps and abs(facts.fps - geometry.FPS) > 0.01:
      notes.append(
        f"{name}: {facts.fps:g} frames a second are resampled to {geometry.FPS}"
      )
    if facts.hdr:
      notes.append(f"{name}: its HDR colours are converted to SDR")
  if conditions.audio is not None:
    with _opened("audio", conditions.audio) as path:
      containers.check_whole(path)
      if not probe.read(path, video=False).has_audio:
        raise containers.DamagedError("it has no sound track")
      track, span = probe.span(path, "audio"), conditions.span("audio")
      lengths.append(_used(track[1], span))
      sound = _track(track, span)
      _check_sound(path, span)
  voice = None
  if conditions.voice is not None:
    voice, said = _inspect_voice(conditions.voice, conditions.span("voice"))
    notes += said
  return Found(
    size=size,
    seconds=min(lengths, default=None),
    sound=sound,
    voice=voice,
    notes=tuple(notes),
  )


def _used(seconds: float, span: conditions_lib.Interval) -> float:
  """Length of the used part of a file."""
  if span[0] >= seconds:
    raise ValueError(
      f"the part begins at {span[0]:g} s, the file lasts {seconds:.2f} s"
    )
  return min(seconds, span[1]) - span[0]


def _track(
  track: conditions_lib.Interval, span: conditions_lib.Interval
) -> conditions_lib.Interval:
  """Where a sound track begins and ends in the used part of its file."""
  begin, end = track[0] - span[0], min(track[1], span[1]) - span[0]
  return (max(0.0, begin), end) if end > 0 else (0.0, 0.0)


def _check_sound(path: Any, span: conditions_lib.Interval) -> None:
  """DamagedError for sound that cannot be decoded, such as NaN."""
  for time, _ in decode.sweep_sound(path):
    if time >= span[1]:
      break


def _inspect_voice(
  file: storage.AnyPath, span: conditions_lib.Interval
) -> tuple[conditions_lib.Voice, list[str]]:
  """The part of a file that is the reference voice, and notes."""
  with _opened("voice", file) as path:
    containers.check_whole(path)
    if not probe.read(path, video=False).has_audio:
      raise containers.DamagedError("it has no sound track")
    begin, end = probe.span(path, "audio")
    _used(end, span)
    begin, end = max(begin, span[0]), min(end, span[1])
    voice = conditions_lib.voice(begin, end)
    wave_A = decode.audio(path, voice.start, voice.seconds)
    if np.abs(wave_A).max(initial=0.0) < _SILENT:
      raise containers.DamagedError(
        f"the first {voice.seconds:.2f} s of its sound are silent; cut it to"
        " where the voice is heard"
      )
  notes = []
  if end - begin > voice.seconds + _UNNOTED:
    notes.append(
      f"voice: the first {voice.seconds:.2f} of {end - begin:.2f} s are used"
    )
  return voice, notes


@contextlib.contextmanager
def _opened(name: str, path: storage.AnyPath) -> Iterator[Any]:
  """A local path of a given file; errors name it."""
  try:
    with storage.local_copy(path) as local:
      yield local
  except (OSError, ValueError) as error:
    said = error.strerror if isinstance(error, OSError) else str(error)
    raise ValueError(
      f"{name} {untrusted.printable(str(path), 1000)}: {said or error}"
    ) from error


def encode_video(
  image: storage.AnyPath | None,
  conditions: conditions_lib.Conditions,
  clip: geometry.Clip,
  area: int,
  encoder: encoders.VideoEncoder,
) -> np.ndarray:
  """Clean video latents where pictures are given, zeros elsewhere.

  Args:
    image: picture of the first frame.
    conditions: files.
    clip: sizes of the clip.
    area: pixels a frame of the variant.
    encoder: of the video VAE.

  Returns:
    latents_THWC, float32, on the host.

  Raises:
    ValueError: a file is damaged; names it.
  """
  if conditions.video is not None:
    span = conditions.span("video")
    decoded = frames_of("video", conditions.video, span, clip.frames, clip)
    frames_THWC = _array(decoded, clip.frames, clip)
    return np.asarray(encoder.encode(frames_THWC[None])[0])
  given = {}
  if image is not None:
    picture_HWC, _ = images.read_image(image)
    frame_HWC = images.first_frame(picture_HWC, area)
    given[0] = np.asarray(encoder.encode(frame_HWC[None, None])[0])[0]
  if conditions.last_image is not None:
    picture_HWC, _ = images.read_image(conditions.last_image)
    frame_HWC = images.fit(picture_HWC, *clip.pixels)
    # A later latent is of four frames; these stand still.
    still_THWC = np.repeat(frame_HWC[None], _STATIC_FRAMES, 0)
    last_THWC = np.asarray(encoder.encode(still_THWC[None])[0])
    given[clip.latent_frames - 1] = last_THWC[-1]
  latent_HWC = next(iter(given.values()))
  shape = clip.latent_frames, *latent_HWC.shape
  latents_THWC = np.zeros(shape, np.float32)
  for place, latent_HWC in given.items():
    latents_THWC[place] = latent_HWC
  return latents_THWC


def frames_of(
  name: str,
  path: storage.AnyPath,
  span: conditions_lib.Interval,
  count: int,
  clip: geometry.Clip,
) -> Iterator[np.ndarray]:
  """The frames of a video, cut to a clip's size; the last is repeated.

  Args:
    name: of the file, for errors.
    path: the file.
    span: seconds of the file.
    count: of frames; more than the span has if its last is to be repeated.
    clip: sizes.

  Yields:
    frame_HWC, uint8.

  Raises:
    ValueError: the file is damaged; names it.
  """
  height, width = clip.pixels
  fits: list[fitting.Fit] = []

  def resize(rows: int, columns: int) -> tuple[int, int]:
    fits.append(fitting.crop(rows, columns, height, width))
    return fits[0].resized

  start, end = span
  last_HWC, used = np.empty(0), count
  if math.isfinite(end):
    used = max(1, min(count, math.floor((end - start) * geometry.FPS + 1e-3)))
  with _opened(name, path) as local:
    for whole_HWC in decode.frames(local, start, used, resize):
      last_HWC = fits[0].apply(whole_HWC)
      yield last_HWC
  for _ in range(count - used):
    yield last_HWC


def _array(
  frames: Iterator[np.ndarray], count: int, clip: geometry.Clip
) -> np.ndarray:
  """frames_THWC of frames_HWC."""
  frames_THWC = np.empty((count, *clip.pixels, 3), np.uint8)
  for number, frame_HWC in enumerate(frames):
    frames_THWC[number] = frame_HWC
  return frames_THWC


def encode_extended(
  path: storage.AnyPath,
  end: conditions_lib.Extended,
  clip: geometry.Clip,
  encoder: encoders.VideoEncoder,
) -> np.ndarray:
  """Clean video latents of the end of a file, zeros after them.

  Args:
    path: the file.
    end: of it.
    clip: sizes of the first window.
    encoder: of the video VAE.

  Returns:
    latents_THWC, float32, on the host.

  Raises:
    ValueError: the file is damaged; names it.
  """
  span = end.offset + end.start, math.inf
  decoded = frames_of("extend", path, span, end.overlap, clip)
  frames_THWC = _array(decoded, end.overlap, clip)
  given_THWC = np.asarray(encoder.encode(frames_THWC[None])[0])
  latents_THWC = np.zeros(
    (clip.latent_frames, *given_THWC.shape[1:]), np.float32
  )
  latents_THWC[: len(given_THWC)] = given_THWC
  return latents_THWC


def encode_extended_audio(
  path: storage.AnyPath,
  end: conditions_lib.Extended,
  clip: geometry.Clip,
  encoder: encoders.AudioEncoder,
) -> np.ndarray:
  """Clean audio latents of the end of a file, zeros after them; as above."""
  count = end.audio_latents
  # Too short a wave has no latents; what is before it is left out again.
  latent = geometry.SAMPLES_PER_AUDIO_LATENT / geometry.SAMPLE_RATE
  earlier = max(0, _MIN_ENCODED - count)
  with _opened("extend", path) as local:
    start = end.offset + end.start - earlier * latent
    wave_A = decode.audio(local, start, (earlier + count) * latent)
  given_TC = np.asarray(encoder.encode(wave_A[None])[0])[earlier:]
  latents_TC = np.zeros((clip.audio_latents, given_TC.shape[-1]), np.float32)
  latents_TC[:count] = given_TC
  return latents_TC


def wave_of(path: storage.AnyPath, start: float, seconds: float) -> np.ndarray:
  """The sound of an extended file; silence where it has none.

  Args:
    path: the file.
    start: seconds of the file.
    seconds: that are wanted.

  Raises:
    ValueError: the file is damaged; names it.
  """
  with _opened("extend", path) as local:
    wave_A = decode.audio(local, start, seconds)
  return (
    wave_A
    if wave_A.size
    else np.zeros(round(seconds * geometry.SAMPLE_RATE), np.float32)
  )


def encode_audio(
  conditions: conditions_lib.Conditions,
  clip: geometry.Clip,
  encoder: encoders.AudioEncoder,
) -> np.ndarray:
  """Clean audio latents of the given sound, latents_TC, on the host.

  Raises:
    ValueError: a file is damaged; names it.
  """
  name = "video" if conditions.audio is None else "audio"
  path, (start, end) = conditions.files[name], conditions.span(name)
  with _opened(name, path) as local:
    seconds = clip.samples / geometry.SAMPLE_RATE
    wave_A = decode.audio(local, start, seconds)
  if math.isfinite(end):
    wave_A[round((end - start) * geometry.SAMPLE_RATE) :] = 0
  return np.asarray(encoder.encode(wave_A[None])[0])


def encode_voice(
  path: storage.AnyPath,
  voice: conditions_lib.Voice,
  encoder: encoders.AudioEncoder,
) -> np.ndarray:
  """Clean audio latents of a reference voice, latents_RC, on the host.

  Raises:
    ValueError: the file is damaged; names it.
  """
  with _opened("voice", path) as local:
    wave_A = decode.audio(local, voice.start, voice.seconds)
  return np.asarray(encoder.encode(wave_A[None])[0])
