"""Windows of media files, decoded.

In: a file and a window of it. Out: frames at 24 fps by time stamp, upright, in
square pixels and SDR colours; sound at 16 kHz, mono; and passes over whole
files in constant memory.
"""

import functools
import math
import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import av
import numpy as np
from av import error as av_error

from ovi_jax import geometry
from ovi_jax.media import colors
from ovi_jax.media import container as containers

# Of a decoded frame, in pixels: more than the largest clip that is trained on,
# so that margins can be cut away; 121 frames are 0.6 GB, and those that only
# pictures at 25 fps show up to 0.5 GB more (of 120 fps; 0.03 of 25 fps).
LARGEST_AREA = 1280 * 1280

# Containers round time stamps to milliseconds: a frame that is so little late
# counts as shown.
_ROUNDING = 2e-3
FPS_25 = 25  # of the pictures that lips are read from
_EARLIER = 0.5  # seconds of sound decoded before a window: codecs need a run-up
_GAP = 0.25  # seconds without a frame where some are damaged
_MAX_PEAK = 10.0  # of a sample; more is no sound in floating point
_JUMP = 0.02  # seconds the sound's clock may differ before it is put right

Resize = Callable[[int, int], tuple[int, int]]  # of rows and columns


class Glimpse(NamedTuple):
  """A frame of a pass over a whole file.

  Attributes:
    time: seconds from the file's beginning.
    frame_HWC: uint8 RGB, small, not turned.
    broken: something is missing before it, or its size is another.
  """

  time: float
  frame_HWC: np.ndarray
  broken: bool


class Window(NamedTuple):
  """The frames of a window, at two rates.

  Attributes:
    video_THWC: uint8 RGB; at start + k/24 stands the frame shown then.
    pictures_25: [H, W, 3] each, views of `video_THWC` where it has the frame;
      picture n is the frame shown in the middle of its time, at
      start + (n + 1/2)/25, so that a source at 25 fps keeps all of its own.
  """

  video_THWC: np.ndarray
  pictures_25: Sequence[np.ndarray]


def video(
  path: str | os.PathLike[str],
  start: float,
  seconds: float,
  area: int = LARGEST_AREA,
) -> np.ndarray:
  """Decode a window of the first video stream.

  As `window`, at 24 fps alone.

  Args:
    path: the file.
    start: seconds from the file's beginning.
    seconds: of the window; a whole number of frames at 24 fps.
    area: pixels that a frame is limited to.

  Returns:
    video_THWC, uint8 RGB.

  Raises:
    DamagedError: it is no video, or has not one frame for the window.
  """
  times = _times(start, seconds, geometry.FPS, 0)
  return _decoded(path, times, times[:0], area).video_THWC


def window(
  path: str | os.PathLike[str],
  start: float,
  seconds: float,
  area: int = LARGEST_AREA,
) -> Window:
  """Decode a window of the first video stream, once for both rates.

  Args and errors are those of `video`.
  """
  times = _times(start, seconds, geometry.FPS, 0)
  return _decoded(path, times, _times(start, seconds, FPS_25, 0.5), area)


def frames(
  path: str | os.PathLike[str], start: float, count: int, resize: Resize
) -> Iterator[np.ndarray]:
  """Decode a window of the first video stream, a frame at a time.

  Memory does not grow with the window.

  Args:
    path: the file.
    start: seconds from the file's beginning.
    count: frames at 24 fps by time stamp; where the stream ends before, its
      last frame is repeated.
    resize: gives the rows and columns wanted for those of an upright frame;
      called once.

  Yields:
    frame_HWC, uint8 RGB; made smaller by area, larger by bicubic
    interpolation.

  Raises:
    DamagedError: it is no video, has not one frame for the window, or frames
      of more than a quarter of a second in it cannot be decoded.
  """
  times, found = _times(start, count / geometry.FPS, geometry.FPS, 0), False
  for (first, last), frame, size, turn in _shown(path, times, resize, _GAP):
    larger = size[0] * size[1] > frame.height * frame.width
    frame_HWC = turn.apply(colors.to_rgb(frame, *size, bicubic=larger))
    found = True
    for _ in range(first, last):
      yield frame_HWC
  if not found:
    raise _no_frames(times)


def _no_frames(times: np.ndarray) -> containers.DamagedError:
  """The error of a window without a frame."""
  return containers.DamagedError(
    f"expected frames from {times[0] - _ROUNDING:.3f} s on, for"
    f" {len(times) / geometry.FPS:.3f} s; found none"
  )


def _times(start: float, seconds: float, fps: int, within: float) -> np.ndarray:
  """Of pictures that begin in a window; at what part of each is looked."""
  count = max(1, round(seconds * fps))
  return start + (np.arange(count) + within) / fps + _ROUNDING


def _decoded(
  path: str | os.PathLike[str],
  times: np.ndarray,
  times_25: np.ndarray,
  area: int,
) -> Window:
  video_THWC: np.ndarray | None = None
  pictures: list[np.ndarray] = []
  merged = np.sort(np.concatenate([times, times_25]))
  limit = functools.partial(containers.limited_size, area=area)
  for (first, last), frame, size, turn in _shown(path, merged, limit):
    frame_HWC = turn.apply(colors.to_rgb(frame, *size, bicubic=False))
    if video_THWC is None:
      video_THWC = np.empty((len(times), *frame_HWC.shape), np.uint8)
    until = merged[last - 1]
    begin, end = np.searchsorted(times, (merged[first], until + 1e-9))
    video_THWC[begin:end] = frame_HWC
    if end > begin:
      frame_HWC = video_THWC[begin]
    more = np.searchsorted(times_25, until, "right") - len(pictures)
    pictures += [frame_HWC] * int(more)
  if video_THWC is None:
    raise _no_frames(times)
  return Window(video_THWC, pictures)


def _shown(
  path: str | os.PathLike[str],
  times: np.ndarray,
  resize: Resize,
  max_gap: float = math.inf,
) -> Iterator[tuple[tuple[int, int], Any, tuple[int, int], Any]]:
  """Which of the times a frame is shown at, the frame, its size, its turn.

  The size is that before it is turned.
  """
  with containers.opened(path) as container:
    stream = _existing(containers.pictures(container), "video")
    done, held, before = 0, None, 0.0
    size, turn = (0, 0), containers.Orientation()
    for time, frame, broken in _from(path, container, stream, float(times[0])):
      if held is not None:
        until = int(np.searchsorted(times, time))
        if until > done:
          if broken and time - before > max_gap:
            raise containers.DamagedError(
              f"expected frames from {before:.3f} to {time:.3f} s, found none"
              " that can be decoded"
            )
          yield (done, until), held, size, turn
          done = until
        if done == len(times):
          return
      first, held, before = held is None, frame, time
      if first:
        turn = containers.orientation(frame)
        rows, columns = containers.shown_size(stream, frame)
        if turn.transposed:
          across, down = resize(columns, rows)
          size = down, across
        else:
          size = resize(rows, columns)
    if held is not None:
      yield (done, len(times)), held, size, turn


def _from(
  path: str | os.PathLike[str], container: Any, stream: Any, time: float
) -> Iterator[tuple[float, Any, bool]]:
  """The frames from the one shown at `time` on, or a little before.

  With the time of each, and whether something is missing before it.
  """
  if time > 0:
    _seek(container, stream, time)
    late = True
    for at, frame, broken in containers.frames(container, stream):
      if late and at > time:
        break  # The index is wrong: from the beginning, then.
      late = False
      yield at, frame, broken
    if not late:
      return
  with containers.opened(path) as again:
    stream = again.streams[stream.index]
    yield from containers.frames(again, stream)


def _seek(container: Any, stream: Any, time: float) -> None:
  """Go to the last place before `time` from where frames can be decoded."""
  clock = (time + containers.origin(container)) / float(stream.time_base)
  try:
    container.seek(int(clock), stream=stream, backward=True)
  except av_error.FFmpegError:
    return  # It has no index; decoding begins where the file does.


def _existing(stream: Any, kind: str) -> Any:
  """The stream; DamagedError if there is none, or no decoder for it."""
  if stream is None or stream.codec_context is None:
    raise containers.DamagedError(f"expected a stream of {kind}, found none")
  return stream


def sweep(
  path: str | os.PathLike[str], rows: int = 27, columns: int = 48
) -> Iterator[Glimpse]:
  """All frames of a file, at a low size whatever their aspect.

  Memory does not grow with the file.

  Args:
    path: the file.
    rows: of each frame that is given.
    columns: likewise.

  Yields:
    Frames, in order of time.

  Raises:
    DamagedError: it has no video.
  """
  with containers.opened(path) as container:
    stream = _existing(containers.pictures(container), "video")
    size = None
    for time, frame, broken in containers.frames(container, stream):
      small_HWC = colors.to_rgb(frame, rows, columns, bicubic=True)
      other = size is not None and size != (frame.width, frame.height)
      size = frame.width, frame.height
      yield Glimpse(time, small_HWC, broken or other)


def audio(
  path: str | os.PathLike[str], start: float, seconds: float
) -> np.ndarray:
  """Decode a window of the first sound track.

  Args:
    path: the file.
    start: seconds from the file's beginning.
    seconds: of the window.

  Returns:
    audio_A, float32 in [-1, 1], mono at 16 kHz; silence where the track is
    shorter than the window, [0] samples where there is no track.
  """
  rate = geometry.SAMPLE_RATE
  with containers.opened(path) as container:
    if not container.streams.audio:
      return np.zeros(0, np.float32)
    stream = _existing(container.streams.audio[0], "sound")
    audio_A = np.zeros(round(seconds * rate), np.float32)
    frames = _from(path, container, stream, start - _EARLIER)
    for time, part_A in _sound(frames):
      first = round((time - start) * rate)
      if first >= audio_A.size:
        break
      begin, end = max(first, 0), min(first + part_A.size, audio_A.size)
      if end > begin:
        audio_A[begin:end] = part_A[begin - first : end - first]
  return audio_A


def sweep_sound(
  path: str | os.PathLike[str],
) -> Iterator[tuple[float, np.ndarray]]:
  """All of a file's first sound track, part by part, in constant memory.

  Yields:
    Seconds from the file's beginning, and part_A as `audio` gives it.

  Raises:
    DamagedError: it has no sound.
  """
  with containers.opened(path) as container:
    first = next(iter(container.streams.audio), None)
    stream = _existing(first, "sound")
    yield from _sound(_from(path, container, stream, 0))


def _sound(
  frames: Iterator[tuple[float, Any, bool]],
) -> Iterator[tuple[float, np.ndarray]]:
  """Parts of sound with their times; gaps between them are silence."""
  rate = geometry.SAMPLE_RATE
  resampler, place = None, 0  # of the next sample, from the file's beginning
  expected, form = math.nan, None
  for time, frame, _ in frames:
    _check_samples(frame)
    found = frame.sample_rate, frame.layout.name, frame.format.name
    # Not "near": also true of NaN, before the first frame.
    if not abs(time - expected) <= _JUMP or found != form:
      if resampler is not None:
        yield from _samples(resampler, None, place)
      # 16 bits: only for whole numbers the mix of channels stays in range.
      resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
      place, expected, form = round(time * rate), time, found
    for start, part_A in _samples(resampler, frame, place):
      yield start, part_A
      place += part_A.size
    expected += frame.samples / frame.sample_rate
  if resampler is not None:
    yield from _samples(resampler, None, place)


def _check_samples(frame: Any) -> None:
  """DamagedError if samples are not numbers, or on another scale than sound.

  Codecs that decode to floating point go a little beyond full scale.
  """
  if frame.format.name.rstrip("p") in ("flt", "dbl"):
    peak = np.abs(frame.to_ndarray()).max(initial=0)
    if not peak <= _MAX_PEAK:
      raise containers.DamagedError(
        f"its sound has a sample of {peak:.3g}; expected -1 to 1"
      )


def _samples(
  resampler: Any, frame: Any, place: int
) -> Iterator[tuple[float, np.ndarray]]:
  """What a resampler gives for a frame, or at the end for None."""
  for part in resampler.resample(frame):
    part_A = part.to_ndarray().reshape(-1).astype(np.float32) / 32_768
    yield place / geometry.SAMPLE_RATE, part_A
    place += part_A.size
