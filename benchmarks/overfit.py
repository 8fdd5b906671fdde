"""Overfits every stage at `:mini` on eight clips, then samples.

  python -m benchmarks.overfit --workdir=DIR          (under an hour, two cores)
  python -m benchmarks.overfit --workdir=DIR --stages=video_pretrain

Stages run through `train` with the repository's configs; `OVERRIDES` and the
results list what is overridden. Samples come from the EMA parameters of the
last checkpoint, as a later stage reads them, and from new noise, one sample per
caption. Each is compared with all eight clips. The same command resumes an
interrupted run.
"""

import importlib
import json
import pathlib
import sys
from typing import Any

import numpy as np
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import machine
from benchmarks import overfit_codec
from benchmarks import overfit_data
from benchmarks import overfit_records
from benchmarks import overfit_report
from benchmarks import overfit_samples
from ovi_jax import cli
from ovi_jax.training import logs
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import trainer

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Stage -> the data it learns, and where its towers come from.
STAGES = {
  "audio_pretrain": ("sounds_a", {"audio": "scratch"}),
  "audio_finetune": ("clips_a", {"audio": "audio_pretrain"}),
  "video_pretrain": ("clips_a", {"video": "scratch"}),
  "fusion": (
    "clips_b",
    {"video": "video_pretrain", "audio": "audio_finetune"},
  ),
}
STEPS = {
  "audio_pretrain": 800,
  "audio_finetune": 400,
  "video_pretrain": 3500,
  "fusion": 1200,
}
OVERRIDES: dict[str, Any] = {
  "optimizer.warmup_steps": 50,
  "objective.timesteps.shift": 5.0,
  "checkpoint_every": 100,
}

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "", "Directory of data and runs.")
flags.DEFINE_list("stages", list(STAGES), "Which; earlier ones must be there.")
flags.DEFINE_list("steps", [], "STAGE:STEPS, for other numbers than ours.")
flags.DEFINE_list("override", [], "FIELD:JSON, of every stage's config.")
flags.DEFINE_bool("small", False, "Tiny sizes: does the harness work?")
flags.DEFINE_string("out", str(ROOT / "benchmarks/results"), "Results.")


def config(name: str, root: pathlib.Path) -> Any:
  """A stage's mini config with what this run changes, and that alone."""
  values = importlib.import_module(f"configs.{name}").get_config("mini")
  data, initial = STAGES[name]
  steps = dict(pair.split(":") for pair in FLAGS.steps)
  changes = OVERRIDES | {
    "data.sources": (str(root / "data" / data),),
    "num_train_steps": int(steps.get(name, 3 if FLAGS.small else STEPS[name])),
  }
  for tower, source in initial.items():
    run = str(root / source / trainer.CHECKPOINTS)
    changes[f"init_from.{tower}"] = "scratch" if source == "scratch" else run
  if FLAGS.small:
    changes |= small_changes(values)
  for pair in FLAGS.override:
    field, _, value = pair.partition(":")
    changes[field] = json.loads(value)
  values.update_from_flattened_dict(changes)
  return values


def small_changes(values: Any) -> dict[str, Any]:
  """Sizes for the test."""
  changes: dict[str, Any] = {"optimizer.warmup_steps": 1, "log_every": 1}
  changes |= {"data.video_buckets": ((4, 4, 4),), "data.audio_buckets": (16,)}
  sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
  return changes | tower_changes({"video": sizes, "audio": sizes}, values)


def tower_changes(sizes: Any, values: Any) -> dict[str, Any]:
  """Sizes of the towers that a stage has, by field."""
  return {
    f"model.{name}.{field}": size
    for name, fields in sizes.items()
    if values.model[name] is not None
    for field, size in fields.items()
  }


def run_stage(name: str, root: pathlib.Path) -> dict[str, Any]:
  """Train a stage (or go on, or find it done), sample it, keep the samples."""
  values = config(name, root)
  settings = settings_lib.Settings.from_config(values)
  if not trainer.train(settings, values.to_dict(), root / name):
    sys.exit("interrupted; run the same command to resume")
  data, initial = STAGES[name]
  number, frames = (
    overfit_records.SETS[data],
    overfit_records.frames(FLAGS.small),
  )
  clips = overfit_data.clips(number, frames)
  codec = overfit_codec.Codec.load(root / "data", clips)
  width = settings.data.geometry.text_dim
  asked = overfit_samples.Asked(
    texts=[overfit_data.text(number, i, width) for i in range(len(clips))],
    empty=overfit_data.text(*overfit_records.EMPTY, width),
    lengths=[overfit_records.length(i, c, data) for i, c in enumerate(clips)],
    steps=2 if FLAGS.small else overfit_samples.STEPS,
  )
  weights = {"trained": overfit_samples.trained(settings, root / name)}
  if len(initial) == 2:
    weights["deaf"] = overfit_samples.deaf(weights["trained"])
  if "scratch" not in initial.values():
    weights["before"] = overfit_samples.before(settings)
  for what, params in weights.items():
    latents = overfit_samples.sample(settings, params, asked)
    overfit_report.keep(root / name / f"{what}.npz", codec, latents)
  return progress(settings, root / name)


def progress(
  settings: settings_lib.Settings, run: pathlib.Path
) -> dict[str, Any]:
  """Steps, time and the last losses, from a run's log."""
  lines, every = logs.read(run), settings.intervals.log_every
  seconds = [
    line["perf/step_time"]
    for line in lines
    if "perf/step_time" in line  # not of a first step
  ]
  return {
    "steps": settings.num_train_steps,
    "step_time": float(np.median(seconds)),
    "training_seconds": float(np.sum(seconds) * every),
    "loss": {
      kind: float(np.mean([line[f"train/loss_{kind}"] for line in lines[-5:]]))
      for kind in settings.model.present()
    },
  }


def command_line() -> str:
  """This command, without the user's own paths."""
  private = ("--workdir", "--out")
  words = ["python -m benchmarks.overfit"]
  for word in sys.argv[1:]:
    name = word.split("=")[0]
    words.append(f"{name}={name[2:].upper()}" if name in private else word)
  return " ".join(words)


def main() -> None:
  unknown = sorted(set(FLAGS.stages) - set(STAGES))
  if unknown or not FLAGS.workdir:
    raise app.UsageError(f"pass --workdir; stages are {list(STAGES)}")
  root = pathlib.Path(FLAGS.workdir)
  width = config("fusion", root).model.video.text_dim
  overfit_records.write(root / "data", FLAGS.small, width)
  for name in FLAGS.stages:
    result = run_stage(name, root)
    (root / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(name, json.dumps(result), flush=True)
  overfit_report.write(
    pathlib.Path(FLAGS.out),
    root,
    {name: overfit_records.SETS[STAGES[name][0]] for name in STAGES},
    {
      "overrides": OVERRIDES | dict(p.split(":", 1) for p in FLAGS.override),
      "sampler": overfit_samples.about(),
      "machine": machine.describe(),
      "command": command_line(),
    },
    overfit_records.frames(FLAGS.small),
  )


if __name__ == "__main__":
  cli.run(main)
