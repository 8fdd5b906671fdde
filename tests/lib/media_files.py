"""Small video and audio files, valid and invalid, made with PyAV."""

import fractions
import pathlib
import struct
from collections.abc import Iterable
from collections.abc import Sequence

import av
import numpy as np

RATE = 16_000
BASE = fractions.Fraction(1, 90_000)
PAL = fractions.Fraction(1, 25)


def write(
  path: pathlib.Path,
  frames: Iterable[np.ndarray],
  times: Sequence[float],
  wave: np.ndarray | None = None,
  codec: str = "libx264",
  pixels: str = "yuv420p",
  aspect: fractions.Fraction | None = None,
  transfer: int | None = None,
  matrix: int | None = None,
  options: dict[str, str] | None = None,
  source: str = "rgb24",
  rate: int = RATE,
  base: fractions.Fraction = BASE,
  container: dict[str, str] | None = None,
  sound_from: float = 0.0,
) -> pathlib.Path:
  """Write frames, each from its time on, and a wave [channels, samples].

  The wave begins at `sound_from` seconds.
  """
  frames = list(frames)
  if options is None:
    options = {"preset": "ultrafast"} if codec == "libx264" else {}
  rows, columns = frames[0].shape[:2]
  if source.startswith("yuv420p"):
    rows = rows * 2 // 3  # planes are stacked vertically
  with av.open(str(path), "w", options=container or {}) as container:
    video = container.add_stream(codec, rate=24, options=options)
    video.height, video.width, video.pix_fmt = rows, columns, pixels
    video.codec_context.time_base = base
    video.codec_context.thread_count = 1
    if aspect is not None:
      video.codec_context.sample_aspect_ratio = aspect
    if transfer is not None:
      video.codec_context.color_trc = transfer
    if matrix is not None:
      video.codec_context.colorspace = matrix
    audio = None
    if wave is not None:
      layout = "mono" if len(wave) == 1 else "stereo"
      audio = container.add_stream("aac", rate=rate, layout=layout)
    for frame, time in zip(frames, times, strict=True):
      picture = av.VideoFrame.from_ndarray(frame, format=source)
      if source != pixels:
        picture = picture.reformat(format=pixels)
      if transfer is not None:
        picture.color_trc = transfer
      if matrix is not None:
        picture.colorspace = matrix
      picture.pts, picture.time_base = round(time / base), base
      container.mux(video.encode(picture))
    container.mux(video.encode(None))
    if audio is not None:
      _write_sound(container, audio, wave, rate, round(sound_from * rate))
  return path


def _write_sound(
  container, audio, wave: np.ndarray, rate: int, first: int = 0
) -> None:
  layout = "mono" if len(wave) == 1 else "stereo"
  for start in range(0, wave.shape[1], 1024):
    part = np.ascontiguousarray(wave[:, start : start + 1024], np.float32)
    frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, first + start
    frame.time_base = fractions.Fraction(1, rate)
    container.mux(audio.encode(frame))
  container.mux(audio.encode(None))


def write_sound(path: pathlib.Path, wave: np.ndarray, rate: int = RATE):
  """A wav file of a wave [channels, samples]."""
  with av.open(str(path), "w") as container:
    layout = "mono" if len(wave) == 1 else "stereo"
    audio = container.add_stream("pcm_s16le", rate=rate, layout=layout)
    levels = np.rint(np.clip(wave, -1, 32_767 / 32_768) * 32_768)
    packed = np.ascontiguousarray(levels.T.reshape(1, -1).astype(np.int16))
    frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    container.mux(audio.encode(frame))
    container.mux(audio.encode(None))
  return path


def even(count: int, fps: float = 24.0) -> list[float]:
  """Times of frames at an even rate."""
  return [number / fps for number in range(count)]


def numbered(count: int, rows: int = 32, columns: int = 64) -> list[np.ndarray]:
  """Frames that encode their number, up to 255, in bars; see `number`."""
  bits = (np.arange(count)[:, None] >> np.arange(8)) & 1
  bars = (40 + 170 * bits).astype(np.uint8).repeat(columns // 8, 1)
  return [np.tile(bar[None, :, None], (rows, 1, 3)) for bar in bars]


def number(frame_HWC: np.ndarray) -> int:
  """Of a frame of `numbered`, though it was encoded."""
  bars = frame_HWC.mean((0, 2)).reshape(8, -1).mean(1)
  return int(((bars > 125) << np.arange(8)).sum())


def picture(
  seed: int, rows: int = 64, columns: int = 96, cell: int = 8
) -> np.ndarray:
  """A mosaic of random colours, uint8 RGB."""
  random = np.random.default_rng(seed)
  cells = -(-rows // cell), -(-columns // cell), 3
  small = random.integers(20, 235, cells, dtype=np.uint8)
  return small.repeat(cell, 0).repeat(cell, 1)[:rows, :columns]


def moving(
  count: int, seed: int = 0, rows: int = 64, columns: int = 96, step: int = 1
) -> list[np.ndarray]:
  """A mosaic that moves to the left by so many pixels a frame."""
  wide = picture(seed, rows, columns + step * count)
  return [wide[:, step * n : step * n + columns].copy() for n in range(count)]


def tone(seconds: float, level: float = 0.3, rate: int = RATE) -> np.ndarray:
  """A wave [1, samples] of 440 Hz."""
  time = np.arange(round(seconds * rate)) / rate
  return (level * np.sin(2 * np.pi * 440 * time)).astype(np.float32)[None]


def turn(path: pathlib.Path, a: int, b: int, c: int, d: int) -> pathlib.Path:
  """Give an mp4's first track a display matrix of these units."""
  content = bytearray(path.read_bytes())
  place = content.index(b"tkhd") + 4 + 40
  matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
  content[place : place + 36] = struct.pack(">9i", *matrix)
  path.write_bytes(bytes(content))
  return path
