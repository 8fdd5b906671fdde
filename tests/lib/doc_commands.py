"""The documents' commands, run as a reader would, with fewer steps."""

import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FEWER = (
  " --config.num_train_steps=4 --config.optimizer.warmup_steps=2"
  " --config.log_every=2"
)


def run(kind: str, text: str, folder: pathlib.Path) -> None:
  """Run a block of a document in a folder that looks like the repository."""
  if kind == "bash":
    text = text.replace("\\\n", " ")
    text = re.sub(r"^python train.py .*$", rf"\g<0>{FEWER}", text, flags=re.M)
    text = re.sub(
      r"^python sample.py (?!.*config.num_steps).*$",
      r"\g<0> --config.num_steps=2",
      text,
      flags=re.M,
    )
    text = re.sub(r"((?:eval|sample)_every)=100", r"\1=2", text)
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


def repository(folder: pathlib.Path) -> None:
  """Make a folder look like the repository, with a place for results."""
  for name in ("train.py", "sample.py", "convert_torch_weights.py"):
    (folder / name).symlink_to(ROOT / name)
  for name in ("configs", "ovi_jax"):
    (folder / name).symlink_to(ROOT / name)
  (folder / "runs").mkdir()
