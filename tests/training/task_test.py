"""Tasks: codecs, resumed after an interruption, their plans, bad configs."""

import importlib
import os
import signal

import jax
import ml_collections
import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import logs
from ovi_jax.training import param_filter
from ovi_jax.training import settings
from ovi_jax.training import task as tasks
from ovi_jax.training.codecs import input as inputs
from tests.lib import small_codec

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_state(tmp_path, monkeypatch):
  assert small_codec.train(small_codec.config(), tmp_path / "whole")
  following = inputs.Input.__next__

  def stop(self):
    if self.get_state()["step"] == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return following(self)

  with monkeypatch.context() as patch:
    patch.setattr(inputs.Input, "__next__", stop)
    assert not small_codec.train(small_codec.config(), tmp_path / "cut")
  assert small_codec.train(
    small_codec.config(**{"data.prefetch_batches": 1}), tmp_path / "cut"
  )
  ours, theirs = (
    small_codec.arrays(tmp_path / "cut"),
    small_codec.arrays(tmp_path / "whole"),
  )
  assert (
    ours.keys() == theirs.keys()
    and "trained_params/decoder/head/norm/scale" in (ours)
  )
  for name, value in theirs.items():
    np.testing.assert_array_equal(ours[name], value, name)
  lines = logs.read(tmp_path / "whole")
  assert [line["step"] for line in lines] == [2, 4, 6]
  for name in ("recon", "motion", "kl"):
    assert lines[-1][f"train/loss_{name}"] > 0
  assert "perf/tokens_per_second" not in lines[-1]
  assert lines[-1]["perf/clips_per_second"] > 0
  with pytest.raises(ValueError, match="seed: 0 in the run, 1 now"):
    small_codec.train(small_codec.config(seed=1), tmp_path / "whole")
  # A field that the config no longer has is named.
  file = tmp_path / "whole" / "config.json"
  file.write_text(
    file.read_text().replace(' "trainable": "all"', ' "walks": 0')
  )
  with pytest.raises(ValueError, match="walks: 0 in the run, absent now"):
    small_codec.train(small_codec.config(), tmp_path / "whole")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"component": "clip"}, "component 'clip' is unknown; choose from .*video"),
    ({"model.breadth": 3}, "unknown sizes of the .*: breadth; known are"),
    (
      {"objective.glow": 1.0},
      "config.objective.glow is unknown; the fields are",
    ),
    ({"objective.smoothness_weight": 0.0}, "smoothness_weight positive"),
    ({"data.frame": 5}, "config.data.frame is unknown"),
    ({"data.num_frames": 6}, "num_frames must be 0 or 1"),
    ({"dtype": "float8"}, "dtype 'float8' is unknown"),
    (
      {"batch_size": 3, "grad_accum_steps": 2},
      "batch_size 3 must be a multiple of 2",
    ),
    (
      {"trainable": "attention"},
      "trainable 'attention' is unknown; choose from all",
    ),
    (
      {"trainable": "decoder"},
      "a random encoder; name a run or a dir",
    ),
    ({"sample_every": 2}, "codecs have no evaluation"),
    ({"walks": 1}, "config.walks is unknown"),
  ],
)
def test_invalid_configs_are_refused_before_the_first_step(
  changes, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    small_codec.train(small_codec.config(**changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_starts_from_another_run(tmp_path):
  short = {
    "num_train_steps": 3,
    "checkpoint_every": 3,
    "optimizer.ema_decay": 0.0,
  }
  assert small_codec.train(small_codec.config(**short), tmp_path / "first")
  # A learning rate so small that nothing moves.
  further = {
    "init_from": str(tmp_path / "first"),
    "data.num_frames": 9,
    "seed": 5,
  }
  still = short | further | {"optimizer.learning_rate": 1e-30}
  assert small_codec.train(small_codec.config(**still), tmp_path / "second")
  first, second = (
    small_codec.arrays(tmp_path / n, 3) for n in ("first", "second")
  )
  for name in (n for n in first if n.startswith("trained_params/")):
    np.testing.assert_array_equal(first[name], second[name], name)
  # Resuming does not need the initial weights.
  (tmp_path / "first").rename(tmp_path / "away")
  assert small_codec.train(
    small_codec.config(**still | {"num_train_steps": 4}), tmp_path / "second"
  )
  with pytest.raises(ValueError, match="first"):
    small_codec.train(small_codec.config(**still), tmp_path / "third")
  # The decoder alone: the latents of clips stay what they are.
  later = short | {
    "init_from": str(tmp_path / "second"),
    "trainable": "decoder",
  }
  assert small_codec.train(small_codec.config(**later), tmp_path / "decoder")
  third = small_codec.arrays(tmp_path / "decoder", 3)
  paths = [
    n.removeprefix("trained_params/")
    for n in second
    if n.startswith("trained_params/")
  ]
  for path in paths:
    group = "trained_params" if path.startswith("decoder/") else "frozen_params"
    same = np.array_equal(
      second[f"trained_params/{path}"], third[f"{group}/{path}"]
    )
    assert same == (group == "frozen_params"), path
  assert {n.split("/")[0] for n in third} >= {"trained_params", "frozen_params"}
  wide = still | {"init_from": str(tmp_path / "away"), "model.dim": 3}
  with pytest.raises(ValueError, match="encoder"):
    small_codec.train(small_codec.config(**wide), tmp_path / "fourth")


def test_a_run_starts_from_weights_with_a_new_head():
  values = small_codec.config(init_from=str(synthetic.WEIGHTS))
  shipped = weights_dir.read(synthetic.WEIGHTS).sizes["video_vae"]
  with values.unlocked():
    values.model = dict(shipped) | {"latent_mean": (0.0,) * 16}
  plan = tasks.make(settings.from_config(values)).init_plan()
  assert plan.parts and not plan.scratch
  text = importlib.import_module("configs.codec_text").get_config("mini")
  text.init_from = str(synthetic.WEIGHTS)
  text.data.tokenizer = str(synthetic.WEIGHTS / weights_dir.TOKENIZER)
  plan = tasks.make(settings.from_config(text)).init_plan()
  assert plan.parts and plan.scratch
  assert all(path.startswith("head/") for path in plan.scratch)
  wrong = {"trainable": "decoder"}
  with pytest.raises(ValueError, match="is for video_vae, not umt5; set 'all'"):
    settings.from_config(ml_collections.ConfigDict(dict(text) | wrong))


@pytest.mark.parametrize("size", ["mini", ""])
def test_the_shipped_config_is_valid(size):
  values = importlib.import_module("configs.codec_video").get_config(size)
  chosen = settings.from_config(values)
  assert isinstance(chosen, settings.CodecSettings)
  assert chosen.component in settings.CODECS
  assert chosen.data.num_frames == (9 if size else 17)
  assert chosen.make_objective("gpu").dtype == "bfloat16"


@pytest.mark.slow
def test_a_codec_without_init_from_is_initialized_at_random():
  task = tasks.make(settings.from_config(small_codec.config(seed=3)))
  plan = task.init_plan()
  assert not plan.parts and set(plan.scratch) == set(plan.shapes)
  assert plan.lines() == [f"{len(plan.shapes)} arrays initialized at random"]
  state = task.initial_state(plan, task.target_state(task.make_mesh()))
  expected = param_filter.flat(task.init_params(jax.random.key(3)))
  assert state.trained_params.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(
      state.trained_params[path], value, rtol=1e-6, atol=1e-7, err_msg=path
    )
  # The moving average begins with the parameters.
  assert state.ema_params is not None and int(state.step) == 0
