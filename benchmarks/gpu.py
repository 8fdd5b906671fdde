"""All that is to be measured on one GPU, beside the original, in one run.

  python -m benchmarks.gpu --original=CLONE --torch_python=PYTHON --out=FILE
  JAX_PLATFORMS=cpu python -m benchmarks.gpu --small [--original=… …]

Our denoising step of 720x720, 5 s, for all 50 steps of a clip; the original's
(`gpu_original`), unless no clone is given; a training step of stage 3 with 4 of
30 blocks. Each is a process of its own, one after the other, and is ended after
`--minutes`. The goals: our step at half of the card's measured matrix peak, 1.2
times the original's speed, training at 45 % of the peak.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import app
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 50
CLIP = "720x720_5s"
FLAGS = flags.FLAGS


def run(words: list[str], minutes: float, out: pathlib.Path) -> Any:
  """The figures that a command writes to `out`; None, and why, if it fails."""
  try:
    done = subprocess.run(
      [*words, f"--out={out}"], cwd=ROOT, timeout=60 * minutes, check=False
    )
  except subprocess.TimeoutExpired:
    print(f"{words[1:3]}: not done in {minutes:g} minutes", file=sys.stderr)
    return None
  if done.returncode:
    print(f"{words[1:3]}: exit code {done.returncode}", file=sys.stderr)
    return None
  return json.loads(out.read_text())


def lines(figures: dict[str, Any], clip: str) -> list[str]:
  """What was measured, beside its goal."""
  lines = []
  ours, theirs, training = (
    figures.get(n) for n in ("ours", "original", "training")
  )
  if ours:
    step = ours[clip]
    lines.append(
      f"denoising step: {step['step_time']:.3f} s,"
      f" {step['share_of_peak']:.0%} of the measured peak (goal 50 %);"
      f" {STEPS} steps {STEPS * step['step_time']:.1f} s"
    )
  if ours and theirs:
    ratio = theirs[clip]["step_time"] / ours[clip]["step_time"]
    lines.append(
      f"the original's: {theirs[clip]['step_time']:.3f} s; ours is"
      f" {ratio:.2f} times as fast (goal 1.2)"
    )
  if training:
    lines.append(
      f"training step: {training['step_time']:.3f} s,"
      f" {training['share_of_peak']:.0%} of the measured peak (goal 45 %)"
    )
  return lines


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if bool(FLAGS.original) != bool(FLAGS.torch_python):
    raise app.UsageError("pass --original and --torch_python, or neither")
  small = ["--small"] if FLAGS.small else []
  clip = "small" if FLAGS.small else CLIP
  clips, repeats = f"--clips={CLIP}", f"--repeats={STEPS - 2}"
  ours = [sys.executable, "-m"]
  commands = {
    "ours": [*ours, "benchmarks.gpu_step", clips, repeats, *small],
    "training": [*ours, "benchmarks.gpu_training", *small],
  }
  if FLAGS.original:
    device = ["--device=cpu"] if FLAGS.small else []
    commands["original"] = [FLAGS.torch_python, "-O"]
    commands["original"] += ["benchmarks/gpu_original.py", clips, *small]
    commands["original"] += [f"--original={FLAGS.original}", *device]
  figures: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as folder:
    for name, words in commands.items():
      out = pathlib.Path(folder) / f"{name}.json"
      figures[name] = run(words, FLAGS.minutes, out)
  if FLAGS.out:
    pathlib.Path(FLAGS.out).write_text(json.dumps(figures, indent=1) + "\n")
  print("\n".join(lines(figures, clip)))
  if None in figures.values():
    sys.exit(1)


if __name__ == "__main__":
  flags.DEFINE_string("original", "", "Clone of character-ai/Ovi.")
  flags.DEFINE_string("torch_python", "", "Python with its requirements.")
  flags.DEFINE_float("minutes", 3.0, "That each part may take.")
  flags.DEFINE_bool("small", False, "Tiny sizes: does this script work?")
  flags.DEFINE_string("out", "", "JSON file for the figures.")
  app.run(main)
