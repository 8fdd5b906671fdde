"""Ablations: commands and result tables."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax.sampling import attention_maps
from scripts.small_ovi import ablation


@pytest.fixture
def settings():
  values = importlib.import_module("configs.ablations.audio_rope").get_config()
  values.seeds = (0, 1)
  return ablation.Settings.from_config(values)


def commands(settings, root) -> dict[str, tuple[str, ...]]:
  """Words by the name of their step; no name is there twice."""
  todo = list(ablation.steps(settings, root, synthetic.WEIGHTS))
  found = {step.name: step.words for step in todo}
  assert len(found) == len(todo)
  return found


def test_variants_differ_only_in_the_named_fields(settings, tmp_path):
  found = commands(settings, tmp_path)
  trained = {n: words for n, words in found.items() if words[0] == "train.py"}
  own = [stage for stage in settings.stages if stage != "video_pretrain"]
  assert len(trained) == 2 * (1 + 2 * len(own))
  for stage in own:
    one, other = (
      set(trained[f"{variant}_1 {stage}"]) for variant in settings.variants
    )
    changed = {word for word in one ^ other if str(tmp_path) not in word}
    assert changed == {
      "--config.model.audio.rope_scale=0.19676",
      "--config.model.audio.rope_scale=1.0",
    }
    assert (
      "--config.seed=1" in one
      and f"--config.num_train_steps={settings.stages[stage]}" in one
    )
  fusion = trained["scaled_0 fusion"]
  home = tmp_path / "audio_rope"
  shared = home / "shared_0" / "video_pretrain"
  assert f"--config.init_from.video={shared}" in fusion
  own = home / "scaled_0" / "audio_finetune"
  assert f"--config.init_from.audio={own}" in fusion
  assert f"--config.data.sources={(str(home / 'clips'),)}" in fusion


def test_a_change_of_one_tower_leaves_the_other_alone(settings, tmp_path):
  variants = {
    "wide": ("model.video.hidden_dim=64", "data.buffer=4"),
    "plain": ("data.buffer=4",),
  }
  settings = dataclasses.replace(settings, variants=variants)
  found = commands(settings, tmp_path)
  assert ablation.shared(settings) == ["audio_finetune"]
  assert not any(
    "model.video" in word for word in found["shared_0 audio_finetune"]
  )
  for stage in ("video_pretrain", "fusion"):
    assert "--config.model.video.hidden_dim=64" in found[f"wide_0 {stage}"]


def test_stages_after_a_changed_one_are_not_shared(settings):
  variants = {"slow": ("model.video.hidden_dim=64",), "quick": ()}
  settings = dataclasses.replace(settings, variants=variants)
  assert ablation.shared(settings) == ["audio_finetune"]


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"stages": {"fusoin": 3}}, "stages \\['fusoin'\\] are not the recipe's"),
    (
      {"stages": {"video_pretrain": 3}, "init_from": {}},
      "init_from.video_pretrain.video: expected 'scratch' or a stage above"
      " \\(none\\), got None",
    ),
  ],
)
def test_unknown_stages_and_sources_are_refused(settings, fields, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(settings, **fields)


def test_the_table_has_scores_and_maps(settings, tmp_path):
  S, T = 157, 31
  for number, variant in enumerate(settings.variants):
    for seed in settings.seeds:
      place = tmp_path / ablation.run_name(variant, seed)
      (place / "clips").mkdir(parents=True)
      value = 0.5 + 0.1 * number + 0.02 * seed
      scores = [{"name": n, "value": value} for n in ablation.SCORES.values()]
      (place / "scores.json").write_text(json.dumps({"scores": scores}))
      clip = place / "clips" / "a.mp4"
      clip.write_bytes(b"")
      audio = np.full((S, T, 1, 1), 1 / T)
      video = np.zeros((T, 1, 1, S))
      video[np.arange(T), 0, 0, np.clip(np.arange(T) * 5, 0, S - 1)] = 1
      npz = attention_maps.files_of(clip)[2]
      npz.parent.mkdir()
      near = {f"{tower}_near_GN": np.eye(2) for tower in ("audio", "video")}
      np.savez(npz, audio_STHW=audio, video_THWS=video, **near)
  rows = ablation.table(settings, tmp_path)
  found = {(r["variant"], r["quantity"]): r["values"] for r in rows}
  np.testing.assert_allclose(found["unscaled", "sync F1, %"], [60, 62])
  near = ablation.NEAR
  assert found["scaled", near.format("video", "sharpest")][0] == pytest.approx(
    100
  )
  assert found["scaled", near.format("audio", "sharpest")][0] < 10
  assert found["scaled", near.format("audio", "all heads")] == [50, 50]
  text = ablation.markdown(rows)
  assert (
    "| sync F1, % | **51.0** (50.0, 52.0) | **61.0** (60.0, 62.0) |"
    " **-10.0** (-10.0, -10.0) |" in text
  )


def test_an_unknown_ablation_field_is_refused():
  config = importlib.import_module("configs.ablations.audio_rope").get_config()
  config.colour = "blue"
  with pytest.raises(ValueError, match="unknown: \\['colour'\\]"):
    ablation.Settings.from_config(config)


def test_runs_of_other_settings_are_not_mixed(settings, tmp_path):
  path, digests = tmp_path / ablation.SETTINGS, {"video_vae": "ab"}
  for _ in range(2):
    ablation.record_settings(settings, digests, path)
  other = dataclasses.replace(settings, num_train_clips=3, num_eval_prompts=2)
  with pytest.raises(
    ValueError, match="runs of other num_eval_prompts, num_train_clips"
  ):
    ablation.record_settings(other, digests, path)
  with pytest.raises(ValueError, match="runs of other digests"):
    ablation.record_settings(settings, {"video_vae": "cd"}, path)
