"""Does training learn? Every stage at `:mini` on eight clips, then samples.

  python -m benchmarks.overfit --workdir=DIR          (under an hour, two cores)
  python -m benchmarks.overfit --workdir=DIR --stages=video_pretrain

Stages run through `train` with the repository's configs; what is overridden is
in `OVERRIDES` and in the results. Samples come from the averaged weights of the
last checkpoint, as a later stage reads them, and from noise that training never
saw, one for each caption; they are held against all eight clips. The same
command goes on where it was stopped.
"""

import importlib
import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import machine
from benchmarks import overfit_codec
from benchmarks import overfit_data
from benchmarks import overfit_report
from benchmarks import overfit_samples
from ovi_jax import runtime
from ovi_jax.data import builder
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training import logs
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import stage

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Stage -> the data it learns, and where its towers come from.
STAGES = {
  "audio_pretrain": ("sounds_a", {"audio": "fresh"}),
  "audio_finetune": ("clips_a", {"audio": "audio_pretrain"}),
  "video_pretrain": ("clips_a", {"video": "fresh"}),
  "fusion": (
    "clips_b",
    {"video": "video_pretrain", "audio": "audio_finetune"},
  ),
}
STEPS = {
  "audio_pretrain": 1500,
  "audio_finetune": 1000,
  "video_pretrain": 2000,
  "fusion": 3000,
}
OVERRIDES: dict[str, Any] = {
  "optimizer.schedule": "cosine",
  "cadence.save": 200,
}
SHORT = 93  # audio latents of the shorter sounds, 2.98 s
EMPTY = (-1, 0)  # see `overfit_data.text`

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "", "Directory of data and runs.")
flags.DEFINE_list("stages", list(STAGES), "Which; earlier ones must be there.")
flags.DEFINE_list("steps", [], "STAGE:STEPS, for other numbers than ours.")
flags.DEFINE_list("override", [], "FIELD:JSON, of every stage's config.")
flags.DEFINE_bool("small", False, "Tiny sizes: does the harness work?")
flags.DEFINE_string("out", str(ROOT / "benchmarks/results"), "Results.")


def frames(small: bool) -> int:
  """Frames of a clip."""
  return 13 if small else overfit_data.FRAMES


def write_data(path: pathlib.Path, small: bool, width: int) -> None:
  """Write the datasets that are not there yet, with the codec they are in."""
  sets = [overfit_data.clips(n, frames(small)) for n in (0, 1)]
  codec = overfit_codec.Codec.load(path, [*sets[0], *sets[1]])
  for name, number in (("clips_a", 0), ("clips_b", 1), ("sounds_a", 0)):
    if (path / name).exists():
      continue
    records = [
      record(codec, sets[number][i], number, i, name == "sounds_a", width)
      for i in range(overfit_data.CLIPS)
    ]
    builder.write(
      path / name,
      {"train": records},
      geometry=schema.Geometry(text_width=width),
      null_text=overfit_data.text(*EMPTY, width),
    )


def record(
  codec: overfit_codec.Codec,
  clip: overfit_data.Clip,
  number: int,
  place: int,
  sound: bool,
  width: int,
) -> schema.Record:
  """A clip as latents; of a sound alone, every other is cut short."""
  audio_TC = codec.encode_audio(clip.log_mel)
  if sound:
    audio_TC = audio_TC[: length(place, len(audio_TC))]
  return schema.Record(
    id=f"set-{number}-{place}",
    source="generated",
    captions=(clip.scene.caption,),
    latents=AV(None if sound else codec.encode_video(clip.frames), audio_TC),
    text=(overfit_data.text(number, place, width),),
  )


def length(place: int, whole: int) -> int:
  """Audio latents of a sound of audio pretraining."""
  return min(SHORT, 3 * whole // 5) if place % 4 > 1 else whole


def config(name: str, root: pathlib.Path) -> Any:
  """A stage's mini config with what this run changes, and that alone."""
  values = importlib.import_module(f"configs.{name}").get_config("mini")
  data, initial = STAGES[name]
  steps = dict(pair.split(":") for pair in FLAGS.steps)
  changes = OVERRIDES | {
    "data.sources": (str(root / "data" / data),),
    "steps": int(steps.get(name, 3 if FLAGS.small else STEPS[name])),
  }
  for tower, source in initial.items():
    run = str(root / source / stage.CHECKPOINTS)
    changes[f"initial.{tower}"] = "fresh" if source == "fresh" else run
  if FLAGS.small:
    changes |= small_changes(values)
  for pair in FLAGS.override:
    field, _, value = pair.partition(":")
    changes[field] = json.loads(value)
  values.update_from_flattened_dict(changes)
  return values


def small_changes(values: Any) -> dict[str, Any]:
  """Sizes for the test."""
  changes: dict[str, Any] = {"optimizer.warmup_steps": 1, "cadence.log": 1}
  changes |= {"data.video": ((4, 4, 4),), "data.audio": (16,)}
  for name, tower in values.model.items():
    if tower is not None:
      sizes = {"width": 16, "blocks": 1, "heads": 2, "feed_forward": 16}
      changes |= {f"model.{name}.{k}": v for k, v in sizes.items()}
  return changes


def run_stage(name: str, root: pathlib.Path) -> dict[str, Any]:
  """Train a stage (or go on, or find it done), sample it, measure it."""
  values = config(name, root)
  settings = settings_lib.Settings.from_config(values)
  began = time.perf_counter()
  if not stage.train(settings, values.to_dict(), root / name):
    sys.exit("told to stop; the same command goes on")
  wall = time.perf_counter() - began
  lines = logs.read(root / name)
  data, initial = STAGES[name]
  number = int(data.endswith("b"))
  clips = overfit_data.clips(number, frames(FLAGS.small))
  codec = overfit_codec.Codec.load(root / "data", clips)
  width = settings.data.geometry.text_width
  texts = [overfit_data.text(number, i, width) for i in range(len(clips))]
  lengths = [
    length(i, len(c.log_mel) // 2)
    if data == "sounds_a"
    else len(c.log_mel) // 2
    for i, c in enumerate(clips)
  ]
  weights = {"trained": overfit_samples.trained(settings, root / name)}
  if "fresh" not in initial.values():
    weights["before"] = overfit_samples.before(settings)
  result: dict[str, Any] = {
    "steps": settings.steps,
    "step_seconds": float(
      np.median([line["speed/step_seconds"] for line in lines])
    ),
    "seconds": wall,
    "loss": {
      kind: float(np.mean([line[f"train/loss_{kind}"] for line in lines[-5:]]))
      for kind in settings.model.present()
    },
  }
  for what, params in weights.items():
    latents = overfit_samples.sample(
      settings,
      params,
      texts,
      overfit_data.text(*EMPTY, width),
      lengths,
      steps=2 if FLAGS.small else overfit_samples.STEPS,
    )
    decoded = overfit_report.decoded(codec, latents)
    result[what] = overfit_report.measured(codec, clips, decoded)
    np.savez(root / name / f"{what}.npz", **overfit_report.arrays(decoded))
  return result


def command_line() -> str:
  """This command, without the user's own paths."""
  private = ("--workdir", "--out")
  words = ["python -m benchmarks.overfit"]
  for word in sys.argv[1:]:
    name = word.split("=")[0]
    words.append(f"{name}={name[2:].upper()}" if name in private else word)
  return " ".join(words)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  unknown = sorted(set(FLAGS.stages) - set(STAGES))
  if unknown or not FLAGS.workdir:
    raise app.UsageError(f"give --workdir; stages are {list(STAGES)}")
  runtime.start()
  root = pathlib.Path(FLAGS.workdir)
  width = config("fusion", root).model.video.text_width
  write_data(root / "data", FLAGS.small, width)
  for name in FLAGS.stages:
    result = run_stage(name, root)
    (root / f"{name}.json").write_text(json.dumps(result, indent=1))
    print(name, json.dumps(result), flush=True)
  overfit_report.write(
    pathlib.Path(FLAGS.out),
    root,
    {name: STAGES[name][0] for name in STAGES},
    {
      "overrides": OVERRIDES | dict(p.split(":", 1) for p in FLAGS.override),
      "sampler": overfit_samples.about(),
      "machine": machine.describe(),
      "command": command_line(),
    },
    frames(FLAGS.small),
  )


if __name__ == "__main__":
  app.run(main)
