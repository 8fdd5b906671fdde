"""Measures the input path: clips per second of CPU time, and waiting time.

  python -m benchmarks.input

Writes records of the released sizes with the real builder, reads them with the
loader in this process and in one or two workers, and reports clips per second
of CPU time. A consumer copies every batch once, like a transfer to a device.
Then a run of the mini fusion stage measures the fraction of time spent waiting
for data.
"""

import argparse
import importlib
import itertools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

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
from ovi_jax.training import logs
from ovi_jax.training import settings
from ovi_jax.training import trainer

ROOT = pathlib.Path(__file__).resolve().parents[1]
TRAINING = "training"
CASES = (*input_records.CASES, TRAINING)
PEAK = 989.4e12  # FLOP/s of an H100 or H200, dense bfloat16
DEVICES = 8  # of a host
STEPS = 40  # of the mini run; the first of its LOG windows does not count
LOG = 10


def parsed(words: Sequence[str]) -> argparse.Namespace:
  """The options of the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.input")
  add = parser.add_argument
  add("--cases", nargs="+", choices=CASES, default=CASES)
  add("--workers", nargs="+", type=int, default=[0, 1, 2])
  add("--repeats", type=int, default=3, help="times each is started")
  add("--seconds", type=float, default=2.5, help="that clips are counted for")
  add("--patience", type=float, default=0, help="seconds to wait for quiet")
  add("--out", type=pathlib.Path, default=ROOT / "benchmarks/results")
  add("--name", default="input", help="results are NAME.json and NAME.md")
  add("--small", action="store_true", help="tiny: does the harness work?")
  return parser.parse_args(words)


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
  path: pathlib.Path,
  case: input_records.Case,
  workers: int,
  options: argparse.Namespace,
) -> dict[str, float]:
  """Start the loader and count clips; `others` is the CPU share of others."""
  chosen = input_records.loader_settings(path, case, options.small, workers)
  batches = loader.load(chosen, batch=case.batch, seed=0)
  consumer, clips = Consumer(), 0
  try:
    # What was made ready while the workers started is no rate.
    for _ in range((workers or 1) * (chosen.prefetch_batches + 1) + 1):
      consumer.take(next(batches))
    mine, theirs = cpu_seconds()
    busy, began = machine.busy_seconds(), time.perf_counter()
    while time.perf_counter() - began < options.seconds:
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
    "others": [r["others"] for r in counted],
  }
  found: dict[str, Any] = {"runs": len(counted), "quiet": enough}
  for name, values in kinds.items():
    found[name] = statistics.median(values)
    found[f"{name}_spread"] = [min(values), max(values)]
  return found


def measure(
  folder: pathlib.Path, name: str, options: argparse.Namespace
) -> dict[str, Any]:
  """Write one case's records and read them in every way, in turns."""
  case = input_records.CASES[name]
  result: dict[str, Any] = {"about": case.about, "batch": case.batch}
  result |= input_records.write(folder / name, case, options.small)
  ways: dict[str, Any] = {str(w): {"timed": []} for w in options.workers}
  deadline = time.monotonic() + options.patience
  for _, workers in itertools.product(range(options.repeats), ways):
    while time.monotonic() < deadline and machine.busy_share() > report.QUIET:
      pass
    run = once(folder / name, case, int(workers), options)
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
    tokens: AV[Any] = AV(audio=input_records.SOUND)
    return flops.forward(AV(None, towers.audio), tokens).training()
  clip = input_records.CLIP
  tokens = AV(clip.tokens, clip.audio_latents)
  return flops.forward(towers, tokens).training(attention_only=True)


def trained(
  folder: pathlib.Path, options: argparse.Namespace
) -> dict[str, Any]:
  """Train the mini fusion stage; the share of time spent waiting for data."""
  values = importlib.import_module("configs.fusion").get_config("mini")
  values.num_train_steps, values.log_every = STEPS, LOG
  if options.small:
    values.batch_size, values.num_train_steps, values.log_every = 2, 6, 2
    values.data.video_buckets, values.data.audio_buckets = ((2, 4, 4),), (7,)
    for tower in values.model.values():
      tower.update(hidden_dim=32, num_layers=1, num_heads=2, mlp_dim=48)
  values.optimizer.warmup_steps = 2
  values.init_from.video = values.init_from.audio = settings.SCRATCH
  values.trainable = "all"
  values.data.sources = (str(folder / "mini"),)
  write_mini(folder / "mini", values)
  found = {}
  for workers in sorted({min(options.workers), max(options.workers)}):
    values.data.num_workers = workers
    workdir = folder / f"run{workers}"
    trainer.train(
      settings.Settings.from_config(values), values.to_dict(), workdir
    )
    lines = logs.read(workdir)[1:]
    found[str(workers)] = {
      name: [line[f"speed/{name}"] for line in lines]
      for name in ("data_wait_frac", "step_time", "clips_per_second")
    }
  return {"batch": values.batch_size, "workers": found}


def write_mini(path: pathlib.Path, values: Any) -> None:
  """Write records of a config's sizes."""
  draw, width = np.random.default_rng(0), values.model.video.text_dim

  def array(*shape):
    return draw.standard_normal(shape).astype(np.float16)

  records = [
    schema.Record(
      id=f"clip-{number}",
      source="generated",
      captions=("a clip",),
      latents=AV(
        array(*values.data.video_buckets[0], 48),
        array(values.data.audio_buckets[0], 20),
      ),
      text=(array(20, width),),
    )
    for number in range(32)
  ]
  builder.write(
    path,
    {"train": records},
    geometry=schema.Geometry(text_dim=width),
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
    "| records | workers | clips/s per core | cores used | clips/s | main"
    " process, ms a clip | CPUs used by others |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, case in cases.items():
    for workers, way in case["workers"].items():
      found = way["figures"]
      lines.append(
        f"| {name} | {workers} | **{_spread(found, 'clips_per_core')}** |"
        f" {found['cores']:.2f} | {_spread(found, 'clips_per_second')} |"
        f" {1000 * found['main_core_seconds']:.3g} | {found['others']:.0%} |"
      )
  lines += [
    "",
    "Medians of starts (smallest to largest); a core is a second of CPU time.",
  ]
  lines += ["Files are in the page cache. Records:", ""]
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
    " TFLOP/s, if cores add up; arithmetic from the rates with the most"
    " workers:",
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
    shares, steps = found["data_wait_frac"], found["step_time"]
    lines.append(
      f"| {workers} | {statistics.median(shares):.2%} ({min(shares):.2%} to"
      f" {max(shares):.2%}) | {statistics.median(steps):.3f} |"
    )
  return lines


def command_line(words: Sequence[str]) -> str:
  """This command, without the user's own paths."""
  kept = [
    w
    for i, w in enumerate(words)
    if "--out" not in words[max(0, i - 1) : i + 1]
  ]
  return " ".join(["python -m benchmarks.input", *kept])


def main(words: Sequence[str]) -> None:
  options = parsed(words)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  results: dict[str, Any] = {
    "machine": machine.describe(),
    "command": command_line(words),
    "versions": {
      n: metadata.version(n) for n in ("grain", "numpy", "av", "jax")
    },
    "cases": {},
  }
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for case in options.cases:
      print(case, flush=True)
      if case == TRAINING:
        results[TRAINING] = trained(folder, options)
      else:
        results["cases"][case] = measure(folder, case, options)
  options.out.mkdir(parents=True, exist_ok=True)
  encoded = json.dumps(results, indent=1) + "\n"
  (options.out / f"{options.name}.json").write_text(encoded)
  written = markdown(results)
  (options.out / f"{options.name}.md").write_text(written)
  print(f"\n{written}\nwrote {options.out / options.name}.json and .md")


if __name__ == "__main__":
  main(sys.argv[1:])
