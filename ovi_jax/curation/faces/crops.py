"""Crops of face tracks, and the file "faces.npz" that stores those of a clip.

Crops are made from a clip's frames at 25 fps and face tracks with boxes at 24
fps. They are 224 x 224, positioned and scaled as in SyncNet's training
(`run_pipeline.py` of joonson/syncnet_python). The file has four arrays:

  jpeg:  uint8 [bytes]; all crops as JPEG, RGB, concatenated
  ends:  int64 [crops]; end offset of each crop in `jpeg`
  first: int64 [tracks]; index of a track's first frame at 25 fps, from the
    beginning of the clip
  count: int64 [tracks]; crops per track

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
SCALE = 0.4  # margin relative to the face size; twice that below
_GREY = 110  # fill value outside the frame
_QUALITY = 90


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackCrops:
  """The crops of one track.

  Attributes:
    first: index of the first frame, at 25 fps from the clip's beginning.
    frames_THWC: uint8 RGB [frames, 224, 224, 3].
  """

  first: int
  frames_THWC: np.ndarray


def crop_tracks(
  frames: Sequence[np.ndarray],
  tracks: Sequence[Mapping[str, Any]],
) -> list[TrackCrops]:
  """Crop the faces of a clip.

  Args:
    frames: uint8 RGB [height, width, 3], all frames of the clip at 25 fps
      (`stage.Media.frames_25fps`).
    tracks: tracks of the stage `face_tracks`: `start_frame`, and `boxes` with
      [top, left, height, width] in pixels for every frame at 24 fps.

  Returns:
    The crops of every track that contains at least one frame.

  Raises:
    ValueError: a track exceeds the clip.
  """
  made = []
  for track in tracks:
    start, boxes = int(track["start_frame"]), track["boxes"]
    pairs = [
      (index, place - start)
      for index in range(len(frames))
      if start <= (place := nearest_frame(index)) < start + len(boxes)
    ]
    last = round(len(frames) * geometry.FPS / FPS)
    if start < 0 or start + len(boxes) > last:
      raise ValueError(
        f"face track: expected frames 0 to {last}, got {start} to"
        f" {start + len(boxes)}; run face_tracks again on this clip"
      )
    if pairs:
      cut = [crop(frames[index], boxes[box]) for index, box in pairs]
      made.append(TrackCrops(first=pairs[0][0], frames_THWC=np.stack(cut)))
  return made


def nearest_frame(index: Any) -> Any:
  """Index at 24 fps of the frame nearest to an index at 25 fps.

  Args:
    index: index or array of indices at 25 fps; ties go to the later frame.
  """
  return (2 * index * geometry.FPS + FPS) // (2 * FPS)


def crop(frame_HWC: np.ndarray, box: Sequence[float]) -> np.ndarray:
  """The square crop of a face for SyncNet.

  Args:
    frame_HWC: uint8 RGB.
    box: [top, left, height, width] of the face in pixels.

  Returns:
    uint8 [224, 224, 3], grey outside the frame.
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
  """A part of a frame, grey outside of it."""
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
  """The file of a clip's crops, which may be empty."""
  frames = [_jpeg(f) for track in tracks for f in track.frames_THWC]
  file = io.BytesIO()
  np.savez(
    file,
    jpeg=np.frombuffer(b"".join(frames), np.uint8),
    ends=np.cumsum([len(p) for p in frames], dtype=np.int64),
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
  """Read a file of `pack`.

  Raises:
    ValueError: the file is damaged or of another kind.
  """
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      jpeg, ends, first, count = (
        file[name] for name in ("jpeg", "ends", "first", "count")
      )
    if len(first) != len(count) or count.sum() != len(ends):
      raise ValueError(f"{count} frames of tracks, {len(ends)} in all")
    frames = [_picture(p) for p in np.split(jpeg, ends[:-1]) if len(p)]
    if len(frames) != len(ends):
      raise ValueError(f"{len(ends)} frames, {len(frames)} not empty")
  except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"expected faces.npz of the stage encode: {error}; delete its output and"
      " run it again"
    ) from error
  ends_of_tracks = np.cumsum(count)
  return [
    TrackCrops(first=int(f), frames_THWC=np.stack(frames[end - n : end]))
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
