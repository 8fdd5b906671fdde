"""Linking of face boxes into tracks."""

import numpy as np
import pytest

from ovi_jax.curation.faces import crops
from ovi_jax.curation.faces import tracks

RULES = {
  "min_iou": 0.3,
  "max_gap": 24,
  "min_length": 24,
  "smoothing_window": 1,
}


def face(
  left: float, top: float = 10.0, size: float = 40.0
) -> tracks.Detection:
  return tracks.Detection((top, left, size, size), 0.99)


def test_missing_boxes_are_interpolated():
  frames = list(range(0, 49, 8))
  found = [[face(float(f))] for f in frames]
  (made,) = tracks.link_detections(frames, found, **RULES)
  assert made["start_frame"] == 0
  assert made["boxes"] == [[10.0, float(f), 40.0, 40.0] for f in range(49)]


def test_two_faces_are_two_tracks_in_any_order():
  frames = list(range(0, 33, 8))
  found = [
    [face(0), face(200)] if f % 16 else [face(200), face(0)] for f in frames
  ]
  made = tracks.link_detections(frames, found, **RULES)
  assert [t["boxes"][0][1] for t in made] == [0.0, 200.0]
  assert all(len({b[1] for b in t["boxes"]}) == 1 for t in made)


def test_a_track_bridges_short_gaps_only():
  frames = list(range(0, 121, 8))

  def seen(gone: set[int]) -> list[tracks.Track]:
    found = [[] if f in gone else [face(0)] for f in frames]
    return tracks.link_detections(frames, found, **RULES)

  assert [len(t["boxes"]) for t in seen({48, 56})] == [121]
  split = seen({48, 56, 64})
  assert [(t["start_frame"], len(t["boxes"])) for t in split] == [
    (0, 41),
    (72, 49),
  ]


def test_short_tracks_are_dropped():
  frames = [0, 8, 16, 24]
  found = [[face(0)], [face(0)], [face(0), face(300)], [face(300)]]
  assert tracks.link_detections(frames, found, **RULES) == []
  made = tracks.link_detections(frames, found, **{**RULES, "min_length": 17})
  assert [t["start_frame"] for t in made] == [0]


def test_a_jump_is_smoothed_away():
  frames = list(range(30))
  found = [[face(8 if f == 15 else 0)] for f in frames]
  (made,) = tracks.link_detections(
    frames, found, **{**RULES, "smoothing_window": 13}
  )
  assert {box[1] for box in made["boxes"]} == {0.0}


@pytest.mark.parametrize(
  "second, wanted",
  [((0, 0, 2, 2), 1.0), ((0, 1, 2, 2), 1 / 3), ((0, 2, 2, 2), 0.0)],
)
def test_overlap_is_intersection_over_union(second, wanted):
  assert tracks.iou((0, 0, 2, 2), second) == pytest.approx(wanted)


def test_simultaneous_faces_are_counted():
  made = [
    {"start_frame": 0, "boxes": [[0, 0, 1, 1]] * 4},
    {"start_frame": 2, "boxes": [[0, 0, 1, 1]] * 3},
  ]
  np.testing.assert_array_equal(
    tracks.count_per_frame(made, 6), [1, 1, 2, 2, 1, 0]
  )


@pytest.mark.parametrize("height, width", [(96, 96), (64, 64), (90, 160)])
def test_the_crop_of_a_whole_frame_is_its_center_square(height, width):
  pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
  frames_THWC = np.full((2, height, width, 3), 250, np.uint8)
  track = tracks.full_frame(*frames_THWC.shape[:3])
  (cut,) = crops.crop_tracks(frames_THWC, [track])
  assert (cut.frames_THWC == 250).all()
  frames_THWC[:, :, : (width - height) // 2] = 0
  frames_THWC[:, :, width - (width - height) // 2 :] = 0
  (cut,) = crops.crop_tracks(frames_THWC, [track])
  # But for a column of the picture, 2.5 of the crop, and half of the next.
  assert (cut.frames_THWC[:, :, 4:-4] == 250).all()
