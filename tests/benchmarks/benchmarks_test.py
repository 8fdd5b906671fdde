"""Arithmetic of the benchmarks, and a smallest run of each."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import cases
from benchmarks import flops
from benchmarks import ours
from benchmarks import report
from tests.lib import child_env

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  ("name", "published"),
  [("720x720_5s", 252), ("960x960_5s", 572), ("960x960_10s", 1678)],
)
def test_flops_of_a_forward_pass(name, published):
  operations = flops.forward(flops.released_sizes(), flops.CLIPS[name])
  assert round(operations / 1e12) == published


def test_a_skipped_block_is_not_counted():
  sizes, clip = flops.released_sizes(), flops.CLIPS["720x720_5s"]
  whole = flops.step(sizes, clip, 0)
  assert whole == 2 * flops.forward(sizes, clip)
  saved = 1 - flops.step(sizes, clip, 11) / whole
  assert 0.016 < saved < 1 / 60


def test_weights_are_seeded_by_their_names():
  first = cases.tensor("blocks.0.self_attn.q.weight", (4, 3))
  assert round(float(first[0, 0]), 6) == 0.885856
  np.testing.assert_array_equal(
    first, cases.tensor("blocks.0.self_attn.q.weight", (4, 3))
  )
  assert (first != cases.tensor("blocks.1.self_attn.q.weight", (4, 3))).all()
  assert cases.tensor("norm_q.weight", (1000,)).mean() > 0.9


def timed(seconds, others=0.0):
  return {"seconds": seconds, "cpu_seconds": 2 * seconds, "others": others}


def test_figures_come_from_undisturbed_pairs():
  quiet = [
    {"ours": timed(seconds), "original": timed(4.0)}
    for seconds in (1.0, 2.0, 3.0)
  ]
  disturbed = {"ours": timed(9.0, others=0.5), "original": timed(4.0)}
  figures = report.summarize([[disturbed, *quiet[:1]], quiet[1:]])
  assert figures["ratio"] == 0.5
  assert figures["ratio_spread"] == [0.25, 0.75]
  assert figures["ours"] == {"median": 2.0, "min": 1.0, "cpu": 4.0}
  assert (figures["pairs"], figures["quiet"]) == (3, True)
  figures = report.summarize([[disturbed, *quiet[:2]]])
  assert (figures["pairs"], figures["quiet"]) == (3, False)


@pytest.mark.slow
def test_every_small_case_runs():
  """Shapes of what is compared; the original's side needs PyTorch."""
  shapes = {
    "denoise": {"video": (2, 4, 6, 48), "audio": (9, 20)},
    "vae_decode": {"frames": (5, 32, 32, 3)},
    "vocoder": {"wave": (12 * 256,)},
  }
  for name, expected in shapes.items():
    case = cases.all_cases(small=True)[name]
    outputs = ours.PREPARE[case.kind](case).check()
    assert {n: a.shape for n, a in outputs.items()} == expected
    for array in outputs.values():
      # Neither saturated nor vanishing: a comparison would see nothing.
      assert 1e-3 < array.std() < 0.8


@pytest.mark.slow
def test_harness_measures_ours_alone(tmp_path):
  command = [
    sys.executable,
    "benchmarks/run.py",
    "--small",
    "--repeats=1",
    "--restarts=2",
  ]
  command += ["--cases=denoise_skip3", "--threads=1", f"--out={tmp_path}"]
  done = subprocess.run(
    command,
    cwd=ROOT,
    env=child_env.environment(),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / "cpu.json").read_text())
  case = results["cases"]["denoise_skip3"]
  assert case["figures"]["ours"]["median"] > 0
  assert len(case["timed"]) <= 4
  assert "| denoise_skip3 |" in (tmp_path / "cpu.md").read_text()
  assert str(tmp_path) not in (tmp_path / "cpu.md").read_text()
