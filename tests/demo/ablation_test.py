"""Ablations: their commands, and the table of what came out."""

import dataclasses
import importlib
import json

import numpy as np
import pytest

from ovi_jax.demo import ablation
from ovi_jax.sampling import attention_maps


@pytest.fixture
def settings():
  values = importlib.import_module("configs.ablations.audio_rope").get_config()
  values.seeds = (0, 1)
  return ablation.Settings.from_config(values)


def test_variants_differ_in_what_they_name_alone(settings, tmp_path):
  todo = list(ablation.steps(settings, tmp_path))
  trained = {s.name: s.words for s in todo if s.words[0] == "train.py"}
  assert len(trained) == 2 * 2 * 2
  for stage in settings.stages:
    one, other = (
      set(trained[f"{variant}_1 {stage}"]) for variant in settings.variants
    )
    changed = {
      word for word in one ^ other if str(tmp_path / "ablations") not in word
    }
    assert changed == {
      "--config.model.audio.rope_scale=0.19676",
      "--config.model.audio.rope_scale=1.0",
    }
    assert (
      "--config.seed=1" in one
      and f"--config.steps={settings.stages[stage]}" in one
    )
  fusion = trained["scaled_0 fusion"]
  home = tmp_path / "ablations" / "audio_rope" / "scaled_0"
  assert f"--config.initial.video={tmp_path / 'video_pretrain'}" in fusion
  assert f"--config.initial.audio={home / 'audio_finetune'}" in fusion


def test_a_towers_change_is_none_of_the_other_alone(settings, tmp_path):
  variants = {"wide": ("model.video.width=64", "batch=4")}
  settings = dataclasses.replace(settings, variants=variants)
  todo = list(ablation.steps(settings, tmp_path))
  audio = next(s.words for s in todo if s.name == "wide_0 audio_finetune")
  fusion = next(s.words for s in todo if s.name == "wide_0 fusion")
  assert "--config.batch=4" in audio and "--config.batch=4" in fusion
  assert "--config.model.video.width=64" in fusion
  assert not any("model.video" in word for word in audio)


def test_the_table_is_of_scores_and_maps(settings, tmp_path):
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
    "| sync F1, % | **51.0** (50.0, 52.0) | **61.0** (60.0, 62.0) |" in text
  )


def test_a_field_that_no_ablation_has_is_refused():
  config = importlib.import_module("configs.ablations.audio_rope").get_config()
  config.colour = "blue"
  with pytest.raises(ValueError, match="unknown: \\['colour'\\]"):
    ablation.Settings.from_config(config)
