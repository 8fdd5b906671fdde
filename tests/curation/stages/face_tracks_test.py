"""Number and tracks of faces in a clip."""

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.faces import detector
from ovi_jax.curation.faces import tracks
from ovi_jax.curation.models import mtcnn
from ovi_jax.curation.stages import face_tracks
from tests.lib.curation import fake_media

CLIP = clips.Clip(id="a", path="a.mp4")


def seeing(monkeypatch, spans: list[tuple[int, int]]) -> dict:
  """Facts of a clip with faces that are there from frame to frame."""
  video_THWC = np.zeros((121, 40, 40, 3), np.uint8)
  video_THWC[:, 0, 0, 0] = np.arange(121)

  def detect(frames_THWC):
    return [
      [
        tracks.Detection((5.0, 50.0 * n, 20.0, 20.0), 0.99)
        for n, (first, last) in enumerate(spans)
        if first <= frame_HWC[0, 0, 0] <= last
      ]
      for frame_HWC in frames_THWC
    ]

  monkeypatch.setattr(detector, "load", lambda settings: detect)
  media = fake_media.FakeMedia(video_THWC=video_THWC)
  return face_tracks.load(face_tracks.Config())(CLIP, media).facts[
    "face_tracks"
  ]


@pytest.mark.parametrize(
  "spans, kind, ranges",
  [
    ([], "none", []),
    ([(0, 120)], "single", [(0, 121)]),
    ([(90, 120)], "single", [(96, 25)]),
    ([(0, 16)], "none", []),
    ([(0, 120), (0, 120)], "multiple", [(0, 121), (0, 121)]),
    # The second is there for less than a quarter of the clip.
    ([(0, 120), (96, 120)], "single", [(0, 121), (96, 25)]),
    ([(0, 120), (80, 120)], "multiple", [(0, 121), (80, 41)]),
    # One after the other, never together.
    ([(0, 50), (60, 120)], "single", [(0, 49), (64, 57)]),
  ],
)
def test_clips_are_classified_by_their_faces(monkeypatch, spans, kind, ranges):
  facts = seeing(monkeypatch, spans)
  assert facts["face_count"] == kind
  got = [(t["start_frame"], len(t["boxes"])) for t in facts["tracks"]]
  assert got == ranges


def test_whole_frames_need_no_weights(monkeypatch):
  monkeypatch.setattr(mtcnn, "_PACKAGE", "no_such_package")
  config = face_tracks.Config(detector="full_frame")
  made = face_tracks.load(config)(CLIP, fake_media.FakeMedia())
  assert made.facts["face_tracks"]["face_count"] == "single"
  (track,) = made.facts["face_tracks"]["tracks"]
  assert track["start_frame"] == 0 and len(track["boxes"]) == 121
  assert face_tracks.fingerprint(config)["weights"] == ""
  with pytest.raises(ValueError, match="--no-deps facenet-pytorch"):
    face_tracks.load(face_tracks.Config())


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"detector": "haar"}, "expected mtcnn or full_frame"),
    ({"detect_every": 0}, "at least 1"),
    ({"smoothing_window": 4}, "odd"),
    ({"min_multiple_fraction": 0}, r"in \(0, 1\]"),
    ({"min_face_size": 8}, "12 <= min_face_size"),
    ({"min_detection_score": 1.0}, r"in \[0, 1\)"),
  ],
)
def test_settings_are_checked(fields, message):
  with pytest.raises(ValueError, match=message):
    face_tracks.Config(**fields)


def test_the_fingerprint_depends_on_the_content_of_the_weights(tmp_path):
  for name in mtcnn.NETWORKS:
    (tmp_path / f"{name}.pt").write_bytes(name.encode())
  one = face_tracks.fingerprint(face_tracks.Config(weights=str(tmp_path)))
  assert one["weights"] != str(tmp_path)
  moved = tmp_path / "moved"
  moved.mkdir()
  for path in tmp_path.glob("*.pt"):
    (moved / path.name).write_bytes(path.read_bytes())
  assert face_tracks.fingerprint(face_tracks.Config(weights=str(moved))) == one
  (moved / "rnet.pt").write_bytes(b"other")
  assert face_tracks.fingerprint(face_tracks.Config(weights=str(moved))) != one
