"""The figures of a report, as PNG: how many are left, and why."""

import importlib
import io
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax.curation.report import statistics

try:
  figures = importlib.import_module("matplotlib.figure")
  backend_agg = importlib.import_module("matplotlib.backends.backend_agg")
except ImportError as error:
  raise ImportError(
    f"matplotlib is missing ({error}); pip install 'ovi_jax[curate]', or give"
    " --config.report=False"
  ) from error

KEPT, DROPPED, FAILED, BOUND = "#2a6f97", "#e07a3f", "#8d99ae", "#222222"
_WIDTH = 9.0  # inches
_BINS = 40
_COLUMNS = 3


def funnel(stages: Sequence[statistics.StageStatistics]) -> bytes:
  """Clips that each stage passed on, refused and failed on."""
  figure, axes = _figure(_WIDTH, 0.8 + 0.34 * len(stages))
  rows = np.arange(len(stages))[::-1]
  passed = np.array([stage.passed for stage in stages])
  refused = np.array([stage.refused for stage in stages])
  failed = np.array([stage.failed for stage in stages])
  axes.barh(rows, passed, color=KEPT, label="passed on")
  axes.barh(rows, refused, left=passed, color=DROPPED, label="refused")
  axes.barh(rows, failed, left=passed + refused, color=FAILED, label="failed")
  axes.set_yticks(rows, [stage.name for stage in stages])
  axes.set_xlabel("files, from windows on clips")
  axes.legend(frameon=False, fontsize=8, loc="lower right")
  return _png(figure)


def reasons(stages: Sequence[statistics.StageStatistics]) -> bytes | None:
  """How many clips were refused for what; None if none was."""
  found = [
    (f"{stage.name}: {name}", reason.count, reason.failed)
    for stage in stages
    for name, reason in stage.reasons.items()
  ]
  if not found:
    return None
  figure, axes = _figure(_WIDTH, 0.8 + 0.26 * len(found))
  rows = np.arange(len(found))[::-1]
  colours = [FAILED if failed else DROPPED for *_, failed in found]
  bars = axes.barh(rows, [count for _, count, _ in found], color=colours)
  axes.bar_label(bars, padding=3, fontsize=8)
  axes.set_yticks(rows, [_plain(name) for name, *_ in found])
  axes.set_xlabel("clips")
  return _png(figure)


def scores(
  panels: Sequence[
    tuple[str, Sequence[float], Mapping[str, Sequence[float]], Any]
  ],
) -> bytes | None:
  """Histograms of scores.

  Args:
    panels: (title, scores of clips passed on, reason -> scores of clips
      refused, reason -> bound).
  """
  if not panels:
    return None
  rows = -(-len(panels) // _COLUMNS)
  figure = figures.Figure(figsize=(_WIDTH, 2.3 * rows), layout="constrained")
  for number, (title, kept, dropped, bounds) in enumerate(panels):
    axes = figure.add_subplot(rows, _COLUMNS, number + 1)
    values = [np.asarray(kept), *(np.asarray(d) for d in dropped.values())]
    edges = np.histogram_bin_edges(
      np.concatenate([*values, np.asarray(list(bounds.values()), float)]), _BINS
    )
    many = [DROPPED, "#b5533c", "#f2b880"]
    colours = [KEPT, *(many[i % len(many)] for i in range(len(dropped)))]
    axes.hist(
      values,
      edges,
      stacked=True,
      color=colours,
      label=["passed on", *map(_plain, dropped)],
    )
    if dropped:
      axes.legend(frameon=False, fontsize=6, loc="upper right")
    for bound in bounds.values():
      axes.axvline(bound, color=BOUND, linestyle="--", linewidth=1)
      axes.annotate(
        f" {bound:g}",
        (bound, 0.93),
        xycoords=("data", "axes fraction"),
        fontsize=7,
      )
    _tidy(axes)
    axes.set_title(_plain(title), fontsize=9)
  return _png(figure)


def shares(parts: Mapping[str, Mapping[str, int]]) -> bytes:
  """Shares of kinds, one bar for each of what they are shares of."""
  figure, axes = _figure(_WIDTH, 0.9 + 0.4 * len(parts))
  kinds = sorted({kind for counts in parts.values() for kind in counts})
  rows = np.arange(len(parts))[::-1]
  left = np.zeros(len(parts))
  for number, kind in enumerate(kinds):
    share = np.array(
      [c.get(kind, 0) / max(1, sum(c.values())) for c in parts.values()]
    )
    colour = ["#2a6f97", "#61a5c2", "#a9d6e5", "#e9c46a", "#f4a261"][number % 5]
    bars = axes.barh(rows, share, left=left, color=colour, label=_plain(kind))
    axes.bar_label(
      bars,
      [f"{s:.0%}" if s > 0.04 else "" for s in share],
      label_type="center",
      fontsize=8,
    )
    left += share
  axes.set_yticks(rows, list(parts))
  axes.set_xlim(0, 1)
  axes.legend(
    frameon=False,
    fontsize=8,
    ncols=5,
    loc="upper left",
    bbox_to_anchor=(0, -0.15),
  )
  return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
  """A figure of one panel."""
  figure = figures.Figure(figsize=(width, height), layout="constrained")
  axes = figure.add_subplot()
  _tidy(axes)
  return figure, axes


def _tidy(axes: Any) -> None:
  """No more ink than needed."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=8)


def _png(figure: Any) -> bytes:
  """The figure's bytes."""
  file = io.BytesIO()
  backend_agg.FigureCanvasAgg(figure).print_png(file)
  return file.getvalue()


def _plain(text: str) -> str:
  """Text that is not taken for a formula."""
  return text.replace("$", r"\$")
