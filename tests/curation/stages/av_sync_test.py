"""Clips in sync pass; others are rejected."""

import dataclasses

import jax
import numpy as np
import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.faces import crops
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.stages import av_sync
from ovi_jax.curation.sync import lip_sync
from tests.lib.curation import fake_media

TINY = dataclasses.replace(syncnet.SyncNetConfig.narrow(32), embedding_dim=8)


def talking(name: str, speaking: bool = True) -> clips.Clip:
  return clips.Clip(id=name, path=f"{name}.mp4").with_facts(
    "vad", segments=[[0, 5]], seconds=5, speaking=speaking
  )


def noisy_media(seed: int, frames: tuple[int, ...]) -> fake_media.FakeMedia:
  """Tracks of so many pictures each, and six seconds of sound."""
  random = np.random.default_rng(seed)
  made = []
  for first, count in enumerate(frames):
    small = random.integers(0, 256, (count, 7, 7, 3), np.uint8)
    frames_THWC = small.repeat(32, 1).repeat(32, 2)
    made.append(crops.TrackCrops(first=first, frames_THWC=frames_THWC))
  sound = random.integers(-9000, 9000, 96_000).astype("<i2")
  files = {"faces.npz": crops.pack(made), "audio.pcm": sound.tobytes()}
  return fake_media.FakeMedia(files=files)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
  """A tiny untrained network."""
  path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: (
      np.abs(random.normal(0, 0.2, x.shape)).astype(np.float32)
      if x.ndim == 1
      else random.normal(0, 0.2, x.shape).astype(np.float32)
    ),
    syncnet.shapes(TINY),
  )
  syncnet_weights.save(path, TINY, variables)
  return str(path)


@pytest.fixture(scope="module")
def pairs():
  """Of several faces, of one, of too short a one; a silent one; of none."""
  return [
    (talking("two"), noisy_media(0, (60, 45))),
    (talking("one"), noisy_media(1, (31,))),
    (talking("short"), noisy_media(2, (20,))),
    (talking("quiet", speaking=False), fake_media.FakeMedia()),
    (clips.Clip(id="new", path="new.mp4"), fake_media.FakeMedia()),
  ]


@pytest.fixture(scope="module")
def outcomes(weights, pairs):
  return av_sync.load(av_sync.Config(weights=weights, batch_size=2))(pairs)


@pytest.mark.slow
def test_each_clip_has_its_own_outcome(pairs, outcomes):
  # The network is untrained, so every tested clip is rejected.
  assert [o.clip.id for o in outcomes[:2]] == ["two", "one"]
  for outcome, (clip, _) in zip(outcomes[:2], pairs):
    assert isinstance(outcome, clips.Reject) and not outcome.failed
    assert outcome.clip == clip
  for outcome, (clip, _) in zip(outcomes[2:], pairs[2:]):
    assert outcome == clip.with_facts("av_sync", tested=False)


@pytest.mark.slow
def test_batched_scores_equal_single_ones(weights, pairs, outcomes):
  config, variables = syncnet_weights.load(weights)
  network = jax.jit(syncnet.SyncNet(config).apply)
  for outcome, (_, media) in zip(outcomes[:2], pairs):
    samples_A = np.frombuffer(media.files["audio.pcm"], "<i2")
    scores = []
    for track in crops.unpack(media.files["faces.npz"]):
      frames_THWC, sound_TKM = lip_sync.make_windows(track, samples_A)
      lips, sound = network(variables, frames_THWC[None], sound_TKM[None])
      scores.append(lip_sync.score(np.asarray(lips[0]), np.asarray(sound[0])))
    best = int(np.argmax([s.confidence for s in scores]))
    offset, confidence = scores[best].offset, scores[best].confidence
    assert outcome.detail.startswith(f"offset {offset}, confidence ")
    assert outcome.detail.endswith(f"track {best}")
    told = float(outcome.detail.split(", ")[1].split()[1])
    assert told == pytest.approx(confidence, abs=2e-4, rel=1e-5)


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(weights, pairs, outcomes):
  other = av_sync.Config(weights=weights, batch_size=3)
  assert av_sync.load(other)(pairs) == outcomes
  few = av_sync.Config(weights=weights, batch_size=2)
  assert av_sync.load(few)(pairs[1:2]) == outcomes[1:2]
  assert av_sync.fingerprint(other) == av_sync.fingerprint(few)


def judged(**scores: tuple[int, float]) -> clips.Clip | clips.Reject:
  found = {
    number: lip_sync.Score(offset, confidence, 1.0)
    for number, (offset, confidence) in enumerate(scores.values())
  }
  return av_sync._outcome(talking("a"), found, av_sync.Config())


@pytest.mark.parametrize("offset", [-3, 0, 3])
def test_a_small_offset_with_confidence_passes(offset):
  kept = judged(a=(offset, 1.51))
  assert isinstance(kept, clips.Clip)
  assert kept.facts["av_sync"] == {
    "tested": True,
    "offset": offset,
    "confidence": 1.51,
    "track": 0,
  }
  assert kept.scores == {"sync_offset": offset, "sync_confidence": 1.51}


@pytest.mark.parametrize(
  "offset, confidence, reason, score",
  [
    (4, 5.0, av_sync.OUT_OF_SYNC, 4.0),
    (-4, 5.0, av_sync.OUT_OF_SYNC, -4.0),
    (0, 1.5, av_sync.LOW_CONFIDENCE, 1.5),
    (9, 0.2, av_sync.LOW_CONFIDENCE, 0.2),
  ],
)
def test_a_large_offset_or_low_confidence_is_rejected(
  offset, confidence, reason, score
):
  refused = judged(a=(offset, confidence))
  assert isinstance(refused, clips.Reject)
  assert (refused.reason, refused.score) == (reason, score)


def test_the_speaker_is_the_best_synchronized_face():
  kept = judged(listener=(9, 0.4), speaker=(1, 6.0), other=(0, 1.6))
  assert isinstance(kept, clips.Clip)
  assert kept.facts["av_sync"]["track"] == 1


def test_missing_weights_are_refused_unless_allowed(pairs, tmp_path):
  with pytest.raises(ValueError, match="set if_missing to pass"):
    av_sync.load(av_sync.Config())
  missing = av_sync.Config(weights=str(tmp_path / "no.model"))
  for function in (av_sync.load, av_sync.fingerprint):
    with pytest.raises(ValueError, match=r"no such file: .*no\.model"):
      function(missing)
  passing = av_sync.Config(if_missing="pass")
  outcomes = av_sync.load(passing)(pairs)
  assert all(o.facts["av_sync"] == {"tested": False} for o in outcomes)


def test_the_fingerprint_depends_on_the_content_of_the_weights(
  weights, tmp_path
):
  one = av_sync.fingerprint(av_sync.Config(weights=weights))
  copy = tmp_path / "moved.safetensors"
  with open(weights, "rb") as file:
    copy.write_bytes(file.read())
  assert av_sync.fingerprint(av_sync.Config(weights=str(copy))) == one
  with copy.open("ab") as file:
    file.write(b" ")
  assert av_sync.fingerprint(av_sync.Config(weights=str(copy))) != one


def test_missing_artifacts_are_an_error(weights):
  run = av_sync.load(av_sync.Config(weights=weights))
  with pytest.raises(KeyError, match=r"audio\.pcm"):
    run([(talking("a"), fake_media.FakeMedia())])


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"if_missing": "skip"}, "expected error or pass"),
    ({"max_offset": 16}, "expected 0 to 15"),
    ({"batch_size": 0}, "at least 1"),
  ],
)
def test_settings_are_checked(fields, message):
  with pytest.raises(ValueError, match=message):
    av_sync.Config(**fields)
