"""Windows lie within shots, at timestamps of frames."""

import dataclasses

import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.media import shot_detectors
from ovi_jax.curation.stages import shots
from ovi_jax.media import decode
from tests.lib import media_files

pytest.importorskip("scenedetect", reason="pip install 'ovi_jax[curate]'")
SMALL = shots.Config(num_frames=25)
FRAMES = (30, 12, 60)  # of three shots


def run(path, config=SMALL):
  clip = clips.Clip(id="f", path=str(path))
  return shots.load(config)(clip, clip_media.Media(clip, path))


def changes(frames):
  """Frames of several mosaics that move, one behind the other."""
  return [
    frame
    for seed, count in enumerate(frames)
    for frame in media_files.moving(count, seed)
  ]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
  path = tmp_path_factory.mktemp("shots") / "three.mp4"
  return media_files.write(path, changes(FRAMES), media_files.even(sum(FRAMES)))


def test_windows_keep_a_distance_from_cuts(film):
  windows = run(film, dataclasses.replace(SMALL, cut_margin_seconds=0.1))
  # 30 frames hold one window, 12 none, 60 two.
  starts = [window.start for window in windows]
  assert starts == pytest.approx([0, 42 / 24 + 0.1, 67 / 24 + 0.1], abs=1e-5)
  assert [w.id for w in windows] == [
    "f-000000000",
    "f-000001850",
    "f-000002892",
  ]
  assert all(window.seconds == 25 / 24 for window in windows)
  facts = [window.facts["shots"] for window in windows]
  assert [fact["shot_index"] for fact in facts] == [0, 2, 2]
  assert facts[0]["cut_distances"] == [None, pytest.approx(5 / 24, abs=1e-5)]
  assert facts[1]["cut_distances"] == [pytest.approx(0.1, abs=1e-5), None]


def test_each_window_is_within_one_shot(film):
  for window in run(film):
    video_THWC = decode.video(film, window.start, window.seconds)
    step = np.abs(np.diff(video_THWC.astype(int), axis=0)).mean((1, 2, 3))
    assert len(video_THWC) == 25 and step.max() < 20


def test_a_guard_interval_may_leave_no_window(film):
  windows = run(film, dataclasses.replace(SMALL, cut_margin_seconds=0.3))
  assert [window.facts["shots"]["shot_index"] for window in windows] == [2, 2]


def test_stride_and_limit_set_the_number_of_windows(film):
  config = dataclasses.replace(
    SMALL, stride_seconds=0.25, cut_margin_seconds=0.1
  )
  last = [w.start for w in run(film, config) if w.start > 1.5]
  begin, room = 42 / 24 + 0.1, (60 - 24) / 24 - 0.1
  count = int(room / 0.25) + 1
  wanted = [begin + 0.25 * number for number in range(count)]
  assert last == pytest.approx(wanted, abs=1e-5)
  config = dataclasses.replace(config, max_windows_per_shot=2)
  few = [w.start for w in run(film, config) if w.start > 1.5]
  assert few == pytest.approx([wanted[0], wanted[-1]], abs=1e-5)


def test_the_same_file_gives_the_same_windows(film):
  assert run(film) == run(film)


def test_times_follow_a_variable_frame_rate(tmp_path):
  steps = np.tile([0.02, 0.06], 60)
  times = np.concatenate([[0], np.cumsum(steps)])[: sum(FRAMES)]
  path = media_files.write(tmp_path / "v.mkv", changes(FRAMES), times)
  config = dataclasses.replace(SMALL, cut_margin_seconds=0.0)
  found = [window.start for window in run(path, config)]
  assert found[0] == 0
  third = times[FRAMES[0] + FRAMES[1]]
  assert any(abs(start - third) < 2e-3 for start in found)


def test_a_gap_ends_a_shot(tmp_path):
  times = media_files.even(60)
  late = [t if number < 20 else t + 0.5 for number, t in enumerate(times)]
  path = media_files.write(tmp_path / "g.mkv", media_files.moving(60), late)
  windows = run(path, dataclasses.replace(SMALL, cut_margin_seconds=0.0))
  assert [window.start for window in windows] == [round(20 / 24 + 0.5, 3)]
  config = dataclasses.replace(SMALL, max_frame_gap=1.0)
  assert run(path, config)[0].start == 0


def test_damaged_frames_are_avoided(tmp_path):
  options = {"preset": "ultrafast", "g": "12"}
  path = media_files.write(
    tmp_path / "d.mkv",
    media_files.moving(96),
    media_files.even(96),
    options=options,
  )
  whole = run(path, dataclasses.replace(SMALL, num_frames=89))
  assert len(whole) == 1
  content = bytearray(path.read_bytes())
  middle = len(content) // 2
  content[middle : middle + 3000] = bytes(3000)
  path.write_bytes(bytes(content))
  found = run(path, dataclasses.replace(SMALL, num_frames=89))
  assert isinstance(found, clips.Reject)
  assert found.reason == "no shot is long enough"
  assert 0 < found.score < 89 / 24


def test_a_file_without_a_valid_frame_is_damaged(tmp_path):
  path = media_files.write_sound(tmp_path / "a.wav", media_files.tone(1))
  found = run(path)
  assert (found.reason, found.failed) == ("damaged or no media", False)


@pytest.mark.parametrize(
  "wrong, words",
  [
    ({"detector": "eyes"}, "choose from pyscenedetect, transnetv2"),
    ({"detector": "transnetv2"}, "needs weights"),
    ({"num_frames": 120}, "121|117"),
    ({"cut_margin_seconds": -0.1}, "cut_margin_seconds"),
    ({"max_frame_gap": 0.0}, "max_frame_gap"),
  ],
)
def test_settings_are_checked(wrong, words):
  with pytest.raises(ValueError, match=words):
    shots.Config(**wrong)


def test_weights_that_are_missing_are_named_before_any_clip(tmp_path):
  config = shots.Config(
    detector="transnetv2", weights=str(tmp_path / "none.pth")
  )
  with pytest.raises(ValueError, match=r"none\.pth"):
    shots.load(config)


def test_the_fingerprint_depends_on_the_content_of_the_weights(tmp_path):
  one, other = tmp_path / "one.pth", tmp_path / "other.pth"
  one.write_bytes(b"1")
  other.write_bytes(b"1")
  identities = [
    shots.fingerprint(shots.Config(detector="transnetv2", weights=str(path)))
    for path in (one, other)
  ]
  assert identities[0] == identities[1]
  other.write_bytes(b"2")
  changed = shots.Config(detector="transnetv2", weights=str(other))
  assert shots.fingerprint(changed) != identities[0]


def test_frames_of_a_fade_belong_to_no_shot():
  times = [number / 24 for number in range(100)]
  found = shots._shots(times, [shot_detectors.Cut(39, 50)], 0.25)
  ends = [(shot.start, shot.end) for shot in found]
  assert ends == [
    (0, pytest.approx(40 / 24)),
    (pytest.approx(50 / 24), pytest.approx(100 / 24)),
  ]
