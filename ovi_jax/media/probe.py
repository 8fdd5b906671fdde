"""Properties of a media file, from its header, first frame and packets.

Only the first frame is decoded.
"""

import dataclasses
import math
import os
from typing import Any

from av import error as av_error

from ovi_jax.media import colors
from ovi_jax.media import container as containers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """Properties of a file.

  Attributes:
    width: pixels of an upright frame, square ones; 0 without video.
    height: likewise.
    rotation: degrees clockwise that a coded frame is turned by for display.
    mirrored: whether left and right are exchanged too.
    fps: average frames a second, by the header; 0 if it does not say.
    codec: of the video, or of the sound where there is none.
    color_transfer: of `colors.TRANSFERS`, "" without video.
    has_video: whether there is a video stream that is no cover picture.
    has_audio: whether there is a sound track.
    duration: seconds by the header, or by packets where it says none.
    unsupported: colours that `colors` cannot read; empty if none.
    interlaced: whether the first frame is interlaced.
  """

  width: int = 0
  height: int = 0
  rotation: int = 0
  mirrored: bool = False
  fps: float = 0.0
  codec: str = ""
  color_transfer: str = ""
  has_video: bool
  has_audio: bool
  duration: float
  unsupported: str = ""
  interlaced: bool = False

  @property
  def hdr(self) -> bool:
    """Whether the video is PQ or HLG."""
    return self.color_transfer in (
      colors.TRANSFERS[colors.PQ],
      colors.TRANSFERS[colors.HLG],
    )


def read(path: str | os.PathLike[str], video: bool = True) -> Facts:
  """Read header and first frame.

  Args:
    path: the file.
    video: whether its video is wanted; it is ignored if not.

  Returns:
    Properties of the file.

  Raises:
    DamagedError: it has neither video nor sound, or no frame can be decoded.
    OSError: it cannot be read.
  """
  with containers.opened(path) as container:
    stream, audio = containers.pictures(container), container.streams.audio
    if stream is None and not audio:
      raise containers.DamagedError("expected pictures or sound, found neither")
    for each in (stream, *audio[:1]):
      if each is not None and each.codec_context is None:
        raise containers.DamagedError(
          f"expected a codec that can be decoded in stream {each.index}"
        )
    facts: dict[str, Any] = {
      "has_video": stream is not None and video,
      "has_audio": bool(audio),
      "duration": _duration(path, container),
    }
    if facts["has_video"]:
      facts |= _video(container, stream)
    elif audio:
      facts["codec"] = audio[0].codec_context.name
    return Facts(**facts)


def _video(container: Any, stream: Any) -> dict[str, Any]:
  """What the first frame says that can be decoded."""
  found = next(containers.frames(container, stream), None)
  if found is None:
    raise containers.DamagedError("no video frame can be decoded")
  _, frame, _ = found
  rows, columns = containers.shown_size(stream, frame)
  turn = containers.orientation(frame)
  if turn.transposed:
    rows, columns = columns, rows
  return {
    "width": columns,
    "height": rows,
    "rotation": turn.degrees,
    "mirrored": turn.mirrored,
    "fps": round(float(stream.average_rate or stream.guessed_rate or 0), 6),
    "codec": stream.codec_context.name,
    "color_transfer": colors.TRANSFERS.get(frame.color_trc, "unknown"),
    "unsupported": colors.unsupported(frame),
    "interlaced": bool(frame.interlaced_frame),
  }


def _duration(path: str | os.PathLike[str], container: Any) -> float:
  """By the header; of files without one, by the times of their packets."""
  if container.duration:
    return round(container.duration / 1e6, 6)
  return seconds(path)


def seconds(path: str | os.PathLike[str], kind: str | None = None) -> float:
  """Find where a file, or one stream of it, ends; see `span`."""
  return span(path, kind)[1]


def span(
  path: str | os.PathLike[str], kind: str | None = None
) -> tuple[float, float]:
  """Find where a file, or one stream of it, begins and ends.

  Reads all packets. Headers give the length of the longest stream, and of a
  truncated file the length that it had.

  Args:
    path: the file.
    kind: "video" or "audio" for that stream alone.

  Returns:
    Seconds from the file's beginning to the first packet, at least 0, and to
    the end of the last one; zeros without such a stream.
  """
  with containers.opened(path) as container:
    last = start = containers.origin(container)
    first = math.inf
    streams = list(container.streams)
    if kind == "video":
      streams = [containers.pictures(container)]
    elif kind == "audio":
      streams = list(container.streams.audio[:1])
    if not streams or streams[0] is None:
      return 0.0, 0.0
    packets = container.demux(*streams)
    while True:
      try:
        packet = next(packets)
      except (StopIteration, av_error.FFmpegError):
        begin = min(max(first, start), last)
        return round(begin - start, 6), round(last - start, 6)
      # Some containers have no times of presentation, see `container`.
      time = packet.dts if packet.pts is None else packet.pts
      if time is not None and packet.time_base and not packet.is_discard:
        end = float((time + _ticks(packet)) * packet.time_base)
        last = max(last, end)
        first = min(first, float(time * packet.time_base))


def _ticks(packet: Any) -> int:
  """How long a packet lasts, in its time base."""
  if packet.duration:
    return packet.duration
  stream = packet.stream
  rate = stream.guessed_rate if stream.type == "video" else None
  return round(1 / (rate * packet.time_base)) if rate else 0
