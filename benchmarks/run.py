"""Times ovi_jax and the original's PyTorch code on one machine, in one run.

  python -m benchmarks.run --original=CLONE --torch_python=PYTHON
  python -m benchmarks.run --cases=denoise,vocoder          (ours only)

CLONE is a clone of character-ai/Ovi. PYTHON is a Python with its requirements
(see README.md). Each case gets two processes with equal thread counts. Both
warm up and are compared; then they are timed alternately. This is repeated
with new processes, since the speed of a process may stay low for its lifetime.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import cases as cases_lib
from benchmarks import machine
from benchmarks import report
from benchmarks import start

ROOT = pathlib.Path(__file__).resolve().parents[1]
START = "start"
TOLERANCE = 1e-3  # of the largest figure; beyond, the two compute other things
PAUSE = 0.5  # seconds between runs: threads of the other side go to sleep

FLAGS = flags.FLAGS
flags.DEFINE_string("original", "", "Clone of character-ai/Ovi to compare.")
flags.DEFINE_string("torch_python", "", "Python with the clone's requirements.")
flags.DEFINE_list("cases", [], "Only these (default: all).")
flags.DEFINE_integer("restarts", 4, "Restarts of both.", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "Undisturbed pairs a start.", lower_bound=1)
flags.DEFINE_integer(
  "patience", 0, "Seconds a case may wait for others to leave the machine."
)
flags.DEFINE_integer("threads", 2, "CPUs of each side.", lower_bound=1)
flags.DEFINE_string("out", str(ROOT / "benchmarks/results"), "Results.")
flags.DEFINE_string("name", "cpu", "Results are NAME.json and NAME.md.")
flags.DEFINE_bool("small", False, "Tiny sizes: does the harness work?")


class Worker:
  """A process that computes one side of one case."""

  def __init__(self, command: list[str], order: dict[str, Any]):
    environment = os.environ | {
      name: str(order["threads"])
      for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    self._process = subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
    )
    self.versions = self.ask(order)["ready"]

  def ask(self, order: dict[str, Any]) -> dict[str, Any]:
    """Send a line, return the answer.

    Raises:
      RuntimeError: the process ended; with the end of its errors.
    """
    line = ""
    try:
      print(json.dumps(order), file=self._process.stdin, flush=True)
      assert self._process.stdout is not None
      line = self._process.stdout.readline()
    except BrokenPipeError:
      pass
    if not line:
      self._process.wait()
      self._errors.seek(0)
      raise RuntimeError(f"worker failed:\n{self._errors.read()[-3000:]}")
    return json.loads(line)

  def timed(self) -> dict[str, float]:
    """Run once; the answer, with the share of the CPUs that others used."""
    cores = os.cpu_count() or 1
    time.sleep(PAUSE)
    busy, wall = machine.busy_seconds(), time.perf_counter()
    answer = self.ask({"do": "run"})
    busy = machine.busy_seconds() - busy
    wall = time.perf_counter() - wall
    others = (busy - answer["cpu_seconds"]) / (wall * cores)
    return answer | {"others": max(0.0, others)}

  def stop(self) -> int:
    """End the process; the bytes it held at most."""
    peak = self.ask({"do": "stop"})["peak_bytes"]
    self._process.wait()
    self._errors.close()
    return peak


def commands() -> dict[str, list[str]]:
  """How to start each side's worker."""
  sides = {"ours": [sys.executable, "-m", "benchmarks.ours"]}
  if FLAGS.original:
    sides["original"] = [FLAGS.torch_python, "-O", "-m", "benchmarks.original"]
  return sides


def measure(case: cases_lib.Case) -> dict[str, Any]:
  """Time one case, its workers started several times."""
  order = {
    "case": case.name,
    "small": FLAGS.small,
    "threads": FLAGS.threads,
    "original": FLAGS.original,
  }
  starts: list[list[dict[str, Any]]] = []
  result: dict[str, Any] = {"about": case.about}
  deadline = time.monotonic() + FLAGS.patience
  for _ in range(FLAGS.restarts):
    workers = {side: Worker(c, order) for side, c in commands().items()}
    result["difference"] = compare(workers)
    starts.append(timed_pairs(workers, deadline))
    result["versions"] = {side: w.versions for side, w in workers.items()}
    result["peak_bytes"] = {side: w.stop() for side, w in workers.items()}
  return result | {"figures": report.summarize(starts), "timed": starts}


def timed_pairs(
  workers: dict[str, Worker], deadline: float
) -> list[dict[str, Any]]:
  """Time the sides in turns until enough pairs were undisturbed."""
  pairs: list[dict[str, Any]] = []
  while len(pairs) < 4 * FLAGS.repeats:
    while time.monotonic() < deadline and machine.busy_share() > report.QUIET:
      pass
    pairs.append({side: w.timed() for side, w in workers.items()})
    if sum(map(report.is_quiet, pairs)) >= FLAGS.repeats:
      break
  return pairs


def compare(workers: dict[str, Worker]) -> float | None:
  """Warm up; largest difference of the two sides over the largest figure.

  Raises:
    RuntimeError: they do not compute the same thing.
  """
  outputs = {}
  with tempfile.TemporaryDirectory() as folder:
    for side, worker in workers.items():
      path = f"{folder}/{side}.npz"
      worker.ask({"do": "check", "path": path})
      with np.load(path) as file:
        outputs[side] = dict(file)
      worker.ask({"do": "run"})
  if len(outputs) < 2:
    return None
  ours, theirs = outputs["ours"], outputs["original"]
  if {n: a.shape for n, a in ours.items()} != {
    n: a.shape for n, a in theirs.items()
  }:
    raise RuntimeError(f"outputs differ in shape: {outputs}")
  worst = max(
    float(np.abs(ours[n] - theirs[n]).max() / np.abs(theirs[n]).max())
    for n in ours
  )
  if not worst <= TOLERANCE:
    raise RuntimeError(f"the two sides differ by {worst:.1e} > {TOLERANCE}")
  return worst


def command_line() -> str:
  """This command, without the user's own paths."""
  private = ("--original", "--torch_python", "--out")
  words = ["python -m benchmarks.run"]
  for word in sys.argv[1:]:
    name = word.split("=")[0]
    words.append(f"{name}={name[2:].upper()}" if name in private else word)
  return " ".join(words)


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  known = cases_lib.all_cases(FLAGS.small)
  wanted = FLAGS.cases or [*known, START]
  unknown = sorted(set(wanted) - {*known, START})
  if unknown:
    raise app.UsageError(f"unknown cases {unknown}; {[*known, START]} exist")
  if bool(FLAGS.original) != bool(FLAGS.torch_python):
    raise app.UsageError("--original and --torch_python go together")
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  results: dict[str, Any] = {
    "machine": machine.describe(),
    "threads": FLAGS.threads,
    "command": command_line(),
    "versions": {},
    "cases": {},
  }
  for name in wanted:
    if name == START:
      results["start"] = start.measure(min(FLAGS.repeats, 3))
      continue
    print(f"{name}: {known[name].about}", flush=True)
    case = results["cases"][name] = measure(known[name])
    for side, versions in case.pop("versions").items():
      results["versions"].setdefault(side, {}).update(versions)
    print(f"  {json.dumps(case['figures'])}", flush=True)
  folder = pathlib.Path(FLAGS.out)
  folder.mkdir(parents=True, exist_ok=True)
  encoded = json.dumps(results, indent=1) + "\n"
  (folder / f"{FLAGS.name}.json").write_text(encoded)
  written = report.markdown(results)
  (folder / f"{FLAGS.name}.md").write_text(written)
  print(f"\n{written}\nwrote {folder / FLAGS.name}.json and .md")


if __name__ == "__main__":
  app.run(main)
