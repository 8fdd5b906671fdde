"""The input benchmark: arithmetic, and a smallest run."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import input as input_path
from benchmarks import input_records
from ovi_jax.data import loader
from ovi_jax.training import logs
from ovi_jax.training import trainer


def run(clips, others=0.0):
  return {
    "clips": clips,
    "seconds": 2.0,
    "cpu_seconds": 4.0,
    "main_cpu_seconds": 1.0,
    "others": others,
  }


def test_figures_are_medians_of_quiet_runs():
  runs = [run(8), run(80, others=0.5), run(12), run(16)]
  found = input_path.figures(runs)
  assert (found["runs"], found["quiet"]) == (3, True)
  assert found["clips_per_second"] == 6
  assert found["clips_per_core"] == 3
  assert found["clips_per_core_spread"] == [2, 4]
  assert found["cores"] == 2
  assert found["main_core_seconds"] == pytest.approx(1 / 12)
  assert found["others"] == 0
  found = input_path.figures(runs[:2])
  assert (found["runs"], found["quiet"]) == (2, False)


def test_the_benchmark_clip_has_motion_and_structure():
  clip = dataclasses.replace(
    input_records.CLIP, latent_frames=2, latent_height=8, latent_width=8
  )
  frames_THWC = input_records.moving(np.random.default_rng(0), clip)
  assert frames_THWC.shape == (5, 128, 128, 3)
  frames_THWC = frames_THWC.astype(np.float32)
  assert frames_THWC.std() > 20
  # Neighbours in time and space are alike, and yet not the same.
  for axis in (0, 1, 2):
    step = np.abs(np.diff(frames_THWC, axis=axis)).mean()
    assert 1 < step < 15


def test_training_flops_of_a_clip():
  cases = input_records.CASES
  assert round(input_path.training_flop(cases["fusion"]) / 1e12) == 673
  audio = input_path.training_flop(cases["audio"]) / 1e12
  # Six for each of 375 tokens' share of 5 B parameters, and attention.
  assert 10 < audio < 15


def test_all_input_benchmarks_run(tmp_path, monkeypatch):
  def train(chosen, config, workdir):
    assert chosen.data.sources[0].path == config["data"]["sources"][0]
    assert len(loader.load(chosen.data, batch=2, seed=0).records) == 1
    names = "data_wait_frac", "step_time", "clips_per_second"
    with logs.Logs(workdir) as written:
      for step in (2, 4, 6):
        written.scalars(step, {f"speed/{n}": step / 10 for n in names})

  monkeypatch.setattr(trainer, "train", train)
  words = ["--small", "--repeats", "1", "--seconds", "0.1", "--workers", "0"]
  input_path.main([*words, "--out", str(tmp_path)])
  results = json.loads((tmp_path / "input.json").read_text())
  assert set(results["cases"]) == {"fusion", "audio", "media"}
  for case in results["cases"].values():
    (timed,) = case["workers"]["0"]["timed"]
    assert timed["clips"] >= 1
    assert 0 < case["workers"]["0"]["figures"]["clips_per_core"] < 1e6
  assert results["training"]["workers"]["0"]["data_wait_frac"] == [0.4, 0.6]
  written = (tmp_path / "input.md").read_text()
  assert "| media | 0 |" in written
  assert "| 0 | 50.00% (40.00% to 60.00%) | 0.500 |" in written
  assert str(tmp_path) not in written
