"""Figures of the report, as PNG."""

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
    f"matplotlib is missing ({error}); pip install -e '.[curate]', or give"
    " --config.report=False"
  ) from error

PASSED, REJECTED, FAILED, THRESHOLD = "#2a6f97", "#e07a3f", "#8d99ae", "#222222"
_WIDTH = 9.0  # inches
_BINS = 40
_COLUMNS = 3


def funnel(stages: Sequence[statistics.StageStatistics]) -> bytes:
  """Clips passed on, rejected and failed by each stage."""
  figure, axes = _figure(_WIDTH, 0.8 + 0.34 * len(stages))
  rows = np.arange(len(stages))[::-1]
  passed = np.array([stage.passed for stage in stages])
  rejected = np.array([stage.rejected for stage in stages])
  failed = np.array([stage.failed for stage in stages])
  axes.barh(rows, passed, color=PASSED, label="passed")
  axes.barh(rows, rejected, left=passed, color=REJECTED, label="rejected")
  axes.barh(rows, failed, left=passed + rejected, color=FAILED, label="failed")
  axes.set_yticks(rows, [stage.name for stage in stages])
  axes.set_xlabel("files or clips")
  axes.legend(frameon=False, fontsize=8, loc="lower right")
  return _png(figure)


def reasons(stages: Sequence[statistics.StageStatistics]) -> bytes | None:
  """Number of clips per reject reason; None without rejects."""
  found = [
    (f"{stage.name}: {name}", reason.count, reason.failed)
    for stage in stages
    for name, reason in stage.reasons.items()
  ]
  if not found:
    return None
  figure, axes = _figure(_WIDTH, 0.8 + 0.26 * len(found))
  rows = np.arange(len(found))[::-1]
  colours = [FAILED if failed else REJECTED for *_, failed in found]
  bars = axes.barh(rows, [count for _, count, _ in found], color=colours)
  axes.bar_label(bars, padding=3, fontsize=8)
  axes.set_yticks(rows, [_escape(name) for name, *_ in found])
  axes.set_xlabel("clips")
  return _png(figure)


def scores(
  panels: Sequence[
    tuple[str, Sequence[float], Mapping[str, Sequence[float]], Any]
  ],
) -> bytes | None:
  """Histograms of scores.

  Args:
    panels: (title, scores of clips passed on, reason -> scores of rejected
      clips, reason -> threshold).
  """
  if not panels:
    return None
  rows = -(-len(panels) // _COLUMNS)
  figure = figures.Figure(figsize=(_WIDTH, 2.3 * rows), layout="constrained")
  for number, (title, passed, rejected, thresholds) in enumerate(panels):
    axes = figure.add_subplot(rows, _COLUMNS, number + 1)
    values = [np.asarray(passed), *(np.asarray(d) for d in rejected.values())]
    edges = np.histogram_bin_edges(
      np.concatenate([*values, np.asarray(list(thresholds.values()), float)]),
      _BINS,
    )
    many = [REJECTED, "#b5533c", "#f2b880"]
    colours = [PASSED, *(many[i % len(many)] for i in range(len(rejected)))]
    axes.hist(
      values,
      edges,
      stacked=True,
      color=colours,
      label=["passed", *map(_escape, rejected)],
    )
    if rejected:
      axes.legend(frameon=False, fontsize=6, loc="upper right")
    for threshold in thresholds.values():
      axes.axvline(threshold, color=THRESHOLD, linestyle="--", linewidth=1)
      axes.annotate(
        f" {threshold:g}",
        (threshold, 0.93),
        xycoords=("data", "axes fraction"),
        fontsize=7,
      )
    _hide_spines(axes)
    axes.set_title(_escape(title), fontsize=9)
  return _png(figure)


def shares(parts: Mapping[str, Mapping[str, int]]) -> bytes:
  """Stacked bars of group shares."""
  figure, axes = _figure(_WIDTH, 0.9 + 0.4 * len(parts))
  kinds = sorted({kind for counts in parts.values() for kind in counts})
  rows = np.arange(len(parts))[::-1]
  left = np.zeros(len(parts))
  for number, kind in enumerate(kinds):
    share = np.array(
      [c.get(kind, 0) / max(1, sum(c.values())) for c in parts.values()]
    )
    colour = ["#2a6f97", "#61a5c2", "#a9d6e5", "#e9c46a", "#f4a261"][number % 5]
    bars = axes.barh(rows, share, left=left, color=colour, label=_escape(kind))
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
  """A figure with one panel."""
  figure = figures.Figure(figsize=(width, height), layout="constrained")
  axes = figure.add_subplot()
  _hide_spines(axes)
  return figure, axes


def _hide_spines(axes: Any) -> None:
  """Remove unneeded lines."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=8)


def _png(figure: Any) -> bytes:
  """The figure as PNG."""
  file = io.BytesIO()
  backend_agg.FigureCanvasAgg(figure).print_png(file)
  return file.getvalue()


def _escape(text: str) -> str:
  """Escape text for matplotlib."""
  return text.replace("$", r"\$")
