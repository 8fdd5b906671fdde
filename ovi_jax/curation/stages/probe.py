"""What a file is, from its header, its first frame and its bytes.

In: a file. Out: the file with its content's hash as id and what it holds, or
why nothing can be made of it. Only the first frame is decoded. Copies of a file
get the same id; leaving them out needs all files and is done where they meet.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from av import error as av_error

from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.media import colors
from ovi_jax.media import container as containers

NAME = "probe"
VERSION = 1
KIND = "clip"
BOUNDS = {
  "too short": ("duration", "least_seconds"),
  "too small": ("area", "least_area"),
  "too large": ("area", "largest_area"),
  "too long and narrow": ("aspect", "largest_aspect"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """What a file must have.

  Attributes:
    video: it must have pictures; without, sound alone will do.
    audio: it must have sound.
    least_seconds: by its header.
    least_area: pixels of an upright frame.
    largest_area: likewise; frames of more may not fit into memory.
    largest_aspect: the longer side over the shorter.
    interlaced: files whose first frame is interlaced are taken.
    hdr: files in PQ or HLG are taken; they are made SDR when read.
  """

  video: bool = True
  audio: bool = True
  least_seconds: float = 5.0
  least_area: int = 720 * 720
  largest_area: int = 8192 * 8192
  largest_aspect: float = 4.0
  interlaced: bool = False
  hdr: bool = True

  def __post_init__(self):
    if not (self.video or self.audio):
      raise ValueError("probe: expected video, audio or both to be wanted")
    if not 0 < self.least_area <= self.largest_area:
      raise ValueError(
        "probe: expected 0 < least_area <= largest_area, got"
        f" {self.least_area} and {self.largest_area}"
      )
    if self.least_seconds < 0 or self.largest_aspect < 1:
      raise ValueError(
        "probe: expected least_seconds >= 0 and largest_aspect >= 1, got"
        f" {self.least_seconds} and {self.largest_aspect}"
      )


def load(config: Config) -> Callable[..., stage.Outcome]:
  """The stage, for files."""

  def probe(clip: clips.Clip, media: stage.Media) -> stage.Outcome:
    if not os.path.getsize(media.path):
      return _reject(clip, "empty file")
    content = containers.digest(media.path)
    try:
      facts = _facts(media.path, config)
    except containers.DamagedError as error:
      return _reject(clip, "damaged or no media", detail=str(error))
    problem = _problem(facts, config)
    if problem is not None:
      reason, score = problem
      return _reject(clip, reason, score, facts["unsupported"])
    del facts["unsupported"], facts["interlaced"]
    found = dataclasses.replace(clip, id=content, seconds=facts["duration"])
    return found.found(NAME, content=content, **facts)

  return probe


def _reject(
  clip: clips.Clip, reason: str, score: float | None = None, detail: str = ""
) -> clips.Reject:
  return clips.Reject(
    clip=clip, stage=NAME, reason=reason, score=score, detail=detail
  )


def _facts(path: str, config: Config) -> dict[str, Any]:
  """What header and first frame say; DamagedError if there is none."""
  with containers.opened(path) as container:
    video, audio = containers.pictures(container), container.streams.audio
    if video is None and not audio:
      raise containers.DamagedError("expected pictures or sound, found neither")
    for stream in (video, *audio[:1]):
      if stream is not None and stream.codec_context is None:
        raise containers.DamagedError(
          f"expected a codec that can be decoded in stream {stream.index}"
        )
    has_video = video is not None and config.video
    facts: dict[str, Any] = {
      "width": 0,
      "height": 0,
      "rotation": 0,
      "mirrored": False,
      "fps": 0.0,
      "codec": "",
      "color_transfer": "",
      "has_video": has_video,
      "has_audio": bool(audio),
      "duration": _seconds(path, container),
      "unsupported": "",
      "interlaced": False,
    }
    if has_video:
      facts |= _video_facts(container, video)
    elif audio:
      facts["codec"] = audio[0].codec_context.name
    return facts


def _video_facts(container: Any, stream: Any) -> dict[str, Any]:
  """What the first frame says that can be decoded."""
  found = next(containers.frames(container, stream), None)
  if found is None:
    raise containers.DamagedError("expected frames of video, none is whole")
  _, frame, _ = found
  rows, columns = containers.shown_size(stream, frame)
  turn = containers.orientation(frame)
  if turn.transposed:
    rows, columns = columns, rows
  transfer = colors.TRANSFERS.get(frame.color_trc, "unknown")
  return {
    "width": columns,
    "height": rows,
    "rotation": turn.degrees,
    "mirrored": turn.mirrored,
    "fps": round(float(stream.average_rate or stream.guessed_rate or 0), 6),
    "codec": stream.codec_context.name,
    "color_transfer": transfer,
    "unsupported": colors.unsupported(frame),
    "interlaced": bool(frame.interlaced_frame),
  }


def _seconds(path: str, container: Any) -> float:
  """By the header; of files without one, by the times of their packets."""
  if container.duration:
    return round(container.duration / 1e6, 6)
  with containers.opened(path) as again:
    last = start = containers.origin(again)
    packets = again.demux()
    while True:
      try:
        packet = next(packets)
      except (StopIteration, av_error.FFmpegError):
        return round(last - start, 6)
      if packet.pts is not None:
        length = packet.duration or 0
        last = max(last, float((packet.pts + length) * packet.time_base))


def _problem(
  facts: dict[str, Any], config: Config
) -> tuple[str, float | None] | None:
  """Why a file is refused, and the score by which; None if it is not."""
  width, height = facts["width"], facts["height"]
  area = width * height
  hdr = facts["color_transfer"] in (
    colors.TRANSFERS[colors.PQ],
    colors.TRANSFERS[colors.HLG],
  )
  if config.video and not facts["has_video"]:
    return "no video", None
  if config.audio and not facts["has_audio"]:
    return "no sound", None
  if facts["unsupported"] or (hdr and not config.hdr):
    return "unsupported colours", None
  if facts["interlaced"] and not config.interlaced:
    return "interlaced", None
  if facts["duration"] < config.least_seconds:
    return "too short", facts["duration"]
  if not facts["has_video"]:
    return None
  if area < config.least_area:
    return "too small", float(area)
  if area > config.largest_area:
    return "too large", float(area)
  aspect = max(width, height) / min(width, height)
  if aspect > config.largest_aspect:
    return "too long and narrow", aspect
  return None
