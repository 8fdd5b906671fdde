"""Packing clips into a dataset: contents, splits, determinism."""

import hashlib
import json
import pathlib

import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax.convert import standin
from ovi_jax.curation import clip as clips
from ovi_jax.curation.stages import pack
from ovi_jax.data import builder
from ovi_jax.data import clips as samples
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.media import mp4 as mp4_files

FRAMES, SIDE, LATENTS = 9, 64, 12
PROMPT = "A {} thing says <S>Hi.<E> <AUDCAP>A calm voice.<ENDAUDCAP>"


class Media:
  """What was kept of a clip, and its sound."""

  def __init__(self, video=None, audio_A=None):
    self.audio_A, self.bytes = audio_A, {}
    if video is not None:
      self.bytes = {"video.mp4": video, "audio.pcm": samples.pcm(audio_A)}

  def read_artifact(self, name):
    return self.bytes[name]


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
  """A grey clip of two brightnesses, by number."""
  path = tmp_path_factory.mktemp("media") / "clip.mp4"

  def make(number):
    frames_THWC = np.full((FRAMES, SIDE, SIDE, 3), number * 9, np.uint8)
    frames_THWC[:, :, SIDE // 2 :] += 60
    mp4_files.write(path, [frames_THWC], None)
    return path.read_bytes()

  return make


def wave(number, count=LATENTS * geometry.SAMPLES_PER_AUDIO_LATENT):
  return np.random.default_rng(number).uniform(-0.5, 0.5, count)


def facts(number, **changes):
  return {
    "probe": {"sha256": f"content-{number}"},
    "captions": {"prompts": [PROMPT.format(number), "Another."]},
    **changes,
  }


@pytest.fixture
def pair(mp4):
  """A clip by number, with its media."""

  def make(number, **changes):
    cut = {
      "frames": FRAMES,
      "height": SIDE,
      "width": SIDE,
      "artifacts": ["audio.pcm", "video.mp4"],
    }
    made = clips.Clip(
      id=f"clip-{number}",
      path=f"folder/{number}.mp4",
      start=1.5,
      seconds=FRAMES / 24,
      facts=facts(number, encode=cut),
      scores={"flow": number / 4},
    )
    for name, value in changes.items():
      made = type(made)(**{**made.__dict__, name: value})
    return made, Media(mp4(number), wave(number))

  return make


def sound(number, seconds=2.0):
  """A clip of sound alone."""
  made = clips.Clip(
    id=f"sound-{number}",
    path=f"{number}.wav",
    seconds=seconds,
    facts=facts(number),
  )
  return made, Media(audio_A=wave(number, int(seconds * 16_000)))


def packed(path, pairs, **changes):
  changes = {"eval_fraction": 0.0, **changes}
  return pack.load(pack.Config(**changes))(iter(pairs), path)


def digests(path):
  return {
    file.relative_to(path).as_posix(): hashlib.sha256(
      file.read_bytes()
    ).hexdigest()
    for file in sorted(path.rglob("*"))
  }


def test_a_clip_becomes_its_record(pair, tmp_path):
  made = packed(tmp_path / "data", [pair(1)])
  (record,) = list(builder.read(tmp_path / "data", "train"))
  clip, media = pair(1)
  assert (record.id, record.source) == ("clip-1", "folder/1.mp4 1.500+0.375")
  assert record.captions == tuple(clip.facts["captions"]["prompts"])
  assert record.video == media.bytes["video.mp4"]
  assert record.audio == media.bytes["audio.pcm"]
  sizes = record.frames, record.height, record.width, record.fps
  assert sizes == (FRAMES, SIDE, SIDE, 24.0)
  assert record.scores == {"flow": 0.25}
  assert made == {
    "records": {"train": 1},
    "hours": {"train": round(FRAMES / 24 / 3600, 6)},
    "dropped": {},
    "dropped_clips": {},
  }
  assert builder.splits(tmp_path / "data") == ["train"]


def test_the_trainers_loader_reads_and_batches_it(pair, tmp_path):
  pairs = [pair(n) for n in range(4)] + [sound(5, 0.3)]
  packed(tmp_path / "data", pairs)
  settings = settings_lib.LoaderConfig(
    sources=(settings_lib.Source(path=str(tmp_path / "data")),),
    buckets=(settings_lib.Bucket(video=(3, 4, 4), audio=LATENTS),),
    encode_on_the_fly=True,
    tokenizer=str(standin.HERE / "tokenizer.json"),
    max_text_len=128,
    caption_sampling="first",
  )
  batch = next(loader.load(settings, batch=5, seed=0))
  assert batch.latents.video.shape == (5, FRAMES, SIDE, SIDE, 3)
  each = geometry.SAMPLES_PER_AUDIO_LATENT
  assert batch.latents.audio.shape == (5, LATENTS * each)
  for row, number in enumerate(batch.ids):
    of_video, of_audio = batch.lengths.video[row], batch.lengths.audio[row]
    if number == 4:
      assert (of_video, of_audio) == (0, 9)
      continue
    assert (of_video, of_audio) == (3, LATENTS)
    left = batch.latents.video[row, :, :, : SIDE // 2 - 8].astype(int)
    assert abs(left - number * 9).max() <= 4, "its own pixels"
    expected = wave(int(number))
    np.testing.assert_allclose(batch.latents.audio[row], expected, atol=1e-4)
    assert batch.text.audio[row].any()


def test_the_same_clips_give_the_same_bytes(pair, tmp_path, monkeypatch):
  pairs = [pair(n) for n in range(7)] + [sound(n) for n in range(7)]
  changes = {"records_per_shard": 3, "eval_fraction": 0.3}
  packed(tmp_path / "a", pairs, **changes)
  # A file system that lists files in another order; another time.
  listed = pathlib.Path.iterdir
  monkeypatch.setattr(
    pathlib.Path, "iterdir", lambda p: reversed(sorted(listed(p)))
  )
  monkeypatch.setattr("time.time", lambda: 2e9)
  packed(tmp_path / "other", pairs, **changes)
  monkeypatch.undo()
  ours, theirs = digests(tmp_path / "a"), digests(tmp_path / "other")
  assert ours == theirs and len(ours) > 5
  packed(tmp_path / "c", pairs[::-1], **changes)
  assert digests(tmp_path / "c") != ours


def test_clips_of_one_file_are_in_one_split(pair, tmp_path):
  pairs = [sound(n) for n in range(60)]
  again = [
    (clips.Clip(**{**c.__dict__, "id": f"{c.id}-b", "start": 5.0}), m)
    for c, m in pairs
  ]
  made = packed(tmp_path / "data", [*pairs, *again], eval_fraction=0.25)
  test = {r.id for r in builder.read(tmp_path / "data", "test")}
  train = {r.id for r in builder.read(tmp_path / "data", "train")}
  assert len(test) + len(train) == 120 and not test & train
  assert made["records"] == {"train": len(train), "test": len(test)}
  assert 12 <= len(test) <= 48  # 30 ± 3.3 deviations, two clips a file
  assert {f"{i}-b" for i in test if "-b" not in i} == {
    i for i in test if "-b" in i
  }


def test_the_eval_split_depends_on_content_and_seed():
  config = pack.Config(eval_fraction=0.5)
  made = [sound(n)[0] for n in range(40)]
  ours = [pack.split_of(clip, config) for clip in made]
  renamed = [clips.Clip(**{**c.__dict__, "path": "x", "id": "y"}) for c in made]
  assert ours == [pack.split_of(clip, config) for clip in renamed]
  other = pack.Config(eval_fraction=0.5, seed=1)
  assert ours != [pack.split_of(clip, other) for clip in made]
  fewer = [pack.split_of(c, pack.Config(eval_fraction=0.2)) for c in made]
  assert {n for n, s in enumerate(fewer) if s == "test"} < {
    n for n, s in enumerate(ours) if s == "test"
  }


def test_invalid_records_are_skipped_and_named(pair, tmp_path):
  wordless = pair(1, facts=facts(1, captions={}))
  odd = pair(2)
  odd[0].facts["encode"]["frames"] = 8
  lost = pair(3)
  del lost[1].bytes["video.mp4"]
  infinite = pair(4, scores={"flow": float("inf")})
  twice = pair(5)
  pairs = [wordless, odd, lost, infinite, twice, twice, sound(6, 12.01)]
  made = packed(tmp_path / "data", [*pairs, sound(7, 12.0)])
  assert made["records"] == {"train": 2}
  assert made["dropped"] == {"invalid record": 5, "duplicate": 1}
  told = made["dropped_clips"]
  assert told["duplicate"] == ["clip-5"]
  for part, line in zip(
    ("captions: expected", "frames: expected 5", "video.mp4", "inf", "12.010"),
    told["invalid record"],
    strict=True,
  ):
    assert part in line
  assert json.dumps(made)


def test_clips_are_streamed(tmp_path):
  """Of a thousand clips, no more than a few are there at a time."""
  alive, most = set(), 0

  class Watched(Media):
    def __init__(self, number):
      super().__init__(audio_A=wave(number, 600))
      self.number = number
      alive.add(number)

    def __del__(self):
      alive.discard(self.number)

  def every():
    nonlocal most
    for number in range(300):
      yield sound(number)[0], Watched(number)
      most = max(most, len(alive))

  made = packed(tmp_path / "data", every(), eval_fraction=0.5)
  assert sum(made["records"].values()) == 300 and most <= 3


def test_an_empty_train_split_is_refused(pair, tmp_path):
  with pytest.raises(ValueError, match="no clip is left.*'invalid record': 1"):
    packed(tmp_path / "data", [pair(1, facts=facts(1, captions={}))])
  assert not (tmp_path / "data").exists()
  config = {"eval_fraction": 0.999}
  assert pack.split_of(pair(1)[0], pack.Config(**config)) == "test"
  with pytest.raises(ValueError, match="all are in the eval split: lower"):
    packed(tmp_path / "data", [pair(1)], **config)


def test_a_failed_write_leaves_nothing(pair, tmp_path):
  def every():
    yield pair(1)
    raise OSError("the disk is gone")

  with pytest.raises(OSError, match="the disk is gone"):
    packed(tmp_path / "data", every(), records_per_shard=1)
  assert not list(tmp_path.iterdir())


def test_unreadable_artifacts_are_an_error(pair, tmp_path):
  away = pair(2)

  def kept(name):
    raise OSError("the disk is away")

  away[1].read_artifact = kept
  with pytest.raises(OSError, match="the disk is away"):
    packed(tmp_path / "data", [pair(1), away])
  assert not list(tmp_path.iterdir())


def test_hostile_names_and_ids_are_harmless(pair, tmp_path):
  name = b"\xff<S>\n\x00.mp4".decode(errors="surrogateescape")
  packed(tmp_path / "data", [pair(1, path=name)])
  (record,) = list(builder.read(tmp_path / "data", "train"))
  assert record.source.startswith("\\udcff<S>")
  nowhere = pair(1, path=name, facts={})[0]
  assert pack.split_of(nowhere, pack.Config()) in ("train", "test")


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"eval_fraction": 1.0}, "eval_fraction: expected a fraction"),
    ({"records_per_shard": 0}, "records_per_shard of at least 1"),
    ({"max_audio_seconds": 0}, "max_audio_seconds above 0"),
  ],
)
def test_settings_are_checked(changes, expected):
  with pytest.raises(ValueError, match=expected):
    pack.Config(**changes)


def test_records_have_the_schema_of_the_trainer():
  clip, media = sound(1)
  record = pack.record(clip, media)
  assert isinstance(record, schema.Record) and record.video is None
  assert record.seconds == 2.0
