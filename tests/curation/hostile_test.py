"""Hostile and unusual files through all media stages."""

import dataclasses
import fractions
import io
import os

import av
import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.stages import encode
from ovi_jax.curation.stages import motion
from ovi_jax.curation.stages import probe
from ovi_jax.curation.stages import quality
from ovi_jax.curation.stages import shots
from ovi_jax.media import colors
from tests.lib import media_files
from tests.lib.curation import bad_media

pytest.importorskip("cv2", reason="pip install 'ovi_jax[curate]'")
pytest.importorskip("scenedetect", reason="pip install 'ovi_jax[curate]'")
COUNT, SECONDS = 30, 25 / 24
STAGES = (
  (probe, probe.Config(min_area=32 * 32, min_seconds=1.0)),
  (shots, shots.Config(num_frames=25)),
  (motion, motion.Config()),
  (quality, quality.Config()),
  (encode, encode.Config(target_area=96 * 64, max_upscale=2.0)),
)


@pytest.fixture(scope="module")
def stages():
  return [module.load(config) for module, config in STAGES]


def through(path, stages):
  """The outcome of a file's first window, and what was kept of it."""
  path = os.fspath(path)
  clip, kept = clips.Clip(id=path, path=path), {}
  media = clip_media.Media(clip, path, kept)
  for index, stage in enumerate(stages):
    outcome = stage(clip, media)
    if isinstance(outcome, clips.Reject):
      return outcome, kept
    clip = outcome if isinstance(outcome, clips.Clip) else outcome[0]
    if index < 2:
      media = clip_media.Media(clip, path, kept)
  return clip, kept


def plain(path, seconds=1.25, times=None, **options):
  times = media_files.even(COUNT) if times is None else times
  frames = media_files.moving(len(times), rows=64, columns=96, step=2)
  return media_files.write(
    path, frames, times, media_files.tone(seconds), **options
  )


def variable(path):
  steps = np.random.default_rng(0).uniform(0.01, 0.07, 59)
  times = np.concatenate([[0], np.cumsum(steps)]).tolist()
  return plain(path.with_suffix(".mkv"), times[-1], times)


def turned(path):
  return media_files.turn(plain(path), 0, 1, -1, 0)


def anamorphic(path):
  return plain(path, aspect=fractions.Fraction(4, 3))


def hdr(path):
  return plain(
    path.with_suffix(".mkv"),
    codec="ffv1",
    pixels="yuv420p10le",
    transfer=colors.HLG,
    matrix=9,
  )


def without_sound(path):
  frames = media_files.moving(COUNT)
  return media_files.write(path, frames, media_files.even(COUNT))


def tail_missing(path):
  path = plain(
    path.with_suffix(".mkv"), times=media_files.even(60), seconds=2.5
  )
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
  return path


def header_missing(path):
  content = plain(path).read_bytes()
  path.write_bytes(content[: content.index(b"moov") + 4])
  return path


def end_of_header_missing(path):
  content = plain(path).read_bytes()
  path.write_bytes(content[: content.index(b"moov") + 200])
  return path


def scrambled(path):
  content = bytearray(plain(path).read_bytes())
  random = np.random.default_rng(1)
  begin = content.index(b"mdat") + 4
  end = content.index(b"moov") - 4
  noise = random.integers(0, 256, end - begin, dtype=np.uint8)
  content[begin:end] = noise.tobytes()
  path.write_bytes(bytes(content))
  return path


def hour_long(path):
  still = [media_files.picture(0, 32, 32)] * 3600
  wave = media_files.tone(2.0)
  return media_files.write(path, still, list(range(3600)), wave)


GOOD = [plain, variable, turned, anamorphic, hdr, tail_missing]
BAD = [
  (bad_media.empty, "empty file"),
  (bad_media.noise, "damaged or no media"),
  (scrambled, "damaged or no media"),
  (header_missing, "damaged or no media"),
  (end_of_header_missing, "damaged or no media"),
  (without_sound, "no sound"),
  (bad_media.one_frame, "too short"),
  pytest.param(hour_long, "no shot is long enough", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_valid_files_give_clips(make, tmp_path, stages):
  found, kept = through(make(tmp_path / "file.mp4"), stages)
  assert isinstance(found, clips.Clip), found
  facts = found.facts["encode"]
  with av.open(io.BytesIO(kept["video.mp4"])) as container:
    frames = list(container.decode(video=0))
  assert len(frames) == facts["frames"] == 25
  assert (frames[0].height, frames[0].width) == (
    facts["height"],
    facts["width"],
  )
  upright = facts["width"] >= facts["height"]
  assert upright == (make is not turned)
  assert len(kept["audio.pcm"]) == 2 * round(SECONDS * 16_000)
  assert all(np.isfinite(value) for value in found.scores.values())


@pytest.mark.parametrize(
  "make, reason", BAD, ids=lambda value: getattr(value, "__name__", None)
)
def test_invalid_files_are_rejected_with_a_reason(
  make, reason, tmp_path, stages
):
  found, kept = through(make(tmp_path / "file.mp4"), stages)
  assert isinstance(found, clips.Reject), found
  assert (found.reason, found.failed) == (reason, False)
  assert not kept


NAMES = [
  "-rf.mp4",
  " a 'b' \"c\" $(d).mp4",
  "new\nline.mp4",
  "concat:a|b.mp4",
  "é漢字🎬.mp4",
  "x" * 251 + ".mp4",
  os.fsdecode(b"\xff.mp4"),
]


def test_hostile_file_names_are_harmless(tmp_path, stages):
  content = plain(tmp_path / "file.mp4").read_bytes()
  outcomes = []
  for name in NAMES:
    (tmp_path / name).write_bytes(content)
    found, kept = through(tmp_path / name, stages)
    assert isinstance(found, clips.Clip), found
    outcomes.append((dataclasses.replace(found, path=""), kept))
  assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.slow
def test_an_hour_of_video_is_cut_into_windows(tmp_path):
  count = 6 * 3600
  still = media_files.picture(0, 32, 32)
  path = media_files.write(
    tmp_path / "long.mp4",
    [still] * count,
    media_files.even(count, 6.0),
    media_files.tone(60.0),
    options={"preset": "ultrafast", "g": "240"},
  )
  clip = clips.Clip(id="long", path=str(path))
  media = clip_media.Media(clip, path)
  probed = probe.load(probe.Config(min_area=1))(clip, media)
  found = shots.load(shots.Config())(probed, media)
  assert len(found) > 600 and found[-1].start > 3500
  last = clip_media.Media(found[-1], path)
  assert last.video_THWC.shape == (121, 32, 32, 3)
