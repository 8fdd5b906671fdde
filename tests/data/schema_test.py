"""Validation and serialization of records."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from ovi_jax.data import features
from ovi_jax.data import schema
from ovi_jax.modality import AV
from tests.lib import random_records


def stored(record, dtype="float16"):
  """The features as tfds reads them: text as bytes."""
  raw = features.encode(record, random_records.GEOMETRY, dtype)
  raw["captions"] = [c.encode() for c in raw["captions"]]
  return {k: v.encode() if isinstance(v, str) else v for k, v in raw.items()}


def test_a_record_round_trips_bit_for_bit():
  record = dataclasses.replace(
    random_records.record(3), video=b"mp4", audio=bytes(9 * 2 * 667), fps=23.976
  )
  back = features.decode(stored(record))
  for name in ("id", "source", "captions", "video", "audio", "scores", "fps"):
    assert getattr(back, name) == getattr(record, name), name
  np.testing.assert_array_equal(back.latents.video, record.latents.video)
  np.testing.assert_array_equal(back.latents.audio, record.latents.audio)
  for ours, theirs in zip(back.text, record.text, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert (back.frames, back.height, back.width) == (9, 64, 96)


def test_bfloat16_is_rounded_to_nearest_and_absent_stays_absent():
  record = random_records.record(4, video=None)
  back = features.decode(stored(record, "bfloat16"))
  assert back.latents.audio.dtype == ml_dtypes.bfloat16
  nearest = record.latents.audio.astype(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(back.latents.audio, nearest)
  assert back.latents.video is None and back.video is None


def test_media_have_the_sizes_of_their_latents():
  record = schema.Record(
    id="a",
    source="b",
    captions=("c",),
    video=b"mp4",
    audio=bytes(2 * 80_667),
    frames=121,
    height=704,
    width=1280,
  )
  schema.check(record, schema.Geometry())
  assert record.sizes == AV(video=(31, 44, 80), audio=157)
  assert record.seconds == pytest.approx(121 / 24, abs=1e-4)


ZEROS = np.zeros
WRONG = {
  "id: expected a name": {"id": ""},
  "captions: expected one or more": {"captions": (), "text": ()},
  "got neither": {"latents": AV()},
  "expected 4 channels, got 5": {"latents": AV(ZEROS((3, 4, 6, 5)), None)},
  "even rows and columns, got 3x6": {"latents": AV(ZEROS((3, 3, 6, 4)), None)},
  "expected 11.7 ± 1 audio latents beside 9 frames": {
    "latents": AV(ZEROS((3, 4, 6, 4)), ZEROS((14, 3)))
  },
  "expected 3 channels, got 2": {"latents": AV(None, ZEROS((12, 2)))},
  "audio latents: expected [T, C]": {"latents": AV(None, ZEROS((1, 12, 3)))},
  "finite numbers": {"latents": AV(None, np.full((12, 3), np.nan))},
  "frames: expected 9 for 3 latents, got 10": {"frames": 10},
  "fps: expected 24 frames a second, got 0;": {"fps": 0.0},
  "fps: expected 24 frames a second, got nan;": {"fps": float("nan")},
  "fps: expected 24 frames a second, got 16; resample it": {"fps": 16.0},
  "fps: expected 24 frames a second, got 30; resample it": {"fps": 30.0},
  "two bytes a sample": {"audio": b"abc"},
  "the samples of one latent, 512, or more, got 300": {"audio": bytes(600)},
  "one embedding for each of 2": {"text": (ZEROS((2, 5)),)},
  "text: expected width 5, got 6": {"text": (ZEROS((2, 6)),) * 2},
  "expected frames, height and width": {"video": b"mp4", "latents": AV()},
  "scores: sync is nan": {"scores": {"sync": float("nan")}},
}


@pytest.mark.parametrize("message", WRONG)
def test_an_invalid_record_is_named_with_its_problem(message):
  record = dataclasses.replace(random_records.record(7), **WRONG[message])
  with pytest.raises(ValueError) as caught:
    schema.check(record, random_records.GEOMETRY)
  assert message in str(caught.value)
  assert f"record {record.id!r}" in str(caught.value)


def test_all_problems_are_listed_at_once():
  record = dataclasses.replace(random_records.record(7), id="", captions=("",))
  with pytest.raises(ValueError, match="id: .*captions: .*text: "):
    schema.check(record, random_records.GEOMETRY)


def test_numbers_beyond_float16_are_refused_not_made_infinite():
  latents = AV(None, np.full((12, 3), 1e5, np.float32))
  record = dataclasses.replace(random_records.record(1), latents=latents)
  with pytest.raises(ValueError, match="clip-1.*too large for float16"):
    features.encode(record, random_records.GEOMETRY)
  assert features.decode(stored(record, "bfloat16")).latents.audio[0, 0] > 9e4


def test_damaged_arrays_and_another_version_are_named():
  raw = stored(random_records.record(1))
  short = {**raw, "audio_latents": raw["audio_latents"][:-2]}
  with pytest.raises(ValueError, match="clip-1.*audio latents: expected 72"):
    features.decode(short)
  other = {**raw, "facts": raw["facts"].replace(b'"1.0.0"', b'"2.0.0"')}
  with pytest.raises(ValueError, match="2.0.0, expected 1.0.0"):
    features.decode(other)


def test_another_geometry_is_named_field_by_field():
  with pytest.raises(ValueError, match="video_channels: expected 48, got 4"):
    schema.Geometry().check_equal(random_records.GEOMETRY, "here")


def test_a_long_version_is_cut_in_the_message():
  with pytest.raises(ValueError, match="version xxx") as error:
    schema.check_version("x" * 100_000, "d")
  assert len(str(error.value)) < 300
