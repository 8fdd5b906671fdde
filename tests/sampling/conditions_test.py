"""What is given of a clip: combinations, masks, media, whole runs."""

import dataclasses
import hashlib
import json
import pathlib
import string
import struct
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ovi_jax
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.media import mp4
from ovi_jax.media import probe
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import generate
from ovi_jax.sampling import given_media
from ovi_jax.sampling import lengths
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib
from tests.lib import clip_jobs
from tests.lib import fake_sampling
from tests.lib import media_files

pytestmark = pytest.mark.usefixtures("one_device")

SIZE = {"height": 64, "width": 64, "area": 64 * 96}
CLIP = geometry.Clip(
  latent_frames=7, latent_height=2, latent_width=2, audio_latents=32
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """25 frames of 64x96 at 24 fps with a second of sound, and bad files."""
  folder = tmp_path_factory.mktemp("media")
  frames, times = media_files.moving(25), media_files.even(25)
  tone = media_files.tone(1.1)
  media_files.write(folder / "clip.mp4", frames, times, tone)
  media_files.write(folder / "silent.mp4", frames, times)
  media_files.write(folder / "short.mp4", frames[:3], times[:3])
  media_files.write_sound(folder / "tone.wav", tone)
  media_files.write_sound(folder / "long.wav", media_files.tone(2.7))
  media_files.write_sound(folder / "brief.wav", media_files.tone(0.9))
  media_files.write_sound(folder / "silent.wav", 0 * media_files.tone(1.5))
  (folder / "text.mp4").write_text("this is no video")
  for name in ("clip.mp4", "tone.wav"):
    data = (folder / name).read_bytes()
    (folder / f"half-{name}").write_bytes(data[: len(data) // 2])
  _write_nan(folder / "nan.wav")
  Image.fromarray(frames[0]).save(folder / "first.png")
  Image.fromarray(frames[0][:, :64]).save(folder / "last.png")
  return folder


def _write_nan(path: pathlib.Path) -> None:
  """2 s of 32-bit floating point, of which one sample is NaN."""
  samples = np.zeros(32_000, "<f4")
  samples[20_000] = np.nan
  data = samples.tobytes()
  header = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, 16_000, 64_000, 4, 32)
  body = b"WAVE" + header + struct.pack("<4sI", b"data", len(data)) + data
  path.write_bytes(struct.pack("<4sI", b"RIFF", len(body)) + body)


def asked(folder: pathlib.Path, image: Any = None, **given: Any):
  files = {
    name: folder / value
    if name in ("last_image", "video", "audio", "voice")
    else value
    for name, value in given.items()
  }
  return requests.from_prompt("a", image and folder / image, **files)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"image": "first.png", "video": "clip.mp4"}, "image and video cannot be"),
    ({"last_image": "last.png", "video": "clip.mp4"}, "last_image and video"),
    ({"keep": "0-1"}, "keep names intervals of a given video or audio"),
    ({"keep_audio_until": 1.0}, "keep_audio_until needs video"),
    ({"video": "clip.mp4", "audio": "tone.wav"}, "nothing is left to generate"),
    (
      {"video": "clip.mp4", "audio": "tone.wav", "keep_audio_until": 1.0},
      "they give sound from two files",
    ),
    (
      {"video": "clip.mp4", "keep": "0-1", "keep_audio_until": 1.0},
      "keep_audio_until and keep cannot be combined",
    ),
    (
      {"video": "clip.mp4", "keep_audio_until": float("nan")},
      "positive number",
    ),
    ({"video": "clip.mp4", "keep": "1-0"}, "such as 0-2,4-5, got '1-0'"),
    ({"video": "clip.mp4", "keep": "0-1,x"}, "such as 0-2,4-5, got 'x'"),
    ({"video": "clip.mp4", "keep": ((0, -1),)}, r"pairs .*got \(0, -1\)"),
    ({"video": "clip.mp4", "keep": (0, 2)}, r"\[\(0, 2\), .*got 0 in it"),
    ({"video": "clip.mp4", "keep": 2.0}, "pairs of seconds .*got 2.0"),
    ({"video": "clip.mp4", "keep": [("0", "1")]}, "pairs of seconds"),
    ({"video": "clip.mp4", "keep": [(0, float("nan"))]}, "pairs of seconds"),
    ({"video": "clip.mp4", "keep_audio_until": "1"}, "a number .*got '1'"),
    ({"video": "clip.mp4", "keep_audio_until": True}, "a number .*got True"),
    ({"video": "clip.mp4", "keep_audio_until": 10**400}, "below 1000000, got"),
    ({"voice": "tone.wav", "audio": "tone.wav"}, "voice and audio cannot be"),
    ({"voice": "none.wav"}, r"the voice is missing: .*none\.wav"),
    ({"video": "none.mp4"}, r"the video is missing: .*none\.mp4"),
    ({"last_image": "none.png"}, "the last image is missing: .*mode=t2v"),
    ({"vido": "clip.mp4"}, r"vido is unknown .did you mean video"),
  ],
)
def test_what_cannot_be_combined_is_refused(folder, given, message):
  with pytest.raises(ValueError, match=message) as error:
    asked(folder, **given)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"video": "text.mp4"}, r"video .*text\.mp4: expected a file of one of"),
    ({"video": "tone.wav"}, r"video .*tone\.wav: .*(picture|video)"),
    ({"audio": "silent.mp4"}, r"audio .*silent\.mp4: it has no sound track"),
    ({"video": "silent.mp4", "keep_audio_until": 1.0}, "has no sound track"),
    ({"last_image": "text.mp4"}, r"text\.mp4: .*PNG, JPEG or WebP"),
    ({"voice": "text.mp4"}, r"voice .*text\.mp4: expected a file of one of"),
    ({"voice": "silent.mp4"}, r"voice .*silent\.mp4: it has no sound track"),
    *(
      ({name: f"half-{file}"}, rf"{name} .*half-{file}: it is cut off after")
      for name in ("video", "audio", "voice")
      for file in ("clip.mp4", "tone.wav")
    ),
    ({"audio": "nan.wav"}, r"audio .*nan\.wav: .*a sample of nan; expected -1"),
    (
      {"voice": "brief.wav"},
      r"brief\.wav: its sound lasts 0.90 s, .* 1 to 3 s",
    ),
    ({"voice": "silent.wav"}, r"silent\.wav: .*of its sound are silent"),
  ],
)
def test_unfit_files_are_refused_before_anything_is_loaded(
  folder, given, message
):
  with pytest.raises(ValueError, match=message):
    requests.expand(asked(folder, **given), 1, 0, **SIZE)


def mask(count: int, *places: int) -> list[bool]:
  return [place in places for place in range(count)]


@pytest.mark.parametrize(
  ("image", "given", "video", "audio"),
  [
    (None, {}, None, None),
    ("first.png", {}, mask(7, 0), None),
    (None, {"last_image": "last.png"}, mask(7, 6), None),
    ("first.png", {"last_image": "last.png"}, mask(7, 0, 6), None),
    (None, {"video": "clip.mp4"}, [True] * 7, None),
    (None, {"audio": "tone.wav"}, None, [True] * 32),
    ("first.png", {"audio": "tone.wav"}, mask(7, 0), [True] * 32),
    # 0.5 s are 12 frames (1 + 4 + 4 and 3 more) and 15 audio steps.
    (
      None,
      {"video": "clip.mp4", "keep_audio_until": 0.5},
      [True] * 7,
      mask(32, *range(15)),
    ),
    (
      None,
      {"video": "clip.mp4", "keep": "0-0.5,0.87-9"},
      mask(7, 0, 1, 2, 6),
      mask(32, *range(15), *range(28, 32)),
    ),
    (
      None,
      {"video": "silent.mp4", "keep": "0-0.5"},
      mask(7, 0, 1, 2),
      None,
    ),
    (None, {"audio": "tone.wav", "keep": "0-0.5"}, None, mask(32, *range(15))),
  ],
)
def test_masks_follow_from_files_and_intervals(
  folder, image, given, video, audio
):
  (request,) = requests.expand(asked(folder, image, **given), 1, 0, **SIZE)
  found = request.masks(CLIP)
  for ours, expected in zip(found, (video, audio)):
    assert (None if ours is None else ours.tolist()) == expected


def test_sound_is_given_up_to_the_end_of_its_track(folder):
  path = folder / "early.mp4"
  times = media_files.even(25)
  media_files.write(path, media_files.moving(25), times, media_files.tone(0.5))
  rows = []
  for given in ({"keep_audio_until": 0.9}, {"keep": "0-0.4,0.5-1"}):
    (row,) = requests.expand(asked(folder, video=path, **given), 1, 0, **SIZE)
    assert row.sound[1] == pytest.approx(0.5, abs=0.06)
    (note,) = lengths.sound_notes(row, CLIP)
    assert note.startswith("video: its sound ends at 0.5")
    sound = row.masks(CLIP).audio
    assert sound[:12].all() and not sound[18:].any()
    rows.append(row)
  earlier = dataclasses.replace(rows[0].given, keep_audio_until=0.3)
  assert (
    lengths.sound_notes(dataclasses.replace(rows[0], given=earlier), CLIP) == ()
  )
  # A rest of up to 0.1 s is silence, as of other files.
  until = dataclasses.replace(rows[0].given, keep_audio_until=2.0)
  for end, count in ((0.95, 32), (0.9, 28), (0.0, 0)):
    found = conditions.masks(until, False, (0.0, end), CLIP).audio
    assert (0 if found is None else found.sum()) == count


def test_sound_that_begins_late_is_given_from_there_on(folder, tmp_path):
  """Of a video's sound track and of a file of sound; before it, generated."""
  late = tmp_path / "late.mp4"
  media_files.write(
    late,
    media_files.moving(25),
    media_files.even(25),
    media_files.tone(0.6),
    sound_from=0.4,
  )
  assert probe.span(late, "audio") == pytest.approx((0.4, 1.0), abs=0.07)
  assert probe.span(late, "video") == pytest.approx((0.0, 25 / 24), abs=0.01)
  assert probe.span(folder / "silent.mp4", "audio") == (0, 0)
  for given in ({"video": late, "keep_audio_until": 1.0}, {"audio": late}):
    (row,) = requests.expand(asked(tmp_path, **given), 1, 0, **SIZE)
    sound = row.masks(CLIP).audio
    assert not sound[:11].any() and sound[15:29].all()
    notes = lengths.sound_notes(row, CLIP)
    (name, *_) = given
    assert notes[0].startswith(f"{name}: its sound begins at 0.")
  # A beginning of up to 0.1 s is silence, as the end is.
  whole = conditions.Conditions(audio=late)
  for start, count in ((0.1, 32), (0.2, 25), (2.0, 0)):
    found = conditions.masks(whole, False, (start, 9.0), CLIP)
    assert (0 if found.audio is None else found.audio.sum()) == count
    if not count:
      with pytest.raises(ValueError, match="its sound begins at 2.00 s, and"):
        conditions.check_masks(whole, found, (start, 9.0), CLIP)


def test_seconds_are_taken_as_they_are(folder):
  precise = ((0.0, 0.1234567891),)
  (request,) = asked(folder, video="clip.mp4", keep=[(0, 0.1234567891)])
  assert request.given.keep == precise
  for name, values in (
    ("keep", ([(0, 1)], [[0.0, np.float64(1)]], np.array([[0, 1]]), "0-1")),
    ("keep_audio_until", (1, 1.0, np.int64(1))),
  ):
    stems = {
      requests.expand(
        asked(folder, video="clip.mp4", **{name: value}), 1, 0, **SIZE
      )[0].stem
      for value in values
    }
    assert len(stems) == 1


@pytest.mark.parametrize(
  ("text", "path", "span"),
  [
    ("a.mp4", "a.mp4", conditions.ANY),
    ("a.mp4#t=1.5,4", "a.mp4", (1.5, 4.0)),
    ("gs://b/a#t=1", "gs://b/a", (1.0, np.inf)),
    ("a#t=1#t=,2", "a#t=1", (0.0, 2.0)),
    ("a#t=5,", "a", (5.0, np.inf)),
    ("a#t=x", "a#t=x", conditions.ANY),
  ],
)
def test_a_part_of_a_file_is_named_after_it(text, path, span):
  assert conditions.split_span(text) == (path, span)
  if span[1] < np.inf:
    written = conditions.with_span(path, span)
    assert conditions.split_span(written) == (path, span)


def test_a_part_of_a_file_is_used(folder):
  """Frames, length, sound and name are those of the part."""
  clip_at = str(folder / "clip.mp4")
  (whole,) = requests.expand(asked(folder, video=clip_at), 1, 3, **SIZE)
  (part,) = requests.expand(
    asked(folder, video=f"{clip_at}#t=0.25,0.75", keep=[(0, 0.4)]),
    *(1, 3),
    **SIZE,
  )
  assert whole.given.span("video") == conditions.ANY
  assert part.given.span("video") == (0.25, 0.75)
  assert part.media_seconds == pytest.approx(0.5)
  assert part.sound[0] == 0 and 0.4 < part.sound[1] <= 0.5
  assert part.stem != whole.stem
  assert part.given.metadata(str)["video"]["seconds"] == [0.25, 0.75]
  frames = [
    list(given_media.frames_of("video", part.given.video, span, count, CLIP))
    for span, count in ((conditions.ANY, 25), ((0.25, 0.75), 14))
  ]
  np.testing.assert_array_equal(frames[1][:12], frames[0][6:18])
  np.testing.assert_array_equal(frames[1][12:], [frames[0][17]] * 2)
  for wrong, message in (
    ("#t=2,3", "clip.mp4: the part begins at 2 s, the file lasts 1.04"),
    ("#t=0.5,0.5", "video: expected a part FILE#t=START,END"),
    ("#t=", "video: expected a part"),
    ("#t=,", "video: expected a part .* got '#t=,'"),
    ("#t=-1,3", "video: expected a part FILE#t=START,END in .* got '#t=-1,3'"),
    ("#t=nan,3", "video: expected a part .* got '#t=nan,3'"),
    ("#t=0:01,0:02", "video: expected a part .* got '#t=0:01,0:02'"),
  ):
    with pytest.raises(ValueError, match=message):
      requests.expand(asked(folder, video=clip_at + wrong), 1, 3, **SIZE)


def test_sound_of_a_part_begins_at_its_start(folder):
  waves = []
  encoder: Any = types.SimpleNamespace(
    encode=lambda wave_BA: waves.append(wave_BA[0]) or np.zeros((1, 32, 20))
  )
  for end in ("", "#t=0.5,0.75"):
    (request,) = asked(folder, audio=str(folder / "tone.wav") + end)
    given_media.encode_audio(request.given, CLIP, encoder)
  whole_A, part_A = waves
  np.testing.assert_array_equal(part_A[:4000], whole_A[8000:12_000])
  assert np.abs(part_A[:4000]).max() > 0.1 and not part_A[4000:].any()


def test_renoise_leaves_only_the_first_video_latent_clean():
  given = AV(np.array([True, True, False]), np.array([True, False]))
  clean: Any = conditions.split(given, conditions.CLEAN)
  assert clean.video[1] is None and clean.video[0].tolist() == [1, 1, 0]
  assert clean.audio[1] is None and clean.audio[0].tolist() == [1, 0]
  found: Any = conditions.split(given, conditions.RENOISE)
  assert [m.tolist() for m in found.video] == [[1, 0, 0], [0, 1, 0]]
  assert found.audio[0] is None and found.audio[1].tolist() == [1, 0]
  # Image-to-video is the same in both.
  first: AV[Any] = AV(video=np.array([True, False]))
  for mode in conditions.MODES:
    clean_T, renoised_T = conditions.split(first, mode).video
    assert (
      clean_T is not None and clean_T.tolist() == [1, 0] and renoised_T is None
    )


@pytest.mark.parametrize(
  ("seconds", "frames"),
  [
    (0.25, 2),
    (1.0, 6),
    (1.041, 6),
    (1.042, 7),
    (4.93, 30),
    (4.95, 31),
    (9, 31),
  ],
)
def test_a_clip_is_as_long_as_its_file_up_to_the_trained_length(
  seconds, frames
):
  assert conditions.latent_frames(seconds, 31) == frames
  variant = geometry.variant("720x720_5s")
  clip = variant.clip(64, 64, frames)
  assert abs(clip.samples / 16_000 - clip.frames / 24) < 0.033
  assert clip.audio_latents == 157 or frames < 31


def test_files_decide_size_length_and_name(folder):
  video, sound, both, none = (
    requests.expand(asked(folder, **given), 1, 0, **SIZE)[0]
    for given in (
      {"video": "clip.mp4"},
      {"audio": "tone.wav"},
      {"image": "first.png", "last_image": "last.png"},
      {},
    )
  )
  assert video.size == both.size == (64, 96) and sound.size == (64, 64)
  assert video.media_seconds == pytest.approx(25 / 24, abs=1e-3)
  assert sound.media_seconds == pytest.approx(1.1, abs=1e-3)
  assert both.media_seconds is None
  assert [n.partition(":")[0] for n in both.notes] == ["last_image"]
  stems = {request.stem for request in (video, sound, both, none)}
  assert len(stems) == 4
  content = json.dumps(["a", None]).encode()  # as before there were conditions
  assert hashlib.sha256(content).hexdigest()[:10] in none.stem


def test_a_table_has_a_column_for_each_condition(folder):
  path = folder / "list.csv"
  columns = ",".join(["text_prompt", "image_path", *requests.COLUMNS.values()])
  rows = [
    "a,first.png,last.png,,,,,,",
    'b,,,clip.mp4,,,"0-0.5,0.8-1",,',
    "c,,,clip.mp4,,,,0.5,",
    "d,,,,tone.wav,,,,",
    "e,,,,,clip.mp4,,,tone.wav",
  ]
  path.write_text("\n".join([columns, *rows]))
  found = requests.from_file(path)
  assert [r.given.files.keys() for r in found] == [
    {"last_image"},
    {"video"},
    {"video"},
    {"audio"},
    {"extend", "voice"},
  ]
  assert found[1].given.keep == ((0, 0.5), (0.8, 1))
  assert found[2].given.keep_audio_until == 0.5
  path.write_text(
    "\n".join([columns, "a,first.png,,clip.mp4,,,,,", "b,,,,,,,x,"])
  )
  with pytest.raises(ValueError, match="line 2.: image and video") as error:
    requests.from_file(path)
  assert "keep_audio_until: expected a number of seconds, got 'x'" in str(
    error.value
  )
  with pytest.raises(
    ValueError, match="--video needs --prompt; .* set the column video_"
  ):
    requests.from_flags("", str(path), "", "auto", video="clip.mp4", audio="")


def test_a_voice_is_as_many_whole_seconds_as_its_file_has(folder):
  (long,), (short,), (plain,) = (
    requests.expand(asked(folder, **given), 1, 0, **SIZE)
    for given in ({"voice": "long.wav"}, {"voice": "tone.wav"}, {})
  )
  assert long.voice == conditions.Voice(start=0.0, latents=62)
  assert long.notes == ("voice: the first 1.98 of 2.70 s are used",)
  assert short.voice is not None and short.voice.latents == 31
  assert plain.voice is None and not short.notes
  # It decides neither the length nor the size, but the name.
  for each in (long, short):
    assert each.media_seconds is None and each.size == plain.size
  assert len({each.stem for each in (long, short, plain)}) == 3
  assert [conditions.voice(0, s).latents for s in (0.99, 3.0, 60)] == [
    31,
    93,
    93,
  ]
  with pytest.raises(ValueError, match="its sound lasts 0.00 s"):
    conditions.voice(1.0, 0.5)


def test_clips_with_equal_kinds_of_conditions_are_batched(folder):
  kinds = [
    {"last_image": "last.png"},
    {"video": "clip.mp4"},
    {"audio": "tone.wav"},
    {"video": "silent.mp4"},
  ]
  jobs = []
  for mode in (conditions.CLEAN, conditions.RENOISE):
    for given in kinds:
      (request,) = asked(folder, **given)
      jobs.append(
        planning.Job(
          request=request,
          text="a",
          clip=clip_jobs.WIDE,
          recipe={},
          path=pathlib.Path("a.mp4"),
          conditioning=mode,
        )
      )
  # Renoised: a last frame only, or a whole video with its first latent clean.
  sizes = [len(batch) for batch in planning.batches(jobs, 8)]
  assert sizes == [3, 1, 1, 2, 1]


def test_notes_of_a_long_table_are_bounded(tmp_path, log_lines):
  table = tmp_path / "words.csv"
  rows = [f"A zz{letter} ball." for letter in string.ascii_lowercase]
  table.write_text("\n".join(["text_prompt", *rows]))
  pipe, _ = fake_sampling.pipeline()
  settings = settings_lib.Settings.from_overrides({"num_steps": 1})
  asked = requests.from_file(table)
  jobs, _ = planning.plan(asked, settings, pipe.components, tmp_path, "")
  unread = [line for line in log_lines if "not in the vocabulary" in line]
  assert len(jobs) == 26 and len(unread) == 20
  assert "note: 6 further notes are not shown" in log_lines


def test_clips_are_batched_by_the_length_of_their_voice(folder, tmp_path):
  table = tmp_path / "voices.csv"
  rows = [
    f"{n},{folder / v}" for n, v in zip("abc", ["tone.wav"] * 2 + ["long.wav"])
  ]
  table.write_text("\n".join(["text_prompt,voice_path", *rows, "d,"]))
  pipe, models = fake_sampling.pipeline()
  settings = settings_lib.Settings.from_overrides(
    {"num_steps": 1, "batch_size": 4}
  )
  jobs, _ = planning.plan(
    requests.from_file(table), settings, pipe.components, tmp_path, ""
  )
  recipes = pipe.generate(jobs, settings, lambda made: made.metadata)
  assert models.voices == [(2, 31, 20), (1, 62, 20), ()]
  voice = recipes[2]["given"]["voice"]
  digest = hashlib.sha256((folder / "long.wav").read_bytes()).hexdigest()
  assert voice["sha256"] == digest and voice["latents"] == 62
  assert recipes[2]["given"]["voice_guidance_scale"] == 1.0
  assert "given" not in recipes[3] and "voice" not in str(recipes[3]["config"])


def test_nothing_left_to_generate_is_refused(folder, tmp_path):
  pipe = ovi_jax.Pipeline.from_pretrained()
  for given, message in (
    ({"video": "clip.mp4", "keep": "0-2"}, "nothing is left to generate"),
    ({"video": "clip.mp4", "keep": "3-4"}, "an interval begins at 3 s, the cl"),
    # Three audio latents, but none of video.
    (
      {"video": "clip.mp4", "keep": "0-1,0.5-0.6"},
      "0.5-0.6 .* for video; use at least 0.34 s",
    ),
    (
      {"video": "clip.mp4", "keep": "0-0.3,0.9-0.92", "audio": "tone.wav"},
      "0.9-0.92 is too short for video",
    ),
    (
      {"audio": "tone.wav", "keep": "0-1,1-1.03"},
      "1-1.03 .* for audio; use at least 0.07",
    ),
    (
      {"video": "clip.mp4", "keep_audio_until": 0.03},
      "0.03 s is too short; use at least 0.04 s",
    ),
    ({"video": "short.mp4"}, "lasts 0.12 s; the shortest clip has 0.21 s"),
    (
      {"voice": "tone.wav", "audio": "tone.wav", "keep": "0-2"},
      "voice: all so",
    ),
  ):
    files: dict[str, Any] = {
      k: folder / v if k in ("video", "audio", "voice") else v
      for k, v in given.items()
    }
    with pytest.raises(ValueError, match=message):
      pipe("a", **files)
  with pytest.raises(ValueError, match="conditioning 'cleen' is unknown"):
    pipe("a", conditioning="cleen")
  assert not pipe._loaded


@pytest.mark.slow
def test_given_media_come_back_and_the_rest_is_generated(folder, tmp_path):
  """V2A and A2V with the small Ovi, by the API and by `sample.py`'s run."""
  pipe = ovi_jax.Pipeline.from_pretrained()
  few = {"num_steps": 2, "progress": False}
  seen = pipe("a", video=folder / "clip.mp4", **few)
  heard = pipe("a", audio=folder / "tone.wav", conditioning="clean", **few)
  assert seen.video.shape == (25, 64, 64, 3) and len(seen.audio) == 32 * 512
  clip = geometry.Clip(
    latent_frames=7, latent_height=4, latent_width=4, audio_latents=32
  )
  latents_THWC = given_media.encode_video(
    None,
    conditions.Conditions(video=folder / "clip.mp4"),
    clip,
    4096,
    pipe._loaded["video_encoder"],
  )
  np.testing.assert_array_equal(seen.latents.video, latents_THWC)
  latents_TC = given_media.encode_audio(
    conditions.Conditions(audio=folder / "tone.wav"),
    clip,
    pipe._loaded["audio_encoder"],
  )
  np.testing.assert_array_equal(heard.latents.audio, latents_TC)
  given = seen.metadata["given"]
  digest = hashlib.sha256((folder / "clip.mp4").read_bytes()).hexdigest()
  assert given["video"]["sha256"] == digest
  assert given["conditioning"] == "renoise" and given["latent_frames"] == 7
  assert "given" not in pipe("a", **few).metadata

  settings = settings_lib.Settings.from_overrides(
    {"num_steps": 2},
    settings_lib.recommended_of(pipe.components.manifest),
  )
  arguments = {
    "settings": settings,
    "weights": synthetic.WEIGHTS,
    "out": tmp_path,
    "save_latents": True,
    "maps": True,
  }
  (path,) = generate.run(requests=asked(folder, video="clip.mp4"), **arguments)
  saved = np.load(path.with_suffix(".npz"))
  np.testing.assert_array_equal(saved["video_THWC"], seen.latents.video)
  np.testing.assert_array_equal(saved["audio_TC"], seen.latents.audio)
  assert len(mp4.read(path)[0]) == 25
  before = pathlib.Path(path).stat().st_mtime_ns
  moved = folder / "moved.mp4"
  moved.write_bytes((folder / "clip.mp4").read_bytes())
  assert generate.run(
    requests=asked(folder, video="moved.mp4"), **arguments
  ) == [path]
  assert pathlib.Path(path).stat().st_mtime_ns == before
