"""mp4 files: H.264 with BT.709 colours and AAC sound, written and read whole.

Frames are uint8 RGB; waves are mono float32 in [-1, 1]. (`utils/io_utils.py` of
the original.)
"""

import fractions
import itertools
import os
import pathlib
import tempfile
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av import error as av_error
from av.video import reformatter

from ovi_jax import files
from ovi_jax import geometry

CRF = 18  # constant quality of x264; visually lossless
AUDIO_BITRATE = 96_000  # the most that AAC spends on mono at 16 kHz
# Preset of x264: at the quality of `CRF` half the time of its default for as
# many bytes and 0.3 dB.
FAST = "veryfast"
BT709 = 1  # code of the HD colour standard in H.264


def write(
  path: str | os.PathLike[str],
  frames: Iterable[np.ndarray],
  wave: np.ndarray | None,
  fps: float = geometry.FPS,
  sample_rate: int = geometry.SAMPLE_RATE,
  before_naming: Callable[[], None] = lambda: None,
  threads: int = 0,
  preset: str = "medium",
) -> None:
  """Write a clip; nothing stands under `path` until all of it is written.

  Args:
    path: the mp4; folders are made, an older file is replaced.
    frames: chunks [frames, height, width, 3] of uint8, written as they come.
    wave: mono [samples] in [-1, 1] (clipped to it), or None for a silent file.
    fps: frames a second.
    sample_rate: of `wave`, Hz; one that AAC knows.
    before_naming: called when the file is whole, before it gets its name.
    threads: that encode; the bytes depend on how many. 0: as many as cores.
    preset: of x264; a faster one finds less to leave out.

  Raises:
    ValueError: no frames, a chunk of another type or shape than the first, an
      odd height or width, or a wave that is not one row of finite numbers.
    OSError: the disk is full, or the folder is not writable.
  """
  path = pathlib.Path(path)
  if wave is not None:
    wave = _checked_wave(wave)
  chunks = _checked_chunks(frames)
  first = next(chunks, None)
  if first is None:
    raise ValueError(f"no frames for {path}")
  options = {"movflags": "faststart"}
  with files.replacing(path) as temporary:
    with av.open(
      str(temporary), "w", format="mp4", options=options
    ) as container:
      whole = itertools.chain([first], chunks)
      rate = fractions.Fraction(fps).limit_denominator(10_000)
      _, height, width, _ = first.shape
      video = _video_stream(container, rate, height, width, preset)
      video.codec_context.thread_count = threads
      _encode(container, video, whole, wave, rate, sample_rate)
    before_naming()


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


def _checked_wave(wave: np.ndarray) -> np.ndarray:
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
  wave: np.ndarray | None,
  rate: fractions.Fraction,
  sample_rate: int,
) -> None:
  """Encode and interleave both streams; Any for PyAV's container, stream."""
  audio: Any = None
  if wave is not None:
    audio = container.add_stream("aac", rate=sample_rate, layout="mono")
    audio.bit_rate = AUDIO_BITRATE
  sound = np.zeros(0, np.float32) if wave is None else wave
  heard = 0
  frames = (frame for chunk in chunks for frame in chunk)
  for index, frame_HWC in enumerate(frames):
    container.mux(video.encode(_video_frame(frame_HWC, index, rate)))
    # As much sound as the picture has got to: players find both in one place.
    until = int((index + 1) / rate * sample_rate)
    if heard < min(until, sound.size):
      part = _audio_frame(sound[heard:until], heard, sample_rate)
      container.mux(audio.encode(part))
      heard = until
  if heard < sound.size:
    part = _audio_frame(sound[heard:], heard, sample_rate)
    container.mux(audio.encode(part))
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


def read(
  path: str | os.PathLike[str],
) -> tuple[np.ndarray, float, np.ndarray | None, int | None]:
  """Read a whole video file into memory.

  Returns:
    frames_THWC uint8 RGB, frames a second, the wave mixed down to mono
    (None if there is no sound), and its sample rate in Hz.

  Raises:
    ValueError: the file is missing, no video, or damaged.
  """
  frames, sounds = [], []
  mono = av.AudioResampler(format="fltp", layout="mono")
  try:
    with av.open(str(path)) as container:
      video = container.streams.video[0]
      audio = next(iter(container.streams.audio), None)
      fps, rate = float(video.average_rate or 0), audio and audio.rate
      streams = [video] if audio is None else [video, audio]
      for frame in container.decode(*streams):
        if isinstance(frame, av.VideoFrame):
          frames.append(frame.to_ndarray(format="rgb24"))
        elif isinstance(frame, av.AudioFrame):
          sounds += [s.to_ndarray()[0] for s in mono.resample(frame)]
      # The last AAC packet is padded; the file says how much of it counts.
      length = None
      if audio is not None and audio.duration and audio.time_base:
        length = round(audio.duration * audio.time_base * audio.rate)
  except (av_error.FFmpegError, OSError, IndexError) as error:
    said = getattr(error, "strerror", None) or error
    raise ValueError(
      f"{path}: expected a video file such as mp4; {said}"
    ) from error
  if not frames:
    raise ValueError(f"{path}: expected a video file such as mp4; no frames")
  wave = np.concatenate(sounds)[:length] if sounds else None
  return np.stack(frames), fps, wave, rate
