"""Files of other people, opened so that they can do no harm.

A file is opened as bytes, not by its name: no name is taken for an address,
and only formats that hold their media themselves are read; a playlist could
make a decoder open other files or the network. Frames larger than a limit are
not decoded. What a decoder makes of damaged packets is left out. Also here: how
a frame is to be shown, its orientation (display matrix of ISO/IEC 14496-12) and
the shape of its pixels.
"""

import contextlib
import dataclasses
import hashlib
import io
import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av import error as av_error
from av.sidedata import sidedata
from av.stream import Disposition

from ovi_jax import storage
from ovi_jax import untrusted

# Demuxers of self-contained files. No playlists, no pictures, no raw streams,
# whose frames have no times.
FORMATS = (
  "mov,matroska,avi,mpegts,mpeg,flv,asf,ogg,mxf,dv,rm,wav,w64,mp3,flac,aac,"
  "ac3,aiff,au,caf,amr,ape,wv"
)
# Those that keep no times of presentation. FFmpeg guesses them, and is wrong
# where frames are coded in another order (B-frames).
_GUESSED = ("avi",)
# Pixels of a frame that is decoded: 0.1 GB of 4:2:0, and decoders hold several.
MAX_AREA = 8192 * 8192
# Decoders count the rows and columns that pad a frame to whole blocks.
_PADDING = 128
# First bytes of pictures that are called a clip by mistake.
_PICTURES = {
  b"\x89PNG": "a PNG picture",
  b"\xff\xd8\xff": "a JPEG picture",
  b"GIF8": "a GIF picture",
}
_COVER = Disposition.attached_pic
_BLOCK = 1 << 20  # bytes hashed at once
_BOX = struct.Struct(">I4s")  # of mp4: its length and name; RIFF's is as long
_LONG_BOX = 16  # bytes, with a length of 64 bits
_HEAD = 64  # bytes that hold the first boxes of most files
_MAX_BOXES = 10_000  # that are looked at
# Names of boxes that may follow the first ones.
_BOXES = {
  *(b"moov", b"mdat", b"moof", b"mfra", b"free", b"skip", b"wide", b"uuid"),
  *(b"meta", b"sidx", b"ssix", b"styp", b"udta", b"emsg", b"prft", b"pdin"),
}
# RIFF sizes from here on stand for a size that the writer did not know.
_UNKNOWN_SIZE = 0x7FFFF000
_MATRIX = struct.Struct("=9i")


class DamagedError(ValueError):
  """A file's content, not its storage, keeps it from being read."""


Source = str | os.PathLike[str] | io.BytesIO


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Any]:
  """Open a container for reading; Any for PyAV's.

  Args:
    source: a file's path, or a file's bytes.

  Raises:
    DamagedError: it is empty, damaged, or of a format that is not read.
    OSError: it cannot be read.
  """
  with contextlib.ExitStack() as stack:
    if isinstance(source, io.BytesIO):
      source.seek(0)
      file, size = source, source.getbuffer().nbytes
    else:
      _check_regular(source)
      file = stack.enter_context(open(source, "rb"))
      size = os.fstat(file.fileno()).st_size
    if not size:
      raise DamagedError("the file is empty")
    try:
      container = stack.enter_context(
        av.open(
          file,
          options={
            "format_whitelist": FORMATS,
            # Nothing beside the open file, whatever a demuxer asks for.
            "protocol_whitelist": "none",
          },
          metadata_errors="replace",
        )
      )
    except av_error.FFmpegError as error:
      file.seek(0)
      start = file.read(512)
      if found := _other(start):
        raise DamagedError(f"expected a media file, found {found}") from error
      if (
        start[4:8] == b"ftyp"
      ):  # what says where frames are is often at the end
        raise DamagedError(
          "it is damaged or its end is missing; copy or download it again"
        ) from error
      # Not all of the error: it has the file's name, which may be a copy's.
      raise DamagedError(
        f"expected a file of one of the formats {FORMATS}: {error.strerror}"
      ) from error
    yield container


def check_whole(path: storage.AnyPath) -> None:
  """Refuse an mp4, mov or wav that is shorter than it says; reads headers.

  Args:
    path: of any file; one of another format is not looked into.

  Raises:
    DamagedError: its end is missing; says how much of it is there.
    OSError: it cannot be read.
  """
  size = storage.size(path)
  needed = _declared_size(path, size)
  if needed > size:
    raise DamagedError(
      f"it is cut off after {size} bytes of at least {needed}; copy or download"
      " it again"
    )


def _declared_size(path: storage.AnyPath, size: int) -> int:
  """Bytes that a file has by its own headers; 0 if they do not say."""
  if size < _BOX.size:
    return _BOX.size
  start = storage.read_ranges(path, [(0, min(size, _HEAD))])[0]
  if start[:4] == b"RIFF" and start[8:12] == b"WAVE":
    declared = int.from_bytes(start[4:8], "little")
    if declared == 0 or declared >= _UNKNOWN_SIZE:
      return 0  # writers of streams cannot know it
    return _BOX.size + declared - 1  # the pad byte of the end may be missing
  if start[4:8] != b"ftyp":
    return 0
  at, names = 0, set()
  for _ in range(_MAX_BOXES):
    if at >= size:
      break
    head = start[at : at + _LONG_BOX]
    if len(head) < min(_LONG_BOX, size - at):
      (head,) = storage.read_ranges(path, [(at, min(size, at + _LONG_BOX))])
    name = head[4 : _BOX.size]
    if {b"moov", b"mdat"} <= names and name not in _BOXES:
      return at  # what follows the last box is not of the file
    if len(head) < _BOX.size:
      return at + _BOX.size
    length, name = _BOX.unpack(head[: _BOX.size])
    names.add(name)
    if length == 1:  # of 64 bits, behind the name
      if len(head) < _LONG_BOX:
        return at + _LONG_BOX
      length = int.from_bytes(head[_BOX.size : _LONG_BOX])
    if length == 0:  # as far as the file goes
      at = size
      break
    if length < _BOX.size:
      return 0
    at += length
  # Without it nothing is found in the others.
  return at if at > size or b"moov" in names else at + _BOX.size


def _other(start: bytes) -> str:
  """What a file is that is no media file, by its first bytes; "" if unknown."""
  pictures = (
    name for magic, name in _PICTURES.items() if start.startswith(magic)
  )
  return untrusted.substitute(start) or next(pictures, "")


def _check_regular(path: str | os.PathLike[str]) -> None:
  """OSError if opening it may wait for ever, or there is nothing to open."""
  if kind := untrusted.irregular(path):
    raise OSError(f"expected a regular file, found {kind}")


def given(setting: str, path: str | os.PathLike[str]) -> pathlib.Path:
  """A file that a setting names.

  Args:
    setting: its name, for the error.
    path: its value.

  Returns:
    The path.

  Raises:
    ValueError: there is no such file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"{setting}: no such file: {path}")
  return path


def digest(path: str | os.PathLike[str]) -> str:
  """SHA-256 of a file, in hexadecimal figures."""
  _check_regular(path)
  value = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      value.update(block)
  return value.hexdigest()


def origin(container: Any) -> float:
  """Seconds on the container's own clock at which the file begins."""
  return (container.start_time or 0) / av.time_base


def pictures(container: Any) -> Any:
  """The first stream of video that is no cover of a sound file, or None."""
  return next(
    (s for s in container.streams.video if not s.disposition & _COVER), None
  )


def check_area(stream: Any, max_area: int) -> None:
  """Refuse a stream of pictures by the size in its header.

  Raises:
    DamagedError: its frames have more pixels than `max_area`.
  """
  size = stream.codec_context.width, stream.codec_context.height
  if size[0] * size[1] > max_area:
    raise DamagedError(
      f"expected frames of at most {max_area} pixels, found {size[0]}x{size[1]}"
    )


def times(container: Any, stream: Any, max_frames: int) -> np.ndarray:
  """When frames are shown, by their packets; nothing is decoded.

  Args:
    container: that is open; it is read to its end.
    stream: of pictures.
    max_frames: that are read.

  Returns:
    [packets] float64, seconds on the container's clock in rising order.
    Packets without a time and those that an edit list leaves out are not in.

  Raises:
    DamagedError: the packets cannot be read to their end, or are more than
      `max_frames`.
  """
  found = []
  try:
    for packet in container.demux(stream):
      stamp = packet.dts if packet.pts is None else packet.pts
      if packet.size and not packet.is_discard and stamp is not None:
        found.append(stamp * stream.time_base)
      if len(found) > max_frames:
        raise DamagedError(f"expected at most {max_frames} frames, found more")
  except av_error.FFmpegError as error:
    raise DamagedError(f"packets end too early: {error.strerror}") from error
  return np.sort(np.array(found, np.float64))


def frames(
  container: Any, stream: Any, max_area: int = MAX_AREA
) -> Iterator[tuple[float, Any, bool]]:
  """Decode a stream.

  Args:
    container: that is open.
    stream: of pictures or sound.
    max_area: pixels of a frame; larger ones are not decoded.

  Yields:
    Seconds from the file's beginning, never less than those of the frame
    before; the frame; and whether something is missing just before it.

  Raises:
    DamagedError: frames are too large, by the header.
  """
  if stream.type == "video":
    check_area(stream, max_area)
    if not stream.codec_context.is_open:
      # The sizes in the pictures themselves may be others.
      most = 2 * max_area + _PADDING**2
      stream.codec_context.options = {"max_pixels": str(most)}
  stream.codec_context.thread_count = (
    1  # the work is spread over clips, not within them
  )
  start, last = origin(container), -math.inf
  length, broken = 0.0, False
  for found in _packets(container, stream):
    if found is None:
      broken = True
      continue
    for frame in found:
      stamp = _stamp(container, stream, frame, first=last == -math.inf)
      # A file without time stamps: each frame follows the one before.
      time = last + length if stamp is None else stamp - start
      if not math.isfinite(time):
        time = 0.0
      if frame.is_corrupt or time < last:
        broken = True
        continue
      yield time, frame, broken
      last, broken = time, False
      length = _length(stream, frame)


def _packets(container: Any, stream: Any) -> Iterator[list[Any] | None]:
  """The frames of each packet, None for a packet that is damaged."""
  packets = container.demux(stream)
  while True:
    try:
      packet = next(packets)
    except StopIteration:
      return
    except av_error.FFmpegError:
      # What follows cannot be found any more: the file ends here.
      return
    try:
      yield packet.decode()
    except av_error.FFmpegError:
      yield None


def _stamp(
  container: Any, stream: Any, frame: Any, first: bool
) -> float | None:
  """Seconds on the container's clock that a frame is shown at, if it says so.

  Where times are guesses, that is when the decoder gives the frame, of which
  the last ones come when all packets are read and there is no time any more.
  """
  guessed = container.format.name in _GUESSED and stream.type == "video"
  if not guessed or (first and frame.dts is None):
    return frame.time
  return None if frame.dts is None else float(frame.dts * stream.time_base)


def _length(stream: Any, frame: Any) -> float:
  """Seconds that a frame lasts, for streams without time stamps."""
  if stream.type == "audio":
    return frame.samples / frame.sample_rate
  return 1 / float(stream.guessed_rate or stream.average_rate or 25)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orientation:
  """How a coded frame is oriented: first transposed, then flipped.

  Attributes:
    transposed: rows become columns.
    rows: their order is reversed.
    columns: likewise.
  """

  transposed: bool = False
  rows: bool = False
  columns: bool = False

  @property
  def degrees(self) -> int:
    """Clockwise turn, after mirroring from left to right if `mirrored`."""
    if self.transposed:
      return 90 if self.columns else 270
    return 180 if self.rows else 0

  @property
  def mirrored(self) -> bool:
    """Whether left and right are exchanged too."""
    return self.transposed ^ self.rows ^ self.columns

  def apply(self, frame_HWC: np.ndarray) -> np.ndarray:
    """The frame as it is shown; a view."""
    if self.transposed:
      frame_HWC = frame_HWC.swapaxes(0, 1)
    rows = slice(None, None, -1 if self.rows else 1)
    columns = slice(None, None, -1 if self.columns else 1)
    return frame_HWC[rows, columns]


def orientation(frame: Any) -> Orientation:
  """The orientation of a frame; rotations are rounded to 90 degrees."""
  matrix = next(
    (s for s in frame.side_data if s.type is sidedata.Type.DISPLAYMATRIX), None
  )
  if matrix is None or matrix.buffer_size < _MATRIX.size:
    return Orientation()
  # The place (x, y) is shown at (a·x + c·y, b·x + d·y).
  a, b, _, c, d, *_ = _MATRIX.unpack(bytes(matrix)[: _MATRIX.size])
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return Orientation(rows=d < 0, columns=a < 0)
  return Orientation(transposed=True, rows=b < 0, columns=c < 0)


def shown_size(stream: Any, frame: Any) -> tuple[int, int]:
  """Rows and columns of a frame in square pixels, before it is turned.

  Pixels that are not square are stretched, never squeezed.
  """
  rows, columns = frame.height, frame.width
  aspect = float(stream.sample_aspect_ratio or 1)
  if aspect > 1:
    return rows, max(1, round(columns * aspect))
  if 0 < aspect < 1:
    return max(1, round(rows / aspect)), columns
  return rows, columns


def limited_size(rows: int, columns: int, area: int) -> tuple[int, int]:
  """The size, made smaller to at most `area` pixels, the aspect kept."""
  if rows * columns <= area:
    return rows, columns
  scale = math.sqrt(area / (rows * columns))
  return max(1, int(rows * scale)), max(1, int(columns * scale))
