"""Wall time of several prompts at once, beside one prompt after another.

  python -m benchmarks.sampling_throughput [--batch_size=3] [--weights=DIR]

Both ways make the same clips and write the same files in one process with the
same loaded weights: `single` calls the pipeline for each prompt and writes its
mp4 before the next (batches of one, no overlap); `batched` is one call, which
denoises batches and finishes clips meanwhile. They are timed in turns; the
ratio of each pair is what counts. Programs are compiled and latents compared
before.
"""

import dataclasses
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import machine
from ovi_jax import cli
from ovi_jax.sampling import clips as clips_lib
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as settings_lib

PROMPTS = (
  "A red ball bounces on a wooden floor. Audio: dull wooden knocks.",
  "A blue lamp flashes. Audio: a low beep.",
  "A green ball bounces on a metal floor. Audio: bright metallic clangs.",
  "A yellow lamp flashes. Audio: a high beep.",
  "A blue ball bounces on a stone floor. Audio: short stony clicks.",
  "A face says <S>a o a<E>. Audio: a low voice.",
)
MAX_DIFFERENCE = 1e-4  # of latents, over the largest value

FLAGS = flags.FLAGS


def clip_writer(
  pipe: pipelines.Pipeline, batch_size: int, steps: int | None
) -> Callable[[tuple[str, ...], pathlib.Path], list[clips_lib.Clip]]:
  """A function that makes clips of prompts and writes them to a folder."""
  changes = {"batch_size": batch_size, "num_steps": steps}
  recommended = settings_lib.recommended_of(pipe.components.manifest)
  settings = settings_lib.Settings.from_overrides(changes, recommended)

  def make(prompts: tuple[str, ...], out: pathlib.Path) -> list[clips_lib.Clip]:
    asked = [
      dataclasses.replace(request, index=row)
      for row, prompt in enumerate(prompts, 1)
      for request in requests.from_prompt(prompt)
    ]
    jobs, noise = planning.plan(asked, settings, pipe.components, out, "")

    def finish(made: clips_lib.Made) -> clips_lib.Clip:
      clip = made.clip
      frames = iter([clip.video])
      outputs.write(made.job.path, clip.metadata, frames, clip.audio, None)
      return clip

    return pipe.generate(jobs, settings, finish, noise)

  return make


def largest_difference(
  found: list[clips_lib.Clip], expected: list[clips_lib.Clip]
) -> float:
  """Of all latents, over the largest value."""
  return max(
    float(np.abs(a - b).max() / np.abs(b).max())
    for ours, reference in zip(found, expected, strict=True)
    for a, b in zip(ours.latents, reference.latents)
  )


def measure(
  weights: str | None, batch_size: int, steps: int | None, repeats: int
) -> dict[str, Any]:
  """Seconds of both ways in turns, their ratios, and how far they differ.

  Raises:
    ValueError: the latents differ by more than `MAX_DIFFERENCE`.
  """
  pipe = pipelines.Pipeline.from_pretrained(weights)
  one, several = (clip_writer(pipe, size, steps) for size in (1, batch_size))

  def single(out: pathlib.Path) -> list[clips_lib.Clip]:
    return [one((prompt,), out)[0] for prompt in PROMPTS]

  def batched(out: pathlib.Path) -> list[clips_lib.Clip]:
    return several(PROMPTS, out)

  def timed(
    make: Callable[[pathlib.Path], list[clips_lib.Clip]],
  ) -> tuple[float, list[clips_lib.Clip]]:
    with tempfile.TemporaryDirectory() as folder:
      start = time.perf_counter()
      clips = make(pathlib.Path(folder))
      return time.perf_counter() - start, clips

  difference = largest_difference(timed(batched)[1], timed(single)[1])
  if difference > MAX_DIFFERENCE:
    raise ValueError(f"latents differ by {difference:.1e}: not the same clips")
  seconds: dict[str, list[float]] = {"batched": [], "single": []}
  for _ in range(repeats):
    seconds["batched"].append(timed(batched)[0])
    seconds["single"].append(timed(single)[0])
  ratios = [a / b for a, b in zip(*seconds.values())]
  return {
    "machine": machine.describe(),
    "prompts": len(PROMPTS),
    "batch_size": batch_size,
    "difference": difference,
    "seconds": seconds,
    "ratio": statistics.median(ratios),
    "ratios": ratios,
  }


def main() -> None:
  busy = machine.busy_share()
  found = measure(
    FLAGS.weights or None, FLAGS.batch_size, FLAGS.steps, FLAGS.repeats
  )
  found["busy_before"] = busy
  single, batched = (
    statistics.median(found["seconds"][n]) for n in ("single", "batched")
  )
  low, high = min(found["ratios"]), max(found["ratios"])
  print(f"{'prompts':>8} {'batch':>6} {'single s':>9} {'batched s':>10}  ratio")
  print(
    f"{found['prompts']:>8} {found['batch_size']:>6} {single:>9.1f}"
    f" {batched:>10.1f}  {found['ratio']:.2f} ({low:.2f} to {high:.2f})"
  )
  print(
    f"latents agree to {found['difference']:.0e};"
    f" {busy:.0%} of the CPUs were in use before"
  )
  if FLAGS.out:
    pathlib.Path(FLAGS.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  flags.DEFINE_string(
    "weights", "", "Directory of weights; else the small Ovi."
  )
  flags.DEFINE_integer("batch_size", 3, "Clips of a batch.", lower_bound=1)
  flags.DEFINE_integer("steps", None, "Instead of what the weights recommend.")
  flags.DEFINE_integer("repeats", 3, "Pairs that are timed.", lower_bound=1)
  flags.DEFINE_string("out", "", "JSON file for the figures.")
  cli.run(main)
