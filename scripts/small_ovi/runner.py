"""Runs commands of this repository in order and records their wall time.

Not a Makefile: the commands are computed from the recipe's tables, for
ablations per variant and seed. Rules generated from them would still need a
program that adds up the time of interrupted runs.
"""

import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterable

from absl import flags

from ovi_jax import cli
from ovi_jax import files

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMES = "times.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A command.

  Attributes:
    name: of the step.
    words: of the command, without the Python that runs it.
    output: path that exists once the step is complete; `None` for a run of
      `train.py`, which resumes from its own checkpoints.
  """

  name: str
  words: tuple[str, ...]
  output: pathlib.Path | None = None


def print_commands(steps: Iterable[Step]) -> None:
  for step in steps:
    print(f"python {shlex.join(step.words)}")


def run(steps: Iterable[Step], times: pathlib.Path) -> None:
  """Run steps in order; those whose output exists are skipped.

  Args:
    steps: in order.
    times: JSON file that keeps the seconds of each.

  Raises:
    ValueError: a step fails.
  """
  for step in steps:
    if step.output is not None and step.output.exists():
      print(f"{step.name}: skipped, {step.output} exists", flush=True)
      continue
    print(f"{step.name}: python {shlex.join(step.words)}", flush=True)
    start = time.monotonic()
    done = subprocess.run(
      [sys.executable, *step.words], cwd=REPOSITORY, check=False
    )
    _add_time(times, step.name, time.monotonic() - start)
    if done.returncode:
      raise ValueError(
        f"step {step.name} failed with exit code {done.returncode}; its output"
        " is above. Run the same command again to resume: completed steps are"
        " skipped"
      )


def until(steps: Iterable[Step], last: str) -> list[Step]:
  """The steps up to and including one of them, or all if `last` is empty.

  Raises:
    ValueError: there is no step of that name.
  """
  steps = list(steps)
  names = [step.name for step in steps]
  if last and last not in names:
    raise ValueError(f"no step {last!r}; choose from {', '.join(names)}")
  return steps[: names.index(last) + 1 if last else None]


def absolute(path: str) -> pathlib.Path:
  """A path of the caller's folder; steps run in the repository."""
  return pathlib.Path(os.path.abspath(path))


def _add_time(path: pathlib.Path, name: str, seconds: float) -> None:
  """Add to the seconds that a step took in earlier runs; note the machine."""
  times = json.loads(path.read_text()) if path.exists() else {}
  steps, machines = times.get("seconds", {}), times.get("machines", [])
  steps[name] = round(steps.get(name, 0.0) + seconds, 1)
  machines = list(dict.fromkeys([*machines, _machine()]))
  times = {"machines": machines, "seconds": steps}
  with files.atomic_path(path) as temporary:
    pathlib.Path(temporary).write_text(json.dumps(times, indent=2) + "\n")


def _machine() -> str:
  """Number of cores and name of the processor."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    for line in info.read_text("utf-8").splitlines():
      if line.startswith("model name"):
        name = line.partition(":")[2].strip()
        break
  return f"{os.cpu_count()} cores ({name})"


def start(
  steps: Callable[[pathlib.Path, int, pathlib.Path], Iterable[Step]],
  default_seed: int,
) -> None:
  """Run a recipe as a command, with flags for what its steps take.

  Args:
    steps: root, seed and the directory for the weights -> all steps, in order.
    default_seed: of the flag.
  """
  flags.DEFINE_string("root", "", "Directory for outputs.")
  flags.DEFINE_string(
    "out", "", "Directory for the weights; by default ROOT/weights."
  )
  flags.DEFINE_integer("seed", default_seed, "Seed of worlds and training.")
  flags.DEFINE_string("until", "", "Name of the last step to run.")
  flags.DEFINE_bool("dry_run", False, "Print the commands only.")

  def main() -> None:
    given = flags.FLAGS
    cli.require_flags(given, root="DIR")
    root = absolute(given.root)
    out = absolute(given.out or str(root / "weights"))
    todo = until(steps(root, given.seed, out), given.until)
    if given.dry_run:
      print_commands(todo)
      return
    root.mkdir(parents=True, exist_ok=True)
    run(todo, root / TIMES)

  cli.run(main)
