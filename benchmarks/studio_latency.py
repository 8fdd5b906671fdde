"""Time from a click in the studio to the first preview and to the clip.

  python -m benchmarks.studio_latency [--weights=DIR] [--repeats=5]

A watched job with previews, a job that nobody watches, and a plain call of the
pipeline that writes the same files are timed in turns, in one process with warm
programs. Reports medians and quartiles in seconds.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import machine
from ovi_jax import cli
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.studio import engine as engines
from ovi_jax.studio import jobs

PROMPT = "A red ball bounces on a wooden floor. Audio: dull wooden knocks."
FLAGS = flags.FLAGS


def measure(
  pipe: pipelines.Pipeline, folder: pathlib.Path, repeats: int
) -> dict[str, list[float]]:
  """Seconds of each repetition by what was timed.

  Args:
    pipe: with loaded weights.
    folder: of the clips.
    repeats: of each, besides one that warms up.

  Raises:
    RuntimeError: a job failed.
  """
  times: dict[str, list[float]] = {}
  store = jobs.JobStore(folder / "studio")
  try:
    with engines.Engine(pipe, store, save_latents=False) as engine:
      cases: dict[str, Callable[[int], dict[str, float]]] = {
        "watched": lambda seed: _watched(engine, seed),
        "unwatched": lambda seed: {"unwatched clip": _unwatched(engine, seed)},
        "plain": lambda seed: {"plain call": _plain(pipe, folder, seed)},
      }
      for number in range(repeats + 1):
        for place, case in enumerate(cases.values()):
          for name, seconds in case(len(cases) * number + place).items():
            if number:
              times.setdefault(name, []).append(seconds)
  finally:
    store.close()
  return times


def _watched(engine: engines.Engine, seed: int) -> dict[str, float]:
  start, first = time.perf_counter(), None
  id = engine.submit(PROMPT, {"seed": seed}).id
  for _ in engine.events(id):
    if first is None and engine.preview(id) is not None:
      first = time.perf_counter() - start
  _require_finished(engine.get(id))
  if first is None:
    raise RuntimeError("there was no preview")
  return {"first preview": first, "watched clip": time.perf_counter() - start}


def _unwatched(engine: engines.Engine, seed: int) -> float:
  start = time.perf_counter()
  job = engine.submit(PROMPT, {"seed": seed})
  _require_finished(engine.wait(job.id))
  return time.perf_counter() - start


def _plain(pipe: pipelines.Pipeline, folder: pathlib.Path, seed: int) -> float:
  start = time.perf_counter()
  pipe(PROMPT, seed=seed, progress=False).save(folder / f"{seed}.mp4")
  return time.perf_counter() - start


def _require_finished(job: jobs.Job) -> None:
  if job.status != jobs.FINISHED:
    raise RuntimeError(f"the job is {job.status}: {job.error}")


def main() -> None:
  pipe = pipelines.Pipeline.from_pretrained(FLAGS.weights or None)
  with tempfile.TemporaryDirectory() as folder:
    times = measure(pipe, pathlib.Path(folder), FLAGS.repeats)
  found: dict[str, Any] = {"machine": machine.describe(), "seconds": times}
  print("| | median | quartiles |\n|---|---|---|")
  for name, values in times.items():
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    print(f"| {name} | {middle:.2f} | {low:.2f}-{high:.2f} |")
  if FLAGS.out:
    pathlib.Path(FLAGS.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  flags.DEFINE_string("weights", "", "Directory; empty for the small Ovi.")
  flags.DEFINE_integer("repeats", 5, "Of each case.", lower_bound=1)
  flags.DEFINE_string("out", "", "JSON file for the figures.")
  cli.run(main)
