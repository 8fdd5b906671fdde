"""Images: read from files, resized to first frames, drawn as sheets.

Pixels are uint8 RGB in files and float32 in [-1, 1] for the models.
(`utils/processing_utils.py` of the original.)
"""

import os
import struct
import warnings
import zlib

import einops
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageOps

from ovi_jax import geometry

BICUBIC_A = -0.75  # sharpness of PyTorch's bicubic kernel

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
