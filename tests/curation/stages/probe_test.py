"""Metadata of files, and reasons of rejects."""

import dataclasses
import hashlib
import os

import av
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.media import clip_media
from ovi_jax.curation.stages import probe
from ovi_jax.media import colors
from tests.lib import media_files
from tests.lib.curation import bad_media

SMALL = probe.Config(min_area=32 * 32, min_seconds=1.0)


def run(path, **changes):
  """The outcome for a file."""
  clip = clips.Clip(id=str(path), path=str(path))
  config = dataclasses.replace(SMALL, **changes)
  return probe.load(config)(clip, clip_media.Media(clip, path))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  path = tmp_path_factory.mktemp("probe") / "good.mp4"
  return media_files.write(
    path, media_files.moving(30), media_files.even(30), media_files.tone(1.25)
  )


def test_a_valid_file_is_measured(good):
  content = hashlib.sha256(good.read_bytes()).hexdigest()
  clip = run(good)
  assert clip.id == content
  assert clip.seconds == pytest.approx(1.3, abs=0.1)
  assert clip.facts["probe"] == {
    "sha256": content,
    "width": 96,
    "height": 64,
    "rotation": 0,
    "mirrored": False,
    "fps": 24.0,
    "codec": "h264",
    "color_transfer": "unspecified",
    "has_video": True,
    "has_audio": True,
    "duration": clip.seconds,
  }


def test_clip_ids_depend_on_the_content(good, tmp_path):
  copy = tmp_path / "-another 'name'\n.mp4"
  copy.write_bytes(good.read_bytes())
  assert run(copy).id == run(good).id
  other = tmp_path / "other.mp4"
  other.write_bytes(good.read_bytes() + b"\0")
  assert run(other).id != run(good).id


def test_a_rotated_file_is_measured_upright(good, tmp_path):
  path = tmp_path / "turned.mp4"
  path.write_bytes(good.read_bytes())
  facts = run(media_files.turn(path, 0, 1, -1, 0)).facts["probe"]
  assert (facts["width"], facts["height"], facts["rotation"]) == (64, 96, 90)


def silent(path, **options):
  frames = media_files.moving(30)
  return media_files.write(path, frames, media_files.even(30), **options)


def sound_only(path):
  return media_files.write_sound(path.with_suffix(".wav"), media_files.tone(2))


def truncated(path):
  silent(path)
  path.write_bytes(path.read_bytes()[:-400])
  return path


def header_only(path):
  silent(path)
  content = path.read_bytes()
  place = content.index(b"mdat") + 4
  end = content.index(b"moov") - 4
  path.write_bytes(content[:place] + bytes(end - place) + content[end:])
  return path


def picture(path):
  path = path.with_suffix(".png")
  with av.open(str(path), "w") as container:
    stream = container.add_stream("png", rate=1)
    stream.height, stream.width, stream.pix_fmt = 64, 96, "rgb24"
    frame = av.VideoFrame.from_ndarray(media_files.picture(0), format="rgb24")
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def interlaced(path):
  flags = {"flags": "+ildct+ilme", "b": "2M"}
  return silent(
    path.with_suffix(".mpg"),
    codec="mpeg2video",
    options=flags,
    base=media_files.PAL,
  )


def ictcp(path):
  return silent(path.with_suffix(".mkv"), codec="ffv1", matrix=14)


def hdr(path):
  return silent(
    path.with_suffix(".mkv"),
    codec="ffv1",
    pixels="yuv420p10le",
    transfer=colors.PQ,
    matrix=9,
  )


BAD = [
  (bad_media.empty, "empty file", {}),
  (bad_media.noise, "damaged or no media", {}),
  (truncated, "damaged or no media", {}),
  (header_only, "damaged or no media", {"require_audio": False}),
  (picture, "damaged or no media", {}),
  (sound_only, "no video", {}),
  (silent, "no sound", {}),
  (bad_media.one_frame, "too short", {}),
  (silent, "too small", {"min_area": 64 * 96 + 1, "require_audio": False}),
  (silent, "too large", {"max_area": 64 * 96 - 1, "require_audio": False}),
  (
    silent,
    "too long and narrow",
    {"max_aspect_ratio": 1.4, "require_audio": False},
  ),
  (interlaced, "interlaced", {"require_audio": False}),
  (ictcp, "unsupported colours", {"require_audio": False}),
  (hdr, "unsupported colours", {"require_audio": False, "allow_hdr": False}),
]


@pytest.mark.parametrize(
  "make, reason, changes", BAD, ids=lambda v: getattr(v, "__name__", None)
)
def test_each_invalid_file_has_its_reason(tmp_path, make, reason, changes):
  found = run(make(tmp_path / "bad.mp4"), **changes)
  assert isinstance(found, clips.Reject), found
  assert (found.reason, found.failed) == (reason, False)


def test_requirements_can_be_lowered(tmp_path):
  path = silent(tmp_path / "s.mp4")
  assert not run(path, require_audio=False).facts["probe"]["has_audio"]
  path = sound_only(tmp_path / "a.wav")
  clip = run(path, require_video=False)
  assert clip.seconds == 2.0 and not clip.facts["probe"]["has_video"]
  clip = run(hdr(tmp_path / "h.mkv"), require_audio=False)
  assert clip.facts["probe"]["color_transfer"] == "pq"


def test_without_a_header_the_duration_is_that_of_the_packets(tmp_path):
  # A streamed file has no duration in its header.
  path = tmp_path / "live.mkv"
  silent(path, options={"preset": "ultrafast"}, container={"live": "1"})
  with av.open(str(path)) as container:
    assert not container.duration
  clip = run(path, require_audio=False)
  assert clip.seconds == pytest.approx(30 / 24, abs=0.05)


def test_unreadable_storage_is_an_error_not_a_reject(good, tmp_path):
  with pytest.raises(OSError):
    run(tmp_path / "gone.mp4")
  closed = tmp_path / "folder.mp4"
  os.mkdir(closed)
  with pytest.raises(OSError):
    run(closed)


@pytest.mark.parametrize(
  "wrong",
  [
    {"require_video": False, "require_audio": False},
    {"min_area": 0},
    {"min_area": 9, "max_area": 8},
    {"min_seconds": -1.0},
    {"max_aspect_ratio": 0.5},
  ],
)
def test_settings_are_checked(wrong):
  with pytest.raises(ValueError, match="probe: expected"):
    probe.Config(**wrong)
