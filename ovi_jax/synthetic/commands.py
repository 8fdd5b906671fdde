"""Commands of the project one after the other, each once, and timed."""

import dataclasses
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable

from ovi_jax import files

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TIMES = "times.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A command.

  Attributes:
    name: of the step.
    words: of the command, without the Python that runs it.
    makes: what is there when it is done; `None` for a run of `train.py`, which
      knows itself how far it is.
  """

  name: str
  words: tuple[str, ...]
  makes: pathlib.Path | None = None


def take(todo: Iterable[Step], times: pathlib.Path) -> None:
  """Take steps, those that are not taken yet.

  Args:
    todo: in order.
    times: file that keeps the seconds of each.

  Raises:
    ValueError: a step fails.
  """
  for step in todo:
    if step.makes is not None and step.makes.exists():
      print(f"{step.name}: already made", flush=True)
      continue
    print(f"{step.name}: python {shlex.join(step.words)}", flush=True)
    began = time.monotonic()
    done = subprocess.run(
      [sys.executable, *step.words], cwd=REPOSITORY, check=False
    )
    _keep_time(times, step.name, time.monotonic() - began)
    if done.returncode:
      raise ValueError(
        f"step {step.name} ended with exit code {done.returncode}; what it"
        " said is above. The same command goes on from here"
      )


def until(todo: Iterable[Step], last: str) -> list[Step]:
  """The steps up to and with that of a name, or all if it is empty.

  Raises:
    ValueError: there is none of that name.
  """
  steps = list(todo)
  names = [step.name for step in steps]
  if last and last not in names:
    raise ValueError(f"no step {last!r}; choose from {', '.join(names)}")
  return steps[: names.index(last) + 1 if last else None]


def directory_of(path: str, name: str) -> pathlib.Path:
  """An absolute directory from a flag; steps run in the repository.

  Raises:
    ValueError: the flag is empty, or there is no repository.
  """
  if not path:
    raise ValueError(f"--{name}=DIR is needed")
  if not (REPOSITORY / "train.py").is_file():
    raise ValueError("this runs in a clone of the repository only")
  return pathlib.Path(os.path.abspath(path))


def _keep_time(path: pathlib.Path, name: str, seconds: float) -> None:
  """Add to what a step took in earlier runs, and note the machine."""
  times = json.loads(path.read_text()) if path.exists() else {}
  steps, machines = times.get("seconds", {}), times.get("machines", [])
  steps[name] = round(steps.get(name, 0.0) + seconds, 1)
  machines = list(dict.fromkeys([*machines, _machine()]))
  times = {"machines": machines, "seconds": steps}
  with files.atomic_path(path) as temporary:
    pathlib.Path(temporary).write_text(json.dumps(times, indent=2) + "\n")


def _machine() -> str:
  """Cores, and the processor's name."""
  name = platform.processor() or platform.machine()
  info = pathlib.Path("/proc/cpuinfo")
  if info.is_file():
    for line in info.read_text("utf-8").splitlines():
      if line.startswith("model name"):
        name = line.partition(":")[2].strip()
        break
  return f"{os.cpu_count()} cores ({name})"
