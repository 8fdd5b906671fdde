"""mp4 files: H.264 with BT.709 colours and AAC sound, written and read whole.

Reading takes any self-contained format of `container`, within limits of time
and memory.

Frames are uint8 RGB; waves are mono float32 in [-1, 1]. (`utils/io_utils.py` of
the original.)
"""

import contextlib
import dataclasses
import fractions
import itertools
import os
import pathlib
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import av
import numpy as np
from av import error as av_error
from av.video import reformatter

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import container as containers

CRF = 18  # constant quality of x264; visually lossless
AUDIO_BITRATE = 96_000  # the most that AAC spends on mono at 16 kHz
# Preset of x264: at the quality of `CRF` half the time of its default for as
# many bytes and 0.3 dB.
FAST = "veryfast"
MAX_SECONDS = 60.0  # that `read` takes, of picture or sound
MAX_FRAMES = 240 * int(MAX_SECONDS)
MAX_BYTES = 1 << 30  # of frames that `read` holds; 10 s of 960x960 are 0.67 GB
MAX_SAMPLE_RATE = 384_000  # Hz
# Gives the samples that follow, see `write`.
Sound = Callable[[], np.ndarray]
BT709 = 1  # code of the HD colour standard in H.264


def write(
  path: str | os.PathLike[str],
  frames: Iterable[np.ndarray],
  wave: np.ndarray | Sound | None,
  fps: float = geometry.FPS,
  sample_rate: int = geometry.SAMPLE_RATE,
  before_naming: Callable[[], storage.AnyPath | None] = lambda: None,
  threads: int = 0,
  preset: str = "medium",
) -> None:
  """Write a clip; nothing stands under `path` until all of it is written.

  Args:
    path: the mp4; folders are made, an older file is replaced.
    frames: chunks [frames, height, width, 3] of uint8, written as they come.
    wave: mono [samples] in [-1, 1] (clipped to it), or None for a silent file;
      or a function, called after each chunk of frames, of the samples that
      follow those that it gave before, as many as there are by then.
    fps: frames a second.
    sample_rate: of `wave`, Hz; one that AAC knows.
    before_naming: called when the file is whole, see `files.atomic_path`.
    threads: that encode; the bytes depend on how many. 0: as many as cores.
    preset: of x264; a faster one finds less to leave out.

  Raises:
    ValueError: no frames, a chunk of another type or shape than the first, an
      odd height or width, or a wave that is not one row of finite numbers.
    OSError: the disk is full, or the folder is not writable.
  """
  path = storage.locate(path)
  sound = _SoundBuffer(wave) if wave is not None else None
  chunks = _checked_chunks(frames)
  first = next(chunks, None)
  if first is None:
    raise ValueError(f"no frames for {path}")
  options = {"movflags": "faststart"}
  with (
    files.atomic_path(path, before_naming) as temporary,
    av.open(str(temporary), "w", format="mp4", options=options) as container,
  ):
    whole = itertools.chain([first], chunks)
    rate = fractions.Fraction(fps).limit_denominator(10_000)
    _, height, width, _ = first.shape
    video = _video_stream(container, rate, height, width, preset)
    video.codec_context.thread_count = threads
    _encode(container, video, whole, sound, rate, sample_rate)


def to_bytes(
  frames: Iterable[np.ndarray],
  fps: float = geometry.FPS,
  preset: str = "medium",
) -> bytes:
  """Encode a silent clip; the same frames give the same bytes anywhere.

  Args and errors are those of `write`.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "clip.mp4"
    write(path, frames, None, fps, threads=1, preset=preset)
    return path.read_bytes()


class _SoundBuffer:
  """Sound that is there, and that is encoded in order.

  Attributes:
    place: of the first sample that was not taken.
  """

  def __init__(self, wave: np.ndarray | Sound):
    """Check a wave; ValueError if it is no mono wave."""
    self.place = 0
    self._more = wave if callable(wave) else None
    self._samples = np.zeros(0, np.float32)
    if not callable(wave):
      self._samples = _checked_wave(wave)

  def read(self) -> None:
    """Ask for the samples that follow."""
    more = self._more() if self._more is not None else ()
    if len(more):
      more = _checked_wave(more)
      self._samples = np.concatenate([self._samples, more])

  def take(self, until: int | None = None) -> np.ndarray:
    """The samples up to a place, as many of them as are there."""
    count = self._samples.size if until is None else until - self.place
    part, self._samples = self._samples[:count], self._samples[count:]
    self.place += part.size
    return part


def _checked_wave(wave: Any) -> np.ndarray:
  """The wave as float32 within [-1, 1]; ValueError if it is no mono wave."""
  wave = np.asarray(wave, np.float32)
  if wave.ndim != 1 or not wave.size:
    raise ValueError(f"wave must be [samples], mono; got shape {wave.shape}")
  if not np.isfinite(wave).all():
    raise ValueError("wave holds NaN or infinity; expected values in [-1, 1]")
  return np.clip(wave, -1, 1)


def _checked_chunks(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  """The chunks that hold frames, each checked against the first."""
  size = None
  for chunk_THWC in frames:
    shape, dtype = chunk_THWC.shape, chunk_THWC.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3:
      raise ValueError(
        "frames must be uint8 [frames, height, width, 3],"
        f" got {dtype} {list(shape)}; see images.to_uint8"
      )
    size = size or shape[1:3]
    if shape[1:3] != size:
      raise ValueError(f"frames of {shape[1:3]} follow frames of {size}")
    if size[0] % 2 or size[1] % 2 or 0 in size:
      raise ValueError(
        f"H.264 wants an even height and width, got {size[0]}x{size[1]}"
      )
    if shape[0]:
      yield chunk_THWC


def _video_stream(
  container: Any,
  rate: fractions.Fraction,
  height: int,
  width: int,
  preset: str,
) -> Any:
  """An H.264 stream; the same frames make the same bytes."""
  # x264's mbtree reads memory that was never set.
  options = {"crf": str(CRF), "preset": preset, "mbtree": "0"}
  video = container.add_stream("libx264", rate=rate, options=options)
  video.height, video.width, video.pix_fmt = height, width, "yuv420p"
  context = video.codec_context
  context.colorspace = context.color_primaries = context.color_trc = BT709
  context.color_range = int(reformatter.ColorRange.MPEG)
  return video


def _encode(
  container: Any,
  video: Any,
  chunks: Iterable[np.ndarray],
  sound: _SoundBuffer | None,
  rate: fractions.Fraction,
  sample_rate: int,
) -> None:
  """Encode and interleave both streams; Any for PyAV's container, stream."""
  audio: Any = None
  if sound is not None:
    audio = container.add_stream("aac", rate=sample_rate, layout="mono")
    audio.bit_rate = AUDIO_BITRATE

  def encode_sound(until: int | None = None) -> None:
    place = sound.place if sound is not None else 0
    if sound is not None and (part := sound.take(until)).size:
      container.mux(audio.encode(_audio_frame(part, place, sample_rate)))

  index = 0
  for chunk_THWC in chunks:
    if sound is not None:
      sound.read()
    for frame_HWC in chunk_THWC:
      container.mux(video.encode(_video_frame(frame_HWC, index, rate)))
      index += 1
      # As much sound as the picture has got to: players find both in one place.
      encode_sound(int(index / rate * sample_rate))
  if sound is not None:
    sound.read()
  encode_sound()
  for stream in (video, audio):
    if stream is not None:
      container.mux(stream.encode(None))


def _video_frame(
  frame_HWC: np.ndarray, index: int, rate: fractions.Fraction
) -> av.VideoFrame:
  """A frame in H.264's colours, with its time."""
  frame = av.VideoFrame.from_ndarray(
    np.ascontiguousarray(frame_HWC), format="rgb24"
  ).reformat(
    format="yuv420p",
    dst_colorspace=reformatter.Colorspace.ITU709,
    dst_color_range=reformatter.ColorRange.MPEG,
  )
  frame.pts, frame.time_base = index, 1 / rate
  return frame


def _audio_frame(
  wave: np.ndarray, start: int, sample_rate: int
) -> av.AudioFrame:
  """A stretch of sound that begins at sample `start`."""
  frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
  frame.sample_rate = sample_rate
  frame.pts, frame.time_base = start, fractions.Fraction(1, sample_rate)
  return frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
  """Properties of a video, from its headers, packets and first frame.

  Attributes:
    height: rows of a frame as it is coded.
    width: columns likewise.
    times: [frames] seconds, rising, when each is shown; one for each packet.
    fps: average rate, by the header; 0 if it has none.
    orientation: how frames are turned to be shown.
    aspect: of a pixel, width over height.
  """

  height: int
  width: int
  times: np.ndarray
  fps: float
  orientation: containers.Orientation
  aspect: float


def header(
  source: containers.Source,
  max_area: int = containers.MAX_AREA,
  max_frames: int = MAX_FRAMES,
) -> Header:
  """Read what a video is; one frame is decoded.

  Args:
    source: a file's path, or a file's bytes.
    max_area: pixels of a frame.
    max_frames: of the video.

  Returns:
    Properties of the video.

  Raises:
    DamagedError: it is no video, has not one whole frame, or has larger or
      more ones.
    OSError: it cannot be read.
  """
  with containers.opened(source) as container:
    stream = _video(container)
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    containers.check_area(stream, max_area)
    times = containers.times(container, stream, max_frames)
  with containers.opened(source) as container:
    stream = _video(container)
    first = next(containers.frames(container, stream, max_area), None)
    if first is None or not times.size:
      raise containers.DamagedError("no video frame can be decoded")
    return Header(
      height=first[1].height,
      width=first[1].width,
      times=times,
      fps=fps,
      orientation=containers.orientation(first[1]),
      aspect=float(stream.sample_aspect_ratio or 1),
    )


@contextlib.contextmanager
def _damaged() -> Iterator[None]:
  """What FFmpeg cannot convert is damaged, too."""
  try:
    yield
  except av_error.FFmpegError as error:
    raise containers.DamagedError(error.strerror or str(error)) from error


def _video(container: Any) -> Any:
  """The stream of pictures; DamagedError if there is none."""
  stream = containers.pictures(container)
  if stream is None:
    raise containers.DamagedError("expected a stream of video, found none")
  return stream


def decode(source: containers.Source, found: Header) -> np.ndarray:
  """Decode all frames of a video into one array, as they are coded.

  Args:
    source: a file's path, or a file's bytes.
    found: its header; check that the array fits the memory.

  Returns:
    frames_THWC, uint8 RGB.

  Raises:
    DamagedError: frames are damaged, missing, or of another size.
    OSError: it cannot be read.
  """
  count, height, width = len(found.times), found.height, found.width
  frames_THWC = np.empty((count, height, width, 3), np.uint8)
  decoded = 0
  with _damaged(), containers.opened(source) as container:
    every = containers.frames(container, _video(container), height * width)
    for _, frame, broken in every:
      if broken:
        raise containers.DamagedError(f"frame {decoded} is damaged")
      size = frame.height, frame.width
      if size != (height, width):
        raise containers.DamagedError(
          f"frame {decoded} is {size[0]}x{size[1]}, the first {height}x{width}"
        )
      if decoded < count:
        frames_THWC[decoded] = frame.to_ndarray(format="rgb24")
      decoded += 1
  if decoded != count:
    raise containers.DamagedError(
      f"expected {count} frames, one for each packet, found {decoded}"
    )
  return frames_THWC


def read(
  path: str | os.PathLike[str],
  *,
  max_seconds: float = MAX_SECONDS,
  max_bytes: int = MAX_BYTES,
) -> tuple[np.ndarray, float, np.ndarray | None, int | None]:
  """Read a whole clip into memory.

  Args:
    path: the file.
    max_seconds: of picture or sound.
    max_bytes: of the frames, decoded. Neither more pixels nor more samples are
      ever held.

  Returns:
    frames_THWC uint8 RGB, frames a second, the wave mixed down to mono
    (None if there is no sound), and its sample rate in Hz.

  Raises:
    ValueError: the file is missing, no video, damaged, or longer or larger
      than allowed.
  """
  with _named(path):
    found = _checked_header(path, max_seconds, max_bytes)
    wave, rate = _wave(path, max_seconds, layout="mono")
    wave_A = None if wave is None else wave[0]
    return decode(path, found), found.fps, wave_A, rate


def check(
  path: str | os.PathLike[str],
  *,
  max_seconds: float = MAX_SECONDS,
  max_bytes: int = MAX_BYTES,
) -> None:
  """Check that `read` would take the frames of a clip, without decoding them.

  Args:
    path: the file.
    max_seconds: see `read`.
    max_bytes: see `read`.

  Raises:
    ValueError: see `read`.
  """
  with _named(path):
    _checked_header(path, max_seconds, max_bytes)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
  """Name the file in errors of reading it."""
  wanted = f"{untrusted.printable(str(path), 1000)}: expected a video file"
  try:
    yield
  except containers.DamagedError as error:
    raise ValueError(f"{wanted} such as mp4; {error}") from error
  except OSError as error:
    raise ValueError(f"{wanted} such as mp4; {error.strerror}") from error


def _checked_header(
  path: str | os.PathLike[str], max_seconds: float, max_bytes: int
) -> Header:
  """The header of a clip that is neither too long nor too large."""
  found = header(path, max_bytes // 3)
  seconds = float(found.times[-1] - found.times[0])
  if seconds > max_seconds:
    raise containers.DamagedError(
      f"its frames last {seconds:g} s; the limit is {max_seconds:g} s"
    )
  held = len(found.times) * found.height * found.width * 3
  if held > max_bytes:
    raise containers.DamagedError(
      f"its {len(found.times)} frames of {found.height}x{found.width} have"
      f" {held / 1e6:.0f} MB decoded; the limit is {max_bytes / 1e6:.0f} MB"
    )
  if not found.fps > 0:
    raise containers.DamagedError("it has no frame rate")
  return found


class SoundHeader(NamedTuple):
  """Properties of the first sound track.

  Attributes:
    rate: samples a second.
    start: seconds from the first frame of the picture to the first sample; 0
      without a picture.
  """

  rate: int
  start: float


def sound_header(path: str | os.PathLike[str]) -> SoundHeader | None:
  """Read what a sound track is; its first frame is decoded.

  Args:
    path: of a video or sound file.

  Returns:
    Properties of the track; None if there is none, or not one sample in it.

  Raises:
    DamagedError: the packets of the picture cannot be read.
    OSError: it cannot be read.
  """
  with _damaged(), containers.opened(path) as container:
    stream = next(iter(container.streams.audio), None)
    if stream is None:
      return None
    first = next(containers.frames(container, stream), None)
    if first is None:
      return None
    time, rate = first[0] + containers.origin(container), stream.rate
  with containers.opened(path) as container:
    picture = containers.pictures(container)
    if picture is None:
      return SoundHeader(rate, 0.0)
    times = containers.times(container, picture, MAX_FRAMES)
  return SoundHeader(rate, time - float(times[0]) if times.size else 0.0)


def read_sound(
  path: str | os.PathLike[str], *, max_seconds: float = MAX_SECONDS
) -> tuple[np.ndarray | None, int | None]:
  """Read the first sound track of a file, with its channels.

  Args:
    path: of a video or sound file.
    max_seconds: of sound.

  Returns:
    The wave float32 [channels, samples] and its sample rate in Hz, `None` and
    `None` without a sound track.

  Raises:
    ValueError: the file is missing, damaged or longer than allowed.
  """
  try:
    return _wave(path, max_seconds, layout=None)
  except containers.DamagedError as error:
    raise ValueError(f"{untrusted.printable(str(path))}: {error}") from error
  except OSError as error:
    raise ValueError(
      f"{untrusted.printable(str(path))}: {error.strerror or error}"
    ) from error


def _wave(
  path: str | os.PathLike[str], max_seconds: float, layout: str | None
) -> tuple[np.ndarray | None, int | None]:
  """The first sound track [channels, samples], and its rate; None without.

  It is mixed down to `layout`, or keeps its channels.
  """
  with _damaged(), containers.opened(path) as container:
    stream = next(iter(container.streams.audio), None)
    if stream is None:
      return None, None
    rate, parts, count = stream.rate, [], 0
    if not 0 < rate <= MAX_SAMPLE_RATE:
      raise containers.DamagedError(f"its sound has {rate} samples a second")
    mixer = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    form = None
    for _, frame, _ in containers.frames(container, stream):
      form = form or (frame.format.name, frame.layout.name, frame.sample_rate)
      if form != (frame.format.name, frame.layout.name, frame.sample_rate):
        raise containers.DamagedError("its sound changes its format")
      count += frame.samples
      if count > (max_seconds + 1) * rate:
        raise containers.DamagedError(
          f"its sound is longer than the limit of {max_seconds:g} s"
        )
      parts += [part.to_ndarray() for part in mixer.resample(frame)]
    # The last AAC packet is padded; the file says how much of it counts.
    length = None
    if stream.duration and stream.time_base:
      length = round(stream.duration * stream.time_base * rate)
  wave = np.concatenate(parts, axis=1)[:, :length] if parts else None
  return wave, rate
