"""Crops of face tracks, and the file "faces.npz" that holds those of a clip.

In come a clip's frames at 25 fps and its face tracks, whose boxes are at 24;
out go pictures of 224 x 224 at 25 fps, placed and scaled as SyncNet was trained
on them (`run_pipeline.py` of joonson/syncnet_python). A file has four arrays:

  jpeg:  uint8 [bytes]; all pictures as JPEG, RGB, one after another
  ends:  int64 [pictures]; the byte after each of them
  first: int64 [tracks]; number of a track's first picture, counted at 25 fps
    from the beginning of the clip: its time is first / 25 seconds
  count: int64 [tracks]; pictures of a track

The same crops give the same bytes.
"""

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ovi_jax import geometry
from ovi_jax.curation.media import opencv
from ovi_jax.media import decode
from ovi_jax.media import images

FPS = decode.FPS_25
SIDE = 224
SCALE = 0.4  # of the face's size that is added around it, and twice below
_GREY = 110  # beyond the picture
_QUALITY = 90


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackCrops:
  """The pictures of one track.

  Attributes:
    first: number of the first picture, at 25 fps from the clip's beginning.
    frames_THWC: uint8 RGB [frames, 224, 224, 3].
  """

  first: int
  frames_THWC: np.ndarray


def crop_tracks(
  pictures: Sequence[np.ndarray],
  tracks: Sequence[Mapping[str, Any]],
) -> list[TrackCrops]:
  """Cut the faces out of a clip.

  Args:
    pictures: uint8 RGB [height, width, 3], all of the clip at 25 fps
      (`stage.Media.frames_25fps`).
    tracks: as the stage `people` leaves them: `start_frame`, and in `boxes`
      [top, left, height, width] in pixels for every frame, of 24 a second,
      from there on.

  Returns:
    The crops of every track that is long enough for one picture.

  Raises:
    ValueError: a track reaches beyond the clip.
  """
  made = []
  for track in tracks:
    start, boxes = int(track["start_frame"]), track["boxes"]
    pairs = [
      (number, place - start)
      for number in range(len(pictures))
      if start <= (place := nearest_frame(number)) < start + len(boxes)
    ]
    last = round(len(pictures) * geometry.FPS / FPS)
    if start < 0 or start + len(boxes) > last:
      raise ValueError(
        f"face track: expected frames 0 to {last}, got {start} to"
        f" {start + len(boxes)}; run people again on this clip"
      )
    if pairs:
      cut = [crop(pictures[number], boxes[box]) for number, box in pairs]
      made.append(TrackCrops(first=pairs[0][0], frames_THWC=np.stack(cut)))
  return made


def nearest_frame(number: Any) -> Any:
  """The frame of 24 a second nearest in time to a picture, the later of two.

  Args:
    number: of the picture, at 25 a second; or an array of them.
  """
  return (2 * number * geometry.FPS + FPS) // (2 * FPS)


def crop(frame_HWC: np.ndarray, box: Sequence[float]) -> np.ndarray:
  """The square around a face that SyncNet sees.

  Args:
    frame_HWC: uint8 RGB.
    box: [top, left, height, width] of the face in pixels.

  Returns:
    uint8 [224, 224, 3], grey where it reaches beyond the picture.
  """
  top, left, height, width = box
  half = max(height, width, 2) / 2
  centre_row, centre_column = top + height / 2, left + width / 2
  around = half * (1 + SCALE)
  rows = int(centre_row - half), int(centre_row + half * (1 + 2 * SCALE))
  columns = int(centre_column - around), int(centre_column + around)
  return _resize(_cut(frame_HWC, rows, columns))


def _cut(
  frame_HWC: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
  """A part of a picture, grey where it reaches beyond."""
  size = rows[1] - rows[0], columns[1] - columns[0], 3
  part_HWC = np.full(size, _GREY, np.uint8)
  inside, here = [], []
  for (low, high), length in zip(
    (rows, columns), frame_HWC.shape[:2], strict=True
  ):
    begin, end = min(max(low, 0), length), max(0, min(high, length))
    inside.append(slice(begin, max(begin, end)))
    here.append(slice(begin - low, max(begin, end) - low))
  part_HWC[here[0], here[1]] = frame_HWC[inside[0], inside[1]]
  return part_HWC


def _resize(part_HWC: np.ndarray) -> np.ndarray:
  cv2 = opencv.library()
  return cv2.resize(part_HWC, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def pack(tracks: Sequence[TrackCrops]) -> bytes:
  """The file of a clip's crops; also of none."""
  pictures = [_jpeg(f) for track in tracks for f in track.frames_THWC]
  file = io.BytesIO()
  np.savez(
    file,
    jpeg=np.frombuffer(b"".join(pictures), np.uint8),
    ends=np.cumsum([len(p) for p in pictures], dtype=np.int64),
    first=np.array([t.first for t in tracks], np.int64),
    count=np.array([len(t.frames_THWC) for t in tracks], np.int64),
  )
  return file.getvalue()


def _jpeg(frame_HWC: np.ndarray) -> bytes:
  file = io.BytesIO()
  picture = Image.fromarray(frame_HWC)
  picture.save(file, "JPEG", quality=_QUALITY)
  return file.getvalue()


def unpack(content: bytes) -> list[TrackCrops]:
  """The crops that `pack` made a file of.

  Raises:
    ValueError: the file is damaged or another.
  """
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      jpeg, ends, first, count = (
        file[name] for name in ("jpeg", "ends", "first", "count")
      )
    if len(first) != len(count) or count.sum() != len(ends):
      raise ValueError(f"{count} pictures of tracks, {len(ends)} in all")
    pictures = [_picture(p) for p in np.split(jpeg, ends[:-1]) if len(p)]
    if len(pictures) != len(ends):
      raise ValueError(f"{len(ends)} pictures, {len(pictures)} not empty")
  except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"expected faces.npz as the stage cut writes it: {error}; delete what cut"
      " wrote and run it again"
    ) from error
  ends_of_tracks = np.cumsum(count)
  return [
    TrackCrops(first=int(f), frames_THWC=np.stack(pictures[end - n : end]))
    for f, n, end in zip(first, count, ends_of_tracks, strict=True)
  ]


def _picture(jpeg: np.ndarray) -> np.ndarray:
  """uint8 RGB [224, 224, 3]."""
  picture_HWC, _ = images.read_image(io.BytesIO(jpeg.tobytes()))
  if picture_HWC.shape[:2] != (SIDE, SIDE):
    raise ValueError(
      f"a picture of {picture_HWC.shape[:2]}, expected {SIDE} each way"
    )
  return picture_HWC
