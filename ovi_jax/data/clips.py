"""Decodes a record's media: frames from mp4 bytes, samples from PCM.

The model's rate is 24 frames per second, whatever a file declares, so an mp4 of
another rate would desynchronize video and audio: it is refused when it is
written and when it is read.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np

from ovi_jax import geometry
from ovi_jax.data import schema
from ovi_jax.media import container
from ovi_jax.media import mp4
from ovi_jax.media import wav

_FPS = geometry.FPS
_ROUNDING = 2e-3  # seconds; containers round time stamps to milliseconds
_PCM = np.float32(32768)


def check(record: schema.Record) -> None:
  """Check a record's mp4 against the record; one frame is decoded.

  Args:
    record: with or without video.

  Raises:
    ValueError: the mp4 is damaged, or its number of frames, size or frame rate
      (by its time stamps) differs; names the record and all differences.
  """
  if record.video is not None:
    _header(record)


def frames(record: schema.Record) -> np.ndarray:
  """Decode the video of a record.

  Args:
    record: with an mp4.

  Returns:
    uint8 RGB [frames, height, width, 3].

  Raises:
    ValueError: as `check`.
  """
  assert record.video is not None
  header = _header(record)
  with _named(record):
    return mp4.decode(io.BytesIO(record.video), header)


def _header(record: schema.Record) -> mp4.Header:
  """The header of a record's mp4, which agrees with the record."""
  assert record.video is not None
  _, height, width = _wanted(record)
  area = max(1, height * width)
  with _named(record):
    header = mp4.header(
      io.BytesIO(record.video), max_area=min(area * 4, container.MAX_AREA)
    )
  problems = [*_size_problems(record, header), *_rate_problems(record, header)]
  if problems:
    raise ValueError(
      f"record {record.id!r}: its mp4 is not what the record says:"
      f" {'; '.join(problems)}; {schema.RESAMPLE}, or leave the clip out"
    )
  return header


def _wanted(record: schema.Record) -> tuple[int, int, int]:
  """Frames, height and width; those that the record leaves to its latents."""
  T, H, W = record.sizes.video
  time, row, column = geometry.VIDEO_STRIDES
  return (
    record.frames or 1 + time * (T - 1),
    record.height or row * H,
    record.width or column * W,
  )


def _size_problems(record: schema.Record, header: mp4.Header) -> Iterator[str]:
  """Differences of the mp4's frames from the record."""
  got = len(header.times), header.height, header.width
  wanted = _wanted(record)
  if got != wanted:
    yield (
      "expected {} frames of {}x{}".format(*wanted)
      + ", found {} of {}x{}".format(*got)
    )
  if header.orientation != container.Orientation():
    yield "its frames are to be turned or mirrored"
  if abs(header.aspect - 1) > 1e-3:
    yield f"its pixels are not square ({header.aspect:.3f})"


def _rate_problems(record: schema.Record, header: mp4.Header) -> Iterator[str]:
  """Differences of the mp4's time stamps from 24 frames per second."""
  if not abs(record.fps / _FPS - 1) <= schema.FPS_TOLERANCE:
    yield f"expected {_FPS} frames a second, the record says {record.fps:g}"
  if len(header.times) < 2:
    return
  late = header.times - header.times[0] - np.arange(len(header.times)) / _FPS
  seconds = float(header.times[-1] - header.times[0])
  if abs(late[-1]) > max(_ROUNDING, schema.FPS_TOLERANCE * seconds):
    rate = (len(header.times) - 1) / max(seconds, 1e-6)
    yield f"expected {_FPS} frames a second, found {rate:.3f}"
  elif np.abs(late).max() > 0.5 / _FPS + _ROUNDING:
    yield (
      f"expected {_FPS} frames a second, found a variable rate, frames up to"
      f" {np.abs(late).max():.3f} s from their place"
    )


@contextlib.contextmanager
def _named(record: schema.Record) -> Iterator[None]:
  """Errors that name the record."""
  try:
    yield
  except container.DamagedError as error:
    raise ValueError(
      f"record {record.id!r}: its mp4 cannot be decoded: {error}; leave the"
      " clip out"
    ) from error


def wave(record: schema.Record) -> np.ndarray:
  """Decode the audio of a record.

  Args:
    record: with PCM.

  Returns:
    Mono float32 [samples] in [-1, 1) at 16 kHz.
  """
  assert record.audio is not None
  return np.frombuffer(record.audio, "<i2").astype(np.float32) / _PCM


pcm = wav.pcm
