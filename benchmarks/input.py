"""The input path, measured: clips a second of each core, and who waits.

  python -m benchmarks.input

Writes records of the released sizes with the real builder, reads them with the
loader in this process and in one or two workers, and says how many clips come
for each second of a core's time. A consumer copies every batch once, as on its
way to a device. Then a run of the mini fusion stage says which share of its
time it waits for data.
"""

import importlib
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from importlib import metadata
from typing import Any

import numpy as np
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import input_records
from benchmarks import machine
from benchmarks import report
from ovi_jax import flops
from ovi_jax.data import builder
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import architecture

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAINING = "training"
PEAK = 989.4e12  # FLOP/s of an H100 or H200, dense bfloat16
DEVICES = 8  # of a host
STEPS = 40  # of the mini run; the first of its LOG windows does not count
LOG = 10

FLAGS = flags.FLAGS
flags.DEFINE_list("cases", [], "Only these (default: all).")
flags.DEFINE_list("workers", ["0", "1", "2"], "Numbers of worker processes.")
flags.DEFINE_integer("repeats", 3, "Times each is started.", lower_bound=1)
flags.DEFINE_float("seconds", 2.5, "That batches are counted for.")
flags.DEFINE_string("out", str(ROOT / "benchmarks/results"), "Results.")
flags.DEFINE_string("name", "input", "Results are NAME.json and NAME.md.")
flags.DEFINE_bool("small", False, "Tiny sizes: does the harness work?")


def cpu_seconds() -> tuple[float, float]:
  """CPU seconds of this process, and of those that it started and run."""
  mine, theirs = time.process_time(), 0.0
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      # Behind the name, which may have blanks: state, parent, …
      words = stat.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if int(words[1]) == os.getpid():
      theirs += sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")
  return mine, theirs


class Consumer:
  """Copies batches to where they stay, as the way to a device does."""

  def __init__(self):
    self._kept: dict[str, np.ndarray] = {}

  def take(self, batch: schema.Batch) -> int:
    """Copy a batch; its clips."""
    arrays = {f"latents {n}": a for n, a in batch.latents.present().items()}
    arrays["text"] = next(iter(batch.text.present().values()))
    for name, array in arrays.items():
      if name not in self._kept:
        self._kept[name] = np.empty_like(array)
      np.copyto(self._kept[name], array)
    return len(batch.ids)


def once(
  path: pathlib.Path, case: input_records.Case, workers: int
) -> dict[str, float]:
  """Start the loader and count clips; `others` is the CPU share of others."""
  chosen = input_records.loader_settings(path, case, FLAGS.small, workers)
  batches = loader.load(chosen, batch=case.batch, seed=0)
  consumer, clips = Consumer(), 0
  try:
    # What was made ready while the workers started is no rate.
    for _ in range((workers or 1) * (chosen.prefetch + 1) + 1):
      consumer.take(next(batches))
    mine, theirs = cpu_seconds()
    busy, began = machine.busy_seconds(), time.perf_counter()
    while time.perf_counter() - began < FLAGS.seconds:
      clips += consumer.take(next(batches))
    wall = time.perf_counter() - began
    busy = machine.busy_seconds() - busy
    mine, theirs = np.subtract(cpu_seconds(), (mine, theirs))
  finally:
    batches.close()
  cores = os.cpu_count() or 1
  return {
    "clips": clips,
    "seconds": wall,
    "cpu_seconds": float(mine + theirs),
    "main_cpu_seconds": float(mine),
    "others": max(0.0, float(busy - mine - theirs) / (wall * cores)),
  }


def figures(runs: list[dict[str, float]]) -> dict[str, Any]:
  """Medians, smallest and largest; disturbed runs only if few were quiet."""
  quiet = [run for run in runs if run["others"] <= report.QUIET]
  enough = len(quiet) >= min(3, len(runs))
  counted = quiet if enough else runs
  kinds = {
    "clips_per_second": [r["clips"] / r["seconds"] for r in counted],
    "clips_per_core": [r["clips"] / r["cpu_seconds"] for r in counted],
    "cores": [r["cpu_seconds"] / r["seconds"] for r in counted],
    "main_core_seconds": [r["main_cpu_seconds"] / r["clips"] for r in counted],
  }
  found: dict[str, Any] = {"runs": len(counted), "quiet": enough}
  for name, values in kinds.items():
    found[name] = statistics.median(values)
    found[f"{name}_spread"] = [min(values), max(values)]
  return found


def measure(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """Write one case's records and read them in every way, in turns."""
  case = input_records.CASES[name]
  result: dict[str, Any] = {"about": case.about, "batch": case.batch}
  result |= input_records.write(folder / name, case, FLAGS.small)
  ways: dict[str, Any] = {w: {"timed": []} for w in FLAGS.workers}
  for _, workers in itertools.product(range(FLAGS.repeats), ways):
    run = once(folder / name, case, int(workers))
    ways[workers]["timed"].append(run)
  for way in ways.values():
    way["figures"] = figures(way["timed"])
  return result | {
    "workers": ways,
    "training_tflop": training_flop(case) / 1e12,
  }


def training_flop(case: input_records.Case) -> float:
  """Arithmetic of the released model's step for one clip of a case."""
  towers = architecture.Architecture.from_release(
    architecture.released_sizes()
  ).config("fusion")
  if not case.video:
    tokens = AV(None, input_records.SOUND)
    return flops.forward(AV(None, towers.audio), tokens).training()
  clip = input_records.CLIP
  tokens = AV(clip.tokens, clip.audio_latents)
  return flops.forward(towers, tokens).training(attention_only=True)


def trained(folder: pathlib.Path) -> dict[str, Any]:
  """Train the mini fusion stage; the share of time spent waiting for data."""
  from ovi_jax.training import logs
  from ovi_jax.training import settings
  from ovi_jax.training import stage

  source, found = folder / "mini", {}
  values = importlib.import_module("configs.fusion").get_config("mini")
  _write_mini(source, values)
  for workers in FLAGS.workers:
    if workers == "1" and "2" in FLAGS.workers:
      continue
    values.data.sources, values.data.workers = (str(source),), int(workers)
    values.initial.video = values.initial.audio = settings.FRESH
    values.steps, values.cadence.log = (6, 2) if FLAGS.small else (STEPS, LOG)
    values.optimizer.warmup_steps = 2
    workdir = folder / f"run{workers}"
    stage.train(
      settings.Settings.from_config(values), values.to_dict(), workdir
    )
    lines = logs.read(workdir)[1:]
    found[workers] = {
      name: [line[f"speed/{name}"] for line in lines]
      for name in ("waiting_share", "step_seconds", "clips_per_second")
    }
  return {"batch": values.batch, "workers": found}


def _write_mini(path: pathlib.Path, values: Any) -> None:
  """Records of the mini config's sizes; a small harness has smaller towers."""
  draw = np.random.default_rng(0)
  if FLAGS.small:
    values.batch, values.data.video, values.data.audio = 2, ((2, 4, 4),), (7,)
    for tower in values.model.values():
      tower.update(width=32, blocks=1, heads=2, feed_forward=48)
  width = values.model.video.text_width

  def array(*shape):
    return draw.standard_normal(shape).astype(np.float16)

  records = [
    schema.Record(
      id=f"clip-{number}",
      source="generated",
      captions=("a clip",),
      latents=AV(
        array(*values.data.video[0], 48), array(values.data.audio[0], 20)
      ),
      text=(array(20, width),),
    )
    for number in range(32)
  ]
  builder.write(
    path,
    {"train": records},
    geometry=schema.Geometry(text_width=width),
    null_text=np.full((1, width), 0.5, np.float32),
  )


def markdown(results: dict[str, Any]) -> str:
  """The whole report: tables, machine, versions, command."""
  lines = ["# Results: input path", ""]
  if results["cases"]:
    lines += [*_rates(results["cases"]), "", *_feeds(results["cases"]), ""]
  if TRAINING in results:
    lines += [*_waiting(results[TRAINING]), ""]
  described = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
  versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
  lines += [f"Machine: {described}.", f"Versions: {versions}."]
  return "\n".join(
    [*lines, "", "Command:", "", f"    {results['command']}", ""]
  )


def _spread(found: dict[str, Any], name: str) -> str:
  """A median and its range."""
  low, high = found[f"{name}_spread"]
  return f"{found[name]:.3g} ({low:.3g} to {high:.3g})"


def _rates(cases: dict[str, Any]) -> list[str]:
  """The table of clips a second."""
  lines = [
    "| records | workers | clips/s | cores used | clips/s per core | ms a clip"
    " of the main process |",
    "|---|---|---|---|---|---|",
  ]
  for name, case in cases.items():
    for workers, way in case["workers"].items():
      found = way["figures"]
      quiet = "" if found["quiet"] else " disturbed"
      lines.append(
        f"| {name} | {workers} | {_spread(found, 'clips_per_second')} |"
        f" {found['cores']:.2f} | **{_spread(found, 'clips_per_core')}**{quiet}"
        f" | {1000 * found['main_core_seconds']:.3g} |"
      )
  lines += ["", "Medians of starts (smallest to largest). Records:", ""]
  for name, case in cases.items():
    about = f"- {name}: {case['about']}, batches of {case['batch']};"
    about += f" {case['record_mb']:.3g} MB a record"
    if "video_mbit_per_second" in case:
      about += f", video of {case['video_mbit_per_second']:.2g} Mbit/s"
    lines.append(f"{about}.")
  return lines


def _feeds(cases: dict[str, Any]) -> list[str]:
  """The table of what that suffices for; arithmetic from the rates."""
  lines = [
    f"What a host must bring for {DEVICES} devices of {PEAK / 1e12:.0f}"
    " TFLOP/s:",
    "",
    "| records | training TFLOP a clip | shortest step of a clip a device, s |"
    " clips/s at the peak | cores for that |"
    " shortest step that 8 / 32 cores feed, s |",
    "|---|---|---|---|---|---|",
  ]
  for name, case in cases.items():
    way = list(case["workers"].values())[-1]["figures"]
    rate, work = way["clips_per_core"], case["training_tflop"] * 1e12
    shortest, fed = work / PEAK, DEVICES / rate
    lines.append(
      f"| {name} | {case['training_tflop']:.3g} | {shortest:.3g} |"
      f" {DEVICES / shortest:.3g} | {DEVICES / shortest / rate:.2g} |"
      f" {fed / 8:.2g} / {fed / 32:.2g} |"
    )
  return lines


def _waiting(training: dict[str, Any]) -> list[str]:
  """The table of the mini run."""
  lines = [
    f"Training of `configs/fusion.py:mini`, batches of {training['batch']}:",
    "",
    "| workers | share of the time spent waiting for data | seconds a step |",
    "|---|---|---|",
  ]
  for workers, found in training["workers"].items():
    shares, steps = found["waiting_share"], found["step_seconds"]
    lines.append(
      f"| {workers} | {statistics.median(shares):.2%} ({min(shares):.2%} to"
      f" {max(shares):.2%}) | {statistics.median(steps):.3f} |"
    )
  return lines


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  known = [*input_records.CASES, TRAINING]
  wanted = FLAGS.cases or known
  if unknown := sorted(set(wanted) - set(known)):
    raise app.UsageError(f"unknown cases {unknown}; {known} exist")
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  private = [w for w in sys.argv[1:] if not w.startswith("--out")]
  results: dict[str, Any] = {
    "machine": machine.describe(),
    "command": " ".join(["python -m benchmarks.input", *private]),
    "versions": {
      n: metadata.version(n) for n in ("grain", "numpy", "av", "jax")
    },
    "cases": {},
  }
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for case in wanted:
      print(case, flush=True)
      if case == TRAINING:
        results[TRAINING] = trained(folder)
      else:
        results["cases"][case] = measure(folder, case)
  out = pathlib.Path(FLAGS.out)
  out.mkdir(parents=True, exist_ok=True)
  encoded = json.dumps(results, indent=1) + "\n"
  (out / f"{FLAGS.name}.json").write_text(encoded)
  written = markdown(results)
  (out / f"{FLAGS.name}.md").write_text(written)
  print(f"\n{written}\nwrote {out / FLAGS.name}.json and .md")


if __name__ == "__main__":
  app.run(main)
