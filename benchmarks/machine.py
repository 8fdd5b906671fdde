"""The machine under a measurement: its names, and who else is using it."""

import os
import pathlib
import platform
import subprocess
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]


def describe() -> dict[str, Any]:
  """CPU model, cores, memory, system, and the commit that is measured."""
  return {
    "cpu": _cpu_model(),
    "cores": len(os.sched_getaffinity(0)),
    "memory_gb": round(_memory() / 1e9, 1),
    "system": f"{platform.system()} {platform.release()}",
    "python": platform.python_version(),
    "commit": _commit(),
  }


def busy_seconds() -> float:
  """CPU seconds that all processes used since boot (and those stolen)."""
  fields = pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
  user, nice, system, _, _, irq, softirq, steal = map(int, fields)
  ticks = user + nice + system + irq + softirq + steal
  return ticks / os.sysconf("SC_CLK_TCK")


def busy_share(seconds: float = 2.0) -> float:
  """Share of all CPUs in use during the next `seconds`."""
  before = busy_seconds()
  time.sleep(seconds)
  return (busy_seconds() - before) / (seconds * (os.cpu_count() or 1))


def _cpu_model() -> str:
  """The name and the vector extensions of the first CPU."""
  found = {}
  for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
    key, _, value = line.partition(":")
    found.setdefault(key.strip(), value.strip())
  flags = found.get("flags", "").split()
  widest = [f for f in ("amx_tile", "avx512f", "avx2") if f in flags][:1]
  name = found.get("model name", platform.machine())
  family = found.get("cpu family"), found.get("model")
  described = " ".join(["family", *map(str, family), *widest])
  return f"{name} ({described})"


def _memory() -> int:
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _commit() -> str:
  """The commit, with `+` if files of the package differ from it."""
  git = ["git", "-C", str(ROOT)]
  options: Any = {"capture_output": True, "text": True, "check": False}
  head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], **options)
  changes = [*git, "status", "--porcelain", "--", "ovi_jax", "benchmarks/*.py"]
  changed = subprocess.run(changes, **options).stdout.strip()
  return (head.stdout.strip() or "unknown") + ("+" if changed else "")
