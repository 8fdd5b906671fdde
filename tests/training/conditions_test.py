"""What is given in training: shares, masks, presets."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ovi_jax import config_files
from ovi_jax.modality import AV
from ovi_jax.training import conditions
from ovi_jax.training import default_config
from ovi_jax.training import settings

SIZES = {"video": 8, "audio": 36}
LENGTHS = AV(jnp.int32(6), jnp.int32(26))  # 21 frames: 0.875 s, and 0.83 s
EXAMPLES = 2000


@functools.partial(jax.jit, static_argnums=0)
def sampled(config, keys, lengths):
  return jax.vmap(lambda key: conditions.sample(config, key, SIZES, lengths))(
    keys
  )


def drawn(
  config: conditions.ConditionsConfig,
  lengths: AV[jax.Array] = LENGTHS,
  examples: int = EXAMPLES,
) -> AV[np.ndarray]:
  """Masks of many examples."""
  keys = jax.random.split(jax.random.key(0), examples)
  return jax.tree.map(np.asarray, sampled(config, keys, lengths))


def config_of(video=None, audio=None, **others) -> conditions.ConditionsConfig:
  return conditions.ConditionsConfig(
    video=conditions.ConditionProbs(**(video or {})),
    audio=conditions.ConditionProbs(**(audio or {})),
    **others,
  )


@pytest.mark.parametrize(
  ("kind", "places"),
  [("first_frame", [0]), ("last_frame", [5]), ("whole", range(6))],
)
def test_frames_and_wholes_are_given_with_their_share(kind, places):
  found = drawn(config_of({f"{kind}_prob": 0.25}))
  assert found.audio is None  # one time embedding, not two
  some_B = found.video.any(1)
  assert some_B.mean() == pytest.approx(0.25, abs=0.03)
  expected = np.isin(np.arange(8), list(places))
  assert (found.video[some_B] == expected).all()


def test_a_prefix_of_video_comes_with_its_sound():
  shares = {"prefix_prob": 0.5}
  found = drawn(config_of(shares, shares, prefix_seconds=(0.05, 0.6)))
  video, audio = found.video.sum(1), found.audio.sum(1)
  assert (audio > 0).mean() == pytest.approx(0.5, abs=0.04)
  assert ((video > 0) == (audio > 0)).all()
  # 0.05 s are a frame and a step; 0.6 s are 14 frames (4 latents), 18 steps.
  assert set(video) == {0, 1, 2, 3, 4} and audio.max() == 18
  assert (np.sort(found.video, 1)[:, ::-1] == found.video).all()
  ends = np.where(video > 0, (1 + 4 * (video - 1)) / 24, 0)
  assert (ends <= (audio + 1) / 31.25).all()
  assert (audio / 31.25 <= ends + 4 / 24).all()


def test_wholes_exclude_each_other_and_spans_are_of_one_time():
  found = drawn(config_of({"whole_prob": 0.4}, {"whole_prob": 0.6}))
  all_video, all_audio = found.video[:, :6].all(1), found.audio[:, :26].all(1)
  assert (all_video ^ all_audio).all()
  assert all_video.mean() == pytest.approx(0.4, abs=0.04)
  found = drawn(config_of({"span_prob": 1.0}, {"span_prob": 1.0}))
  assert not found.video[:, 6:].any() and not found.audio[:, 26:].any()
  starts = np.abs(np.diff(found.audio.astype(int), axis=1)).sum(1)
  assert starts.max() <= 2  # one interval
  covered = found.audio[:, :26].mean()
  assert covered == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize(
  ("video", "audio"), [(6, 0), (0, 26), (1, 0), (1, 1), (2, 5)]
)
def test_a_latent_of_every_example_is_left_to_generate(video, audio):
  shares = {"whole_prob": 0.5, "prefix_prob": 0.5, "span_prob": 0.5}
  config = config_of(
    {"first_frame_prob": 0.5, "last_frame_prob": 0.5, **shares}, shares
  )
  found = drawn(config, AV(jnp.int32(video), jnp.int32(audio)), 200)
  given = found.video.sum(1) + found.audio.sum(1)
  assert given.max() < video + audio
  assert (given.max() > 0) == (video + audio > 1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"video": {"prefix_prob": 1.5}},
      "video.prefix_prob must be a probability in .0, 1., got 1.5",
    ),
    ({"audio": {"first_frame_prob": 0.1}}, "conditions.audio has no frames"),
    (
      {"video": {"whole_prob": 0.6}, "audio": {"whole_prob": 0.5}},
      "at most 1, got 1.1",
    ),
    ({"video": {"reference_prob": 0.1}}, "conditions.video has no reference"),
    (
      {"reference_seconds": (0.01, 1.0)},
      r"reference_seconds: expected .*\(0.01, 1.0\)",
    ),
    (
      {"prefix_seconds": (2.0, 1.0)},
      r"prefix_seconds: expected .*\(2.0, 1.0\)",
    ),
  ],
)
def test_impossible_shares_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    config_of(**change)


def test_towers_decide_what_can_be_given():
  video = default_config.training(video=True, audio=False)
  video.objective.conditions.video.whole_prob = 0.5
  video.objective.conditions.audio.prefix_prob = 0.5
  with pytest.raises(ValueError) as error:
    settings.from_config(video)
  assert "video.whole_prob: the model has no other tower" in str(error.value)
  assert "conditions.audio: the model has no audio tower" in str(error.value)
  video.objective.conditions.video.hole_prob = 0.5
  with pytest.raises(
    ValueError, match="hole_prob is unknown .did you mean whole_prob"
  ):
    settings.from_config(video)


def test_references_are_spans_of_the_sound_that_leave_a_third_of_it():
  config = config_of(
    audio={"reference_prob": 0.5}, reference_seconds=(0.16, 0.64)
  )
  assert config.reference_latents == (5, 20) and config.more_than_first_frames
  keys = jax.random.split(jax.random.key(1), EXAMPLES)

  def found(length: int) -> Any:
    one = functools.partial(conditions.sample_reference, config)
    return jax.vmap(lambda key: one(key, jnp.int32(length)))(keys)

  place_BR, count_B = jax.tree.map(np.asarray, found(60))
  start_B = place_BR[:, 0]
  assert place_BR.shape[1] == 20
  assert ((count_B == 0) | ((count_B >= 5) & (count_B <= 20))).all()
  assert (count_B > 0).mean() == pytest.approx(0.5, abs=0.04)
  assert (start_B >= 0).all() and (start_B + count_B <= 60).all()
  assert len(np.unique(start_B)) > 40 and len(np.unique(count_B)) == 17
  # Two thirds of 21 are 14. Of 11, two on either side and one more are left;
  # of 9 that would be fewer than the shortest.
  assert set(np.asarray(found(21).length)) == {0, *range(5, 15)}
  assert set(np.asarray(found(11).length)) == {0, 5, 6}
  assert set(np.asarray(found(9).length)) == {0}
  nothing = config_of({"first_frame_prob": 0.5})
  assert conditions.sample_reference(nothing, keys[0], jnp.int32(9)) is None


def test_a_reference_covers_its_time_of_both_modalities_and_what_is_beside():
  # Latents 10 to 14 are 0.32 to 0.48 s, in the video latents that begin at
  # frames 5 and 9: those at places 2 and 3.
  place_BR = jnp.stack([10 + jnp.arange(6), jnp.arange(6), jnp.arange(6)])
  reference = conditions.Reference(place_BR, jnp.int32([5, 1, 0]))
  for name, count, expected in (
    ("audio", 20, [range(8, 17), range(3), ()]),
    ("video", 6, [range(1, 5), range(2), ()]),
  ):
    for covered_T, places in zip(reference.covers(name, count), expected):
      assert np.flatnonzero(covered_T).tolist() == list(places)


def test_what_is_given_beside_a_reference_leaves_a_latent_with_a_loss():
  # All of the video, or of the sound but the last 16 latents: with a reference
  # there and 2 beside it, nothing is left.
  config = config_of(
    {"whole_prob": 1.0}, {"prefix_prob": 1.0}, prefix_seconds=(0.32, 0.32)
  )
  lengths = AV(jnp.int32(6), jnp.int32(26))
  draw = jax.jit(
    lambda reference: conditions.sample(
      config, jax.random.key(0), SIZES, lengths, reference
    )
  )
  for start, length, some in ((10, 16, False), (10, 13, True), (0, 0, True)):
    reference = conditions.Reference(start + jnp.arange(16), jnp.int32(length))
    given = draw(reference)
    assert given.video.any() == given.audio.any() == some


def test_sounds_that_reach_the_positions_of_references_are_refused():
  config = config_files.load("conditions/voice:fusion:mini")
  config.data.audio_buckets = (157, 800)
  with pytest.raises(ValueError, match="sounds of 800 latents reach the posi"):
    settings.from_config(config)


@pytest.mark.parametrize(
  "name", ["i2v", "v2a", "a2v", "extend", "voice", "all"]
)
def test_presets_change_the_conditions_of_a_stage(name):
  config = config_files.load(f"conditions/{name}:small")
  base = config_files.load("small")
  found: Any = settings.from_config(config)
  assert found.objective.conditions.more_than_first_frames == (name != "i2v")
  assert found.objective.timesteps.shared_prob == 0.5
  restored = dataclasses.replace(
    found, objective=settings.from_config(base).objective
  )
  assert restored == settings.from_config(base)
  stored = json.loads(json.dumps(config.to_dict()))
  again: Any = settings.from_config(ml_collections.ConfigDict(stored))
  assert hash(again.objective) == hash(found.objective)
  mini: Any = settings.from_config(
    config_files.load(f"conditions/{name}:fusion:mini")
  )
  assert mini.objective.conditions == found.objective.conditions
