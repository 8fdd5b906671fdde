"""Files and pictures: mp4 with sound, first-frame images, contact sheets.

Pixels are uint8 RGB in files and float32 in [-1, 1] for the models; waves are
mono float32 in [-1, 1]. Videos are H.264 with BT.709 colours and AAC sound.
(`utils/io_utils.py`, `utils/processing_utils.py` of the original.)
"""

import fractions
import itertools
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import av
import einops
import numpy as np
from av import error as av_error
from av.video import reformatter
from PIL import Image
from PIL import ImageDraw
from PIL import ImageOps

from ovi_jax import files
from ovi_jax import geometry

CRF = 18  # constant quality of x264; visually lossless
AUDIO_BITRATE = 96_000  # the most that AAC spends on mono at 16 kHz
BICUBIC_A = -0.75  # sharpness of PyTorch's bicubic kernel
BT709 = 1  # code of the HD colour standard in H.264

# What Pillow's decoders raise on damaged files.
_DAMAGED = (
  OSError,
  EOFError,
  IndexError,
  KeyError,
  SyntaxError,
  TypeError,
  ValueError,
  struct.error,
  zlib.error,
)


def write_mp4(
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
        f" got {dtype} {list(shape)}; see to_uint8"
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


def read_mp4(
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


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
  """Read a picture as image_HWC, uint8 RGB.

  Turned upright as its EXIF data says; transparency is dropped, 16-bit grey
  scaled to 8 bits, and of an animation the first frame is taken.

  Raises:
    ValueError: the file is missing, truncated, not an image, of floating-point
      pixels, or so large that Pillow takes it for an attack.
  """
  wanted = "expected a PNG, JPEG or WebP image"
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        upright.load()
  except (Image.DecompressionBombWarning, Image.DecompressionBombError) as bomb:
    raise ValueError(
      f"{path} is too large ({bomb}); {wanted} of at most"
      f" {Image.MAX_IMAGE_PIXELS} pixels"
    ) from bomb
  except _DAMAGED as error:
    raise ValueError(f"{path}: {error}; {wanted}") from error
  if upright.mode.startswith("I"):
    values_HW = np.asarray(upright, np.int64)
    if values_HW.min() < 0 or values_HW.max() > 65_535:
      raise ValueError(f"{path} has 32-bit pixels; {wanted} of 8 or 16 bits")
    grey_HW = np.rint(values_HW / 257).astype(np.uint8)
    return einops.repeat(grey_HW, "H W -> H W C", C=3)
  if upright.mode == "F":
    raise ValueError(f"{path} has floating-point pixels; {wanted}")
  if "transparency" in upright.info:
    upright = upright.convert("RGBA")
  return np.array(upright.convert("RGB"))


def resize_bicubic(
  image_HWC: np.ndarray, height: int, width: int
) -> np.ndarray:
  """Resize as `interpolate(mode="bicubic", align_corners=False)` of PyTorch.

  Not antialiased: shrinking samples four rows and columns around each point.
  Values may overshoot the range of the input.

  Args:
    image_HWC: float32.
    height: rows wanted.
    width: columns wanted.

  Returns:
    float32 [height, width, C].
  """
  rows = _bicubic_weights(image_HWC.shape[0], height)
  columns = _bicubic_weights(image_HWC.shape[1], width)
  stretched_HWC = np.tensordot(rows, image_HWC, axes=1)
  resized_WHC = np.tensordot(columns, stretched_HWC, axes=(1, 1))
  return np.ascontiguousarray(resized_WHC.swapaxes(0, 1))


def _bicubic_weights(size: int, wanted: int) -> np.ndarray:
  """float32 [wanted, size]: the cubic convolution, edges repeated (Keys)."""
  # float32 like PyTorch, whose rounding of the places shows in large images.
  half, step = np.float32(0.5), np.float32(size) / np.float32(wanted)
  centre = (np.arange(wanted, dtype=np.float32) + half) * step - half
  before = np.floor(centre).astype(int)
  weights = np.zeros((wanted, size), np.float32)
  a = BICUBIC_A
  for tap in range(-1, 3):
    x = np.abs(centre - (before + tap).astype(np.float32))
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    source = np.clip(before + tap, 0, size - 1)
    weights[np.arange(wanted), source] += np.where(x <= 1, near, far)
  return weights


def first_frame(image_HWC: np.ndarray, area: int) -> np.ndarray:
  """Make the first frame of a clip from a picture.

  Args:
    image_HWC: uint8 RGB of any size.
    area: pixels a frame of the variant.

  Returns:
    float32 RGB, about [-1, 1], of `geometry.image_size`.
  """
  rows, columns, _ = image_HWC.shape
  height, width = geometry.image_size(rows, columns, area)
  scaled_HWC = image_HWC.astype(np.float32) / np.float32(127.5) - np.float32(1)
  return resize_bicubic(scaled_HWC, height, width)


def to_uint8(frames: np.ndarray) -> np.ndarray:
  """Round pixels in [-1, 1], clipped to it, to 0..255; any shape.

  Differs from Ovi, which truncates and so darkens by half a step.

  Raises:
    ValueError: a pixel is NaN or infinite.
  """
  frames = np.asarray(frames, np.float32)
  if not np.isfinite(frames).all():
    raise ValueError("frames hold NaN or infinity; expected values in [-1, 1]")
  return np.rint((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)


def contact_sheet(frames_THWC: np.ndarray, columns: int) -> Image.Image:
  """Lay uint8 frames out row by row, `columns` in a row, on black."""
  frames, gap = len(frames_THWC), 4
  if not frames or columns < 1:
    raise ValueError(
      f"expected frames and at least 1 column, got {frames} and {columns}"
    )
  columns = min(columns, frames)
  padding = ((0, -frames % columns), (gap, 0), (gap, 0), (0, 0))
  sheet_HWC = einops.rearrange(
    np.pad(frames_THWC, padding), "(R K) H W C -> (R H) (K W) C", K=columns
  )
  return Image.fromarray(np.pad(sheet_HWC, ((0, gap), (0, gap), (0, 0))))


def waveform_png(
  wave: np.ndarray, rate: int, width: int = 960, height: int = 160
) -> Image.Image:
  """Draw a wave [samples] in [-1, 1] with a line every second."""
  image = Image.new("RGB", (width, height), "white")
  draw = ImageDraw.Draw(image)
  for second in range(int(wave.size / rate) + 1):
    x = second * rate * width // max(1, wave.size)
    draw.line([(x, 0), (x, height)], fill="lightgray")
    draw.text((x + 3, 1), f"{second} s", fill="gray")
  parts = np.array_split(np.clip(wave, -1, 1), min(width, max(1, wave.size)))
  for index, part in enumerate(parts):
    if part.size:
      x = index * width // len(parts)
      low, high = (
        round((1 - v) * (height - 1) / 2)
        for v in (float(part.min()), float(part.max()))
      )
      draw.line([(x, high), (x, low)], fill="navy")
  return image
