"""The documents' commands, run as a reader would, with fewer steps."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from ovi_jax.media import mp4
from ovi_jax.training import logs

ROOT = pathlib.Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEWER = (
  " --config.steps=4 --config.optimizer.warmup_steps=2 --config.cadence.log=2"
)


def run(kind: str, text: str, folder: pathlib.Path) -> None:
  """Run a block of a document in a folder that looks like the repository."""
  if kind == "bash":
    text = text.replace("\\\n", " ")
    text = re.sub(r"^python train.py .*$", rf"\g<0>{FEWER}", text, flags=re.M)
    text = re.sub(r"(cadence\.(held_out|samples))=100", r"\1=2", text)
    command = ["bash", "-euc", text]
  else:
    command = [sys.executable, "-c", text]
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  environment = os.environ | {
    "PATH": path,
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": "",
  }
  done = subprocess.run(
    command, cwd=folder, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_training_from_raw_clips_to_sample_py(tmp_path):
  blocks = FENCED.findall((ROOT / "docs" / "training.md").read_text())
  for name in ("train.py", "sample.py", "convert_torch_weights.py"):
    (tmp_path / name).symlink_to(ROOT / name)
  for name in ("configs", "ovi_jax"):
    (tmp_path / name).symlink_to(ROOT / name)
  (tmp_path / "runs").mkdir()
  assert len(blocks) == 7
  for kind, text in blocks:
    run(kind, text, tmp_path)
  (clip,) = (tmp_path / "runs" / "samples").glob("*.mp4")
  frames, fps, wave, rate = mp4.read(clip)
  assert frames.shape == (121, 64, 64, 3) and fps == 24
  assert rate == 16_000 and abs(wave.size / rate - 5.02) < 0.1
  lines = logs.read(tmp_path / "runs" / "fusion")
  assert any("held_out/loss_video_t0.25-0.50" in line for line in lines)
  made = tmp_path / "runs" / "fusion" / "samples" / "step-00000004"
  assert len(list(made.glob("*.mp4"))) == 2
