"""Images: read from files, resized to first frames, drawn as sheets.

Pixels are uint8 RGB in files and float32 in [-1, 1] for the models.
(`utils/processing_utils.py` of the original.)
"""

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import BinaryIO

import einops
import numpy as np
from PIL import Image
from PIL import ImageCms
from PIL import ImageDraw
from PIL import ImageOps
from PIL import PngImagePlugin
from PIL import UnidentifiedImageError

from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.media import colors as colors_lib
from ovi_jax.media import fitting

# Pillow's names of the decoders that a picture is opened with, whatever its
# file is called. Others start programs (EPS) or crash on damaged files (DDS).
# The decoder of JPEG also opens those with several pictures (MPO) of phones.
FORMATS = ("PNG", "JPEG", "WEBP")
_WANTED = "expected a PNG, JPEG or WebP picture"
_OTHERS = {
  "a HEIC picture": rb"....ftyp(hei|hev|mif1|msf1)",
  "an AVIF picture": rb"....ftypavi",
  "a video": rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ",
  "a GIF picture": rb"GIF8",
  "a TIFF picture": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
  "a BMP picture": rb"BM",
  "a DDS picture": rb"DDS ",
  "a JPEG 2000 picture": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
  "a JPEG XL picture": rb"\xff\x0a|\0\0\0\x0cJXL ",
  "a Photoshop document": rb"8BPS",
  "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
  "PDF": rb"%PDF",
  "SVG or HTML": rb"\s*(\xef\xbb\xbf)?\s*<",
  "a git-lfs pointer": rb"version https://git-lfs",
  "a damaged picture": rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP",
}
# Column and row of the first pixel of each pass of an interlaced PNG, and the
# steps to the next ones.
_ADAM7 = (
  (0, 0, 8, 8),
  (4, 0, 8, 8),
  (0, 4, 4, 8),
  (2, 0, 4, 4),
  (0, 2, 2, 4),
  (1, 0, 2, 2),
  (0, 1, 1, 2),
)
_MAX_BYTES = 256 << 20  # of a picture in an object store
_PIECE = 1 << 16  # bytes of a PNG handled at once
_BAND = 64  # rows converted at a time
_DEEP_RGB = "RGB;16B"  # Pillow's name of 16-bit samples
_INTEROPERABILITY = 0xA005  # EXIF directory; cameras mark Adobe RGB there
BACKGROUND = 255  # white, under transparent pixels

# Of one compressed text or profile, as much as Pillow reads of all of them:
# the history that editors keep in XMP, or a display's profile, is over 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

BICUBIC_A = -0.75  # sharpness of PyTorch's bicubic kernel

_MAX_PROFILE = 4 << 20  # bytes; those of presses have 0.5 to 3 MB
# ICC's signatures of profiles that describe pixels, by device class.
_DEVICES = ("mntr", "scnr", "prtr", "spac")
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# White, red, green and blue: x and y each.
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)

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


def read_image(
  source: str | os.PathLike[str] | io.BytesIO,
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Read a picture as image_HWC, uint8 RGB in sRGB.

  Turned upright as its EXIF data says. Colours are converted from a PNG's cICP
  chunk or the embedded ICC profile (relative colorimetric, black point
  compensated). Transparent
  pixels are composited over `BACKGROUND`, 16-bit pixels become 8-bit, and of an
  animation the first frame is taken. Only `FORMATS` are opened, by content; the
  size is checked before pixels are decoded.

  Args:
    source: a file's path, or a file's bytes.

  Returns:
    image_HWC, and notes to show the user: what was changed or ignored.

  Raises:
    ValueError: the file is missing, truncated, of another format, too large, or
      longer and narrower than `geometry.MAX_ASPECT`.
  """
  named = "the picture"
  if not isinstance(source, io.BytesIO):
    named = untrusted.printable(os.fsdecode(source), 1000)
    with _named_errors(named, source):
      if storage.is_remote(source):
        data = storage.read_bytes(source, _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
          raise ValueError(f"found more than {_MAX_BYTES >> 20} MiB")
        source = io.BytesIO(data)
      elif kind := untrusted.irregular(source):
        raise ValueError(f"found {kind}")
  with _named_errors(named, source):
    image = Image.open(source, formats=FORMATS)
  layout = image.tile[0][3] if image.tile else None  # decoding empties it
  code_points = low = None
  with image:
    try:
      geometry.check_aspect(image.height, image.width)
    except ValueError as error:
      raise ValueError(f"{named}: {error}") from error
    with _named_errors(named, source):
      image.load()
      upright = _upright(image)
      if image.format == "PNG":
        _check_rows(source)
        if upright.mode == "P":
          _check_palette(source, np.asarray(upright))
        code_points = _code_points(source)
      if layout == _DEEP_RGB:
        low = _low_bytes(source)
      adobe_rgb = _is_marked_adobe_rgb(image)
  notes = []
  if image.format != "MPO" and getattr(image, "is_animated", False):
    notes.append("the image is animated; its first frame is used")
  colors, alpha_HW = _split(
    upright, _clear(image.info.get("transparency"), layout), low
  )
  image_HWC = _from_code_points(colors, code_points, low)
  if code_points and image_HWC is None:
    named = "/".join(map(str, code_points))
    notes.append(f"its cICP colours {named} are unknown and ignored")
  if image_HWC is None:
    profile = image.info.get("icc_profile")
    if profile:
      colors, note = _from_profile(colors, profile)
    else:
      note = _unprofiled(colors, image.info)
      if "icc_profile" in image.info:
        note = _ignored("it cannot be decompressed")
      if adobe_rgb:
        note = "Adobe RGB without a colour profile: colours are read as sRGB"
    if note:
      notes.append(note)
    image_HWC = np.array(colors.convert("RGB"))
  if alpha_HW is not None and (alpha_HW < 1).any():
    notes.append("transparent pixels are composited over white")
    alpha_HW1 = alpha_HW[..., None]
    mixed_HWC = image_HWC * alpha_HW1 + (1 - alpha_HW1) * BACKGROUND
    image_HWC = np.rint(mixed_HWC).astype(np.uint8)
  return image_HWC, tuple(notes)


def stored_size(path: str | os.PathLike[str]) -> tuple[int, int]:
  """Rows and columns of a picture of this machine, by its header.

  Args:
    path: the file; no pixels are decoded.

  Raises:
    ValueError: the file is missing, of another format, or too large.
  """
  named = untrusted.printable(os.fsdecode(path), 1000)
  with _named_errors(named, path):
    if kind := untrusted.irregular(path):
      raise ValueError(f"found {kind}")
    with Image.open(path, formats=FORMATS) as image:
      return image.height, image.width


def _is_marked_adobe_rgb(image: Image.Image) -> bool:
  """Whether EXIF data say that the colours are Adobe RGB."""
  try:
    directory = image.getexif().get_ifd(_INTEROPERABILITY)
  except KeyError:  # of Pillow 12, where there is no such directory
    return False
  return directory.get(1) == "R03"


@contextlib.contextmanager
def _named_errors(
  named: str, source: str | os.PathLike[str] | io.BytesIO
) -> Iterator[None]:
  """Whatever Pillow raises or warns of becomes one line that names the file."""
  try:
    with warnings.catch_warnings():
      # Of damaged EXIF data, which are ignored.
      warnings.simplefilter("ignore", UserWarning)
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      yield
  except (Image.DecompressionBombWarning, Image.DecompressionBombError) as bomb:
    raise ValueError(
      f"{named} is too large ({bomb}); {_WANTED} of at most"
      f" {Image.MAX_IMAGE_PIXELS} pixels"
    ) from bomb
  except UnidentifiedImageError as error:
    raise ValueError(
      f"{named}: {_found(source)}; {_WANTED}, so export it as one"
    ) from error
  except _DAMAGED as error:
    said = getattr(error, "strerror", None) or error
    raise ValueError(f"{named}: {said}; {_WANTED}") from error


def _found(source: str | os.PathLike[str] | io.BytesIO) -> str:
  """The format of a file that is not one of `FORMATS`, by its first bytes."""
  if isinstance(source, io.BytesIO):
    start = source.getvalue()[:32]
  else:
    with open(source, "rb") as file:
      start = file.read(32)
  if not start:
    return "found an empty file"
  for kind, signature in _OTHERS.items():
    if re.match(signature, start, re.DOTALL):
      return f"found {kind}"
  return "found no picture"


def _upright(image: Image.Image) -> Image.Image:
  """A picture turned as its EXIF data says; damaged data are ignored."""
  try:
    image.getexif()
  except _DAMAGED:
    image.info.pop("exif", None)
  return ImageOps.exif_transpose(image)


def _clear(transparency: Any, layout: Any) -> Any:
  """What PNG says is transparent, in the 8 bits of decoded pixels.

  Pillow widens samples of 2 and 4 bits, but not the transparent colour. Its
  `layout` of the file's samples says which it was.
  """
  match layout:
    case "L;2":
      return transparency and (transparency & 3) * 85
    case "L;4":
      return transparency and (transparency & 15) * 17
  return transparency


def _low_bytes(source: str | os.PathLike[str] | io.BytesIO) -> Image.Image:
  """The lower 8 bits of a PNG of 16-bit RGB; Pillow keeps the upper ones."""
  with Image.open(source, formats=FORMATS) as image:
    # In the other order of bytes, the lower ones are the upper ones.
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    return _upright(image)


def _chunks(
  source: str | os.PathLike[str] | io.BytesIO,
) -> Iterator[tuple[bytes, int, BinaryIO]]:
  """Name and length of each chunk of a PNG, and the file at its content."""
  with contextlib.ExitStack() as stack:
    if isinstance(source, io.BytesIO):
      file = io.BytesIO(source.getvalue())
    else:
      file = stack.enter_context(open(source, "rb"))
    start = 8
    while True:
      file.seek(start)
      head = file.read(8)
      if len(head) < 8:
        return
      length, name = struct.unpack(">I4s", head)
      yield name, length, file
      start += 12 + length  # with the head and a checksum


def _check_rows(source: str | os.PathLike[str] | io.BytesIO) -> None:
  """ValueError if a PNG has too few rows; Pillow leaves the others black."""
  expected = found = skipped = 0
  # The two bytes before the data are skipped: no checksum behind it then.
  stream = zlib.decompressobj(-zlib.MAX_WBITS)
  for name, left, file in _chunks(source):
    if name == b"IHDR":
      expected = _row_bytes(*struct.unpack(">IIBBBBB", file.read(13)))
    while name == b"IDAT" and found < expected:
      data = file.read(min(left, _PIECE))
      if not data:
        break
      left -= len(data)
      start = min(2 - skipped, len(data))
      skipped, data = skipped + start, data[start:]
      while data and found < expected:
        found += len(stream.decompress(data, _PIECE))
        data = stream.unconsumed_tail
  if found < expected:
    raise ValueError(
      f"image file is truncated ({found} of {expected} bytes of pixels)"
    )


def _check_palette(
  source: str | os.PathLike[str] | io.BytesIO, indices_HW: np.ndarray
) -> None:
  """ValueError if a PNG lacks colours that it uses; Pillow shows black."""
  count = 0
  for name, length, _ in _chunks(source):
    if name in (b"PLTE", b"IDAT"):
      count = length // 3 if name == b"PLTE" else 0
      break
  if not count:
    raise ValueError("its palette is missing")
  if (highest := int(indices_HW.max())) >= count:
    raise ValueError(
      f"a pixel has colour {highest} of a palette whose last is {count - 1}"
    )


def _row_bytes(
  width: int,
  height: int,
  bits: int,
  kind: int,
  compression: int,
  filtering: int,
  interlaced: int,
) -> int:
  """Bytes of a PNG's rows before they are compressed, by its header."""
  del compression, filtering  # there is one of each
  pixel = bits * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
  total = 0
  for x, y, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
    columns, rows = -((x - width) // across), -((y - height) // down)
    if columns > 0 and rows > 0:
      total += rows * (1 + -(-columns * pixel // 8))  # and a filter's number
  return total


def _code_points(
  source: str | os.PathLike[str] | io.BytesIO,
) -> tuple[int, ...] | None:
  """Primaries, transfer, matrix and range in a PNG's `cICP` chunk."""
  for name, length, file in _chunks(source):
    if name in (b"IDAT", b"IEND"):
      break
    if name == b"cICP" and length == 4:
      return tuple(file.read(4))
  return None


def _from_code_points(
  colors: Image.Image,
  code_points: tuple[int, ...] | None,
  low: Image.Image | None,
) -> np.ndarray | None:
  """image_HWC in sRGB; None if there are no code points or unknown ones."""
  match code_points:
    case (primaries, transfer, 0, 1) if colors_lib.known(primaries, transfer):
      upper_HWC = np.asarray(colors.convert("RGB"))
      lower_HWC = upper_HWC if low is None else np.asarray(low)
    case _:
      return None
  image_HWC = np.empty_like(upper_HWC)
  for row in range(0, len(image_HWC), _BAND):
    band = slice(row, row + _BAND)
    signal_HWC = upper_HWC[band].astype(np.uint16) * 256 + lower_HWC[band]
    image_HWC[band] = colors_lib.from_code_points(
      signal_HWC, primaries, transfer
    )
  return image_HWC


def _split(
  image: Image.Image, transparency: Any, low: Image.Image | None
) -> tuple[Image.Image, np.ndarray | None]:
  """Colours of 8 bits (L, RGB or CMYK), and alpha_HW in [0, 1] if it has any.

  Args:
    image: decoded.
    transparency: what PNG says besides an alpha channel, or None: the colour
      that is transparent, or the alpha of each entry of a palette.
    low: the lower bits of pixels of 16.
  """
  if image.mode.startswith("I"):
    values_HW = np.asarray(image, np.int64).clip(0, 65_535)
    grey = Image.fromarray(np.rint(values_HW / 257).astype(np.uint8))
    if transparency is None:
      return grey, None
    return grey, (values_HW != transparency).astype(np.float32)
  if image.mode == "1":
    image = image.convert("L")
  if image.mode in ("P", "PA"):
    image = image.convert("RGB" if transparency is None else "RGBA")
  elif transparency is not None and image.mode in ("L", "RGB"):
    pixels_HWC = np.asarray(image).reshape(image.height, image.width, -1)
    if low is not None:
      pixels_HWC = pixels_HWC.astype(np.uint16) * 256 + np.asarray(low)
    clear = np.atleast_1d(transparency)
    return image, (pixels_HWC != clear).any(-1).astype(np.float32)
  if image.mode in ("LA", "RGBA"):
    alpha_HW = np.asarray(image.getchannel("A"), np.float32) / 255
    return image.convert(image.mode[:-1]), alpha_HW
  return image, None


def _from_profile(
  colors: Image.Image, profile: bytes
) -> tuple[Image.Image, str]:
  """The colours in sRGB, and a note if the profile is of no use."""
  if len(profile) > _MAX_PROFILE:
    return colors, _ignored(f"it has {len(profile)} bytes")
  try:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    described: Any = source.profile
    space = described.xcolor_space.strip()
    if described.device_class not in _DEVICES:
      return colors, _ignored("its class is not supported")
    if (colors.mode, space) == ("L", "RGB"):
      colors = colors.convert("RGB")
    if _SPACES.get(colors.mode) != space:
      return colors, _ignored(
        f"it is for {untrusted.printable(space)}, the pixels are"
        f" {_SPACES.get(colors.mode, colors.mode)}"
      )
    transform = ImageCms.buildTransform(
      source,
      ImageCms.createProfile("sRGB"),
      colors.mode,
      "RGB",
      ImageCms.Intent.RELATIVE_COLORIMETRIC,
      ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if _changes_nothing(transform, colors.mode):
      return colors, ""
    converted = ImageCms.applyTransform(colors, transform)
  except (ImageCms.PyCMSError, ImportError, OSError, ValueError) as error:
    return colors, _ignored(str(error))
  assert converted is not None  # only of a transform in place
  return converted, ""


def _ignored(why: str) -> str:
  return (
    f"its colour profile is ignored ({untrusted.printable(why)}); colours are"
    " read as sRGB"
  )


def _changes_nothing(transform: Any, mode: str) -> bool:
  """Whether it is sRGB's own profile, but for rounding."""
  if mode == "CMYK":
    return False
  levels = np.arange(0, 256, 17, dtype=np.uint8)
  if mode == "RGB":
    levels = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 1, 3)
  else:
    levels = levels[:, None]
  made = ImageCms.applyTransform(Image.fromarray(levels), transform)
  before = np.asarray(Image.fromarray(levels).convert("RGB"), int)
  return np.abs(np.asarray(made, int) - before).max() <= 1


def _unprofiled(colors: Image.Image, info: Mapping[Any, Any]) -> str:
  """A note on colours that are taken for sRGB and may be others."""
  if colors.mode == "CMYK":
    return "CMYK without a colour profile: colours are approximate"
  if "srgb" in info:
    return ""
  gamma, primaries = info.get("gamma"), info.get("chromaticity")
  if (gamma is not None and not abs(gamma - 1 / 2.2) < 0.01) or (
    primaries is not None and not np.allclose(primaries, _SRGB, atol=0.005)
  ):
    return "its PNG gamma and primaries are ignored; colours are read as sRGB"
  return ""


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


def fit(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
  """Make a frame of some size from a picture: its middle, as large as it can.

  Args:
    image_HWC: uint8 RGB of any size.
    height: rows of the frame.
    width: columns of the frame.

  Returns:
    float32 RGB, about [-1, 1].
  """
  rows, columns = image_HWC.shape[:2]
  how = fitting.crop(rows, columns, height, width)
  scaled_HWC = image_HWC.astype(np.float32) / np.float32(127.5) - np.float32(1)
  return how.apply(resize_bicubic(scaled_HWC, *how.resized))


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
