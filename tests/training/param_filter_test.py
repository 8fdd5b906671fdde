"""Trained parameters at full size: the paper's 5.7 B of 11 B."""

import math

import jax
import jax.numpy as jnp
import pytest

from ovi_jax.models import architecture
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import step
from tests.lib import standin_models


@pytest.fixture(scope="module")
def full() -> dict:
  shapes = architecture.parameter_shapes("fusion", standin_models.FULL_FUSION)
  return param_filter.flat(shapes)


def count(params: dict) -> int:
  return sum(math.prod(x.shape) for x in params.values())


def test_the_fusion_stage_trains_the_share_stated_in_the_paper(full):
  trained, frozen = param_filter.split(full, param_filter.ATTENTION)
  assert count(trained) + count(frozen) == 11_660_753_108
  assert count(trained) == 5_709_496_320
  assert not trained.keys() & frozen.keys()
  kinds = {path.split("/")[-2] for path in frozen}
  assert "query" not in kinds and "fusion_key" not in kinds
  assert any("cross_norm" in path for path in frozen)


def test_optimizer_state_covers_trained_parameters_only(full):
  trained, frozen = param_filter.split(full, param_filter.ATTENTION)
  frozen = {
    n: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for n, x in frozen.items()
  }
  settings = optimizer.OptimizerConfig(learning_rate=5e-5)
  step_config = step.TrainStepConfig(None, settings, 40_000)
  state = jax.eval_shape(
    lambda t, f: step.init_state(step_config, t, f, 0), trained, frozen
  )
  moments = sum(math.prod(x.shape) for x in jax.tree.leaves(state.opt_state))
  assert 0 <= moments - 2 * count(trained) <= 4
  assert count(state.ema_params) == count(trained)
  assert {x.dtype.name for x in state.frozen_params.values()} == {"bfloat16"}
  assert {x.dtype.name for x in state.trained_params.values()} == {"float32"}


def test_an_audio_tower_is_trained_alone(full):
  audio = {n: x for n, x in full.items() if "video" not in n}
  trained, frozen = param_filter.split(audio, param_filter.ALL)
  assert trained == audio and not frozen


def test_unknown_choices_are_refused(full):
  with pytest.raises(ValueError, match="'some' is unknown; choose from all, a"):
    param_filter.split(full, "some")
  with pytest.raises(
    ValueError, match=r"matches none of \['video/head/bias'\]"
  ):
    param_filter.split({"video/head/bias": 0}, param_filter.ATTENTION)


def test_every_name_and_pattern_trains_something(full):
  for chosen, named in (
    ("attention,decoder", "'decoder'"),
    ("decoder,attention", "'decoder'"),
    ("attention,blocks/sound/.*", "'blocks/sound/.*'"),
  ):
    with pytest.raises(ValueError, match="matches no parameter") as error:
      param_filter.split(full, chosen)
    assert named in str(error.value)
  codec = {"decoder/a": 0, "encoder/a": 1}
  trained, frozen = param_filter.split(codec, "decoder")
  assert trained.keys() == {"decoder/a"} and frozen.keys() == {"encoder/a"}


def test_patterns_choose_parameters_by_their_whole_path(full):
  chosen = r"blocks/audio/.*, (video|audio)/head/.*"
  trained, frozen = param_filter.split(full, chosen)
  tops = {"/".join(path.split("/")[:2]) for path in trained}
  assert tops == {"blocks/audio", "video/head", "audio/head"}
  assert not any(path.startswith("blocks/audio") for path in frozen)
  # Names of `TRAINABLE` and patterns add up.
  more, _ = param_filter.split(full, rf"attention,{chosen}")
  attention, _ = param_filter.split(full, param_filter.ATTENTION)
  assert more.keys() == trained.keys() | attention.keys()


@pytest.mark.parametrize(
  ("chosen", "message"),
  [
    ("blocks/x/.*", r"'blocks/x/.\*' matches no parameter"),
    ("all,blocks/x/.*", r"'blocks/x/.\*' matches no parameter"),
    ("blocks/(", r"'blocks/\(' is not a regular expression"),
    ("lora,blocks/audio/.*", "'lora' freezes all .* cannot be combined"),
    ("atention,blocks/audio/.*", "'atention' is unknown; choose from all, a"),
  ],
)
def test_patterns_that_cannot_be_are_refused(full, chosen, message):
  with pytest.raises(ValueError, match=message):
    param_filter.split(full, chosen)


def test_nesting_round_trips():
  params = {"a/b": 1, "a/c/d": 2, "e": 3}
  assert param_filter.flat(param_filter.nested(params)) == params
