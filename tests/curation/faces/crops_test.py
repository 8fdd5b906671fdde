"""Face crops: frames, geometry and file format."""

import time

import numpy as np
import pytest

from ovi_jax.curation.faces import crops

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")


def at_25(frames_THWC: np.ndarray) -> np.ndarray:
  """The pictures of frames at 24 fps."""
  count = round(len(frames_THWC) * 25 / 24)
  return frames_THWC[crops.nearest_frame(np.arange(count))]


def numbered(frames: int, height: int = 40, width: int = 60) -> np.ndarray:
  """Frames of which each is as bright as its number."""
  values = np.arange(frames, dtype=np.uint8)[:, None, None, None]
  return np.broadcast_to(values, (frames, height, width, 3))


def test_crops_use_the_frames_nearest_in_time():
  track = {"start_frame": 0, "boxes": [[10, 20, 10, 10]] * 121}
  (made,) = crops.crop_tracks(at_25(numbered(121)), [track])
  assert made.first == 0
  # 121 frames at 24 fps last 5.04 s.
  assert made.frames_THWC.shape == (126, 224, 224, 3)
  shown = made.frames_THWC[:, 112, 112, 0].astype(int)
  times = np.arange(126) / 25
  assert np.abs(shown / 24 - times).max() <= 0.5 / 24 + 1e-9
  assert (np.diff(shown) >= 0).all() and shown[-1] == 120


def test_a_track_starts_at_its_own_time():
  track = {"start_frame": 48, "boxes": [[10, 20, 10, 10]] * 24}
  (made,) = crops.crop_tracks(at_25(numbered(121)), [track])
  assert made.first == 50
  assert made.frames_THWC[0, 112, 112, 0] == 48
  assert len(made.frames_THWC) == 25


def test_the_face_is_placed_as_syncnet_expects():
  # The crop of a box of 20 is 28 across: 4 either side, and from its top 28.
  frames_THWC = np.zeros((1, 60, 60, 3), np.uint8)
  frames_THWC[0, 10:30, 20:40] = 200
  track = {"start_frame": 0, "boxes": [[10, 20, 20, 20]]}
  (made,) = crops.crop_tracks(at_25(frames_THWC), [track])
  face_HW = made.frames_THWC[0, :, :, 0] > 100
  rows, columns = np.where(face_HW.any(1))[0], np.where(face_HW.any(0))[0]
  np.testing.assert_allclose([rows[0], rows[-1]], [0, 160], atol=4)
  np.testing.assert_allclose([columns[0], columns[-1]], [32, 191], atol=4)


def test_pixels_outside_the_frame_are_grey():
  track = {"start_frame": 0, "boxes": [[0, 0, 40, 40]]}
  (made,) = crops.crop_tracks(at_25(numbered(1)), [track])
  assert made.frames_THWC[0, 100, 0, 0] == 110
  assert made.frames_THWC[0, 223, 112, 0] == 110
  assert made.frames_THWC[0, 100, 112, 0] == 0
  far = {"start_frame": 0, "boxes": [[500, 500, 10, 10]]}
  (made,) = crops.crop_tracks(at_25(numbered(1)), [far])
  assert (made.frames_THWC == 110).all()


def test_a_track_beyond_the_clip_is_refused():
  track = {"start_frame": 3, "boxes": [[0, 0, 5, 5]] * 3}
  with pytest.raises(ValueError, match="frames 0 to 5, got 3 to 6"):
    crops.crop_tracks(at_25(numbered(5)), [track])


def two_tracks() -> list[crops.TrackCrops]:
  rows, columns = np.mgrid[0:224, 0:224]
  picture = np.stack([rows, columns, (rows + columns) // 2], -1)
  frames_THWC = np.stack([picture, picture[::-1]]).astype(np.uint8)
  return [
    crops.TrackCrops(first=7, frames_THWC=frames_THWC),
    crops.TrackCrops(first=60, frames_THWC=frames_THWC[1:]),
  ]


def test_the_file_holds_the_crops(monkeypatch):
  made = two_tracks()
  content = crops.pack(made)
  back = crops.unpack(content)
  assert [t.first for t in back] == [7, 60]
  for ours, theirs in zip(back, made, strict=True):
    assert ours.frames_THWC.shape == theirs.frames_THWC.shape
    wrong = ours.frames_THWC.astype(int) - theirs.frames_THWC
    assert np.abs(wrong).max() <= 4  # JPEG
  monkeypatch.setattr(time, "time", lambda: 2e9)
  assert crops.pack(made) == content
  assert crops.unpack(crops.pack([])) == []


@pytest.mark.parametrize("damage", [b"", b"nothing", None])
def test_a_damaged_file_is_refused(damage):
  content = crops.pack(two_tracks())[:-30] if damage is None else damage
  with pytest.raises(ValueError, match=r"expected faces\.npz"):
    crops.unpack(content)
