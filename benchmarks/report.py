"""Timed pairs to figures, and figures to a table one can read."""

import statistics
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

QUIET = 0.1  # share of the CPUs that others may use during a timed run


def is_quiet(pair: Mapping[str, Mapping[str, float]]) -> bool:
  """Whether nobody else used the machine while the pair was timed."""
  return all(side["others"] <= QUIET for side in pair.values())


Pair = Mapping[str, Mapping[str, float]]


def summarize(starts: Sequence[Sequence[Pair]]) -> dict:
  """Figures of one case.

  Args:
    starts: the pairs of each start of the workers; of each side of a pair its
      `seconds`, `cpu_seconds` and `others` (share of the CPUs used by other
      processes meanwhile).

  Returns:
    Of each side the `median`, `min` and `cpu` (median) seconds; `ratio`, the
    median of the pairs' ratios ours / original, its `spread`, and `by_start`,
    the median of each start; `pairs`, how many counted, and `quiet`, whether
    they were undisturbed. Disturbed pairs count only where fewer than three
    are quiet.
  """
  pairs = [pair for start in starts for pair in start]
  quiet = [pair for pair in pairs if is_quiet(pair)]
  enough = len(quiet) >= min(3, len(pairs))
  counted = quiet if enough else list(pairs)
  figures: dict[str, Any] = {"pairs": len(counted), "quiet": enough}
  for side in counted[0]:
    seconds = [pair[side]["seconds"] for pair in counted]
    cpu = [pair[side]["cpu_seconds"] for pair in counted]
    figures[side] = {
      "median": statistics.median(seconds),
      "min": min(seconds),
      "cpu": statistics.median(cpu),
    }
  if "original" in counted[0]:
    for key, name in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio")):
      ratios = [p["ours"][key] / p["original"][key] for p in counted]
      figures[name] = statistics.median(ratios)
      figures[f"{name}_spread"] = [min(ratios), max(ratios)]
    figures["by_start"] = [
      statistics.median(
        p["ours"]["seconds"] / p["original"]["seconds"] for p in start
      )
      for start in starts
    ]
  return figures


def markdown(results: Mapping[str, Any]) -> str:
  """The whole report: tables, machine, versions, command."""
  parts = ["# Results", ""]
  if results["cases"]:
    parts += [*_cases(results["cases"]), ""]
  if "start" in results:
    parts += [*_start(results["start"]), ""]
  machine = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
  parts += [f"Machine: {machine}.", f"Threads: {results['threads']}."]
  for side, versions in results["versions"].items():
    listed = ", ".join(f"{k} {v}" for k, v in versions.items())
    parts.append(f"{side.capitalize()}: {listed}.")
  parts += ["", "Command:", "", f"    {results['command']}", ""]
  return "\n".join(parts)


def _cases(cases: Mapping[str, Any]) -> list[str]:
  """The table of timed cases."""
  lines = [
    "| case | ours s | original s | ours / original | CPU s | difference |",
    "|---|---|---|---|---|---|",
  ]
  for name, case in cases.items():
    figures = case["figures"]
    sides = [s for s in ("ours", "original") if s in figures]
    times = {
      s: f"{figures[s]['median']:.3f} (min {figures[s]['min']:.3f})"
      for s in sides
    }
    cpu = " / ".join(f"{figures[s]['cpu']:.2f}" for s in sides)
    ratio = "-"
    if "ratio" in figures:
      low, high = figures["ratio_spread"]
      ratio = f"**{figures['ratio']:.3f}** ({low:.3f} to {high:.3f})"
    if not figures["quiet"]:
      ratio += " disturbed"
    error = case.get("difference")
    error = "-" if error is None else f"{error:.0e}"
    lines.append(
      f"| {name} | {times['ours']} | {times.get('original', '-')} | {ratio} |"
      f" {cpu} | {error} |"
    )
  lines += ["", "Medians; the ratio is the median over alternating pairs"]
  lines[-1] += " (smallest to largest). What each is:"
  lines += [""]
  for name, case in cases.items():
    memory = case["peak_bytes"]
    held = ", ".join(f"{s} {b / 1e9:.2f} GB" for s, b in memory.items())
    pairs = case["figures"]["pairs"]
    by_start = case["figures"].get("by_start", [])
    each = ", ".join(f"{ratio:.3f}" for ratio in by_start) or "-"
    lines.append(
      f"- {name}: {case['about']}; {pairs} pairs; ratio by start of the"
      f" processes {each}; peak {held}."
    )
  return lines


def _start(start: Mapping[str, Any]) -> list[str]:
  """The table of seconds from process start to the first step."""
  columns = list(next(iter(start.values())))
  return [
    "Start of `sample.py` on the stand-in, seconds to the end of its first"
    " step (medians):",
    "",
    "| compilation cache | " + " | ".join(columns) + " |",
    "|---" * (1 + len(columns)) + "|",
    *(
      f"| {cache} | " + " | ".join(f"{v:.2f}" for v in row.values()) + " |"
      for cache, row in start.items()
    ),
  ]
