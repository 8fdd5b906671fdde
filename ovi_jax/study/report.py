"""The report of a study: Markdown, JSON and one self-contained HTML page.

Figures are SVG without scripts; they follow the reader's dark or light mode.
"""

import html
import json
import math
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

from ovi_jax import files
from ovi_jax import storage
from ovi_jax.study import analysis
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study.statistics import intervals

_TITLES = {
  "kept": "Raters kept by the exclusion rule",
  "all": "All raters",
}
_NONE = "-"  # no value
# Intervals by their method.
TWO_WAY = "95 %, two-way clusters"
OVER_PROMPTS = "95 %, bootstrap over prompts"
OVER_RATERS = "95 %, bootstrap over raters"
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5a5d64;
  --line: #d3d5da; --win: #8cc0e0; --tie: #d4d6da; --loss: #f0b48c;
  --mark: #1f6491; --back: #fff; }
@media (prefers-color-scheme: dark) { :root { --text: #ececee; --soft: #aab;
  --line: #45484f; --win: #25628a; --tie: #555a62; --loss: #8f4f24;
  --mark: #7cc0ea; --back: #1a1b1e; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); margin: 2em auto; max-width: 64em; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { margin-top: 2em; border-bottom: 1px solid
  var(--line); font-size: 1.25em; } h3 { font-size: 1.05em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .2em .8em .2em 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
th { white-space: normal; }
svg { width: 100%; max-width: 46em; height: auto; display: block; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
.win { fill: var(--win); } .tie { fill: var(--tie); }
.loss { fill: var(--loss); }
.axis { stroke: var(--line); } .mark { stroke: var(--mark); fill: var(--mark);
  stroke-width: 2; }
"""


def write(
  folder: pathlib.Path,
  out: storage.AnyPath,
  pairs: storage.AnyPath | None = None,
  seed: int = 0,
  replicates: int = intervals.REPLICATES,
) -> dict[str, Any]:
  """Analyse a study and write its report.

  Args:
    folder: of the study.
    out: folder for report.md, report.json, report.html and votes.csv.
    pairs: JSON lines of preferred and rejected clips to write, or None.
    seed: of bootstrap and tests.
    replicates: of each bootstrap.

  Returns:
    The analysis.

  Raises:
    ValueError: the folder is no study, or has no votes.
  """
  study = manifest.read(folder)
  path = folder / manifest.VOTES
  if not path.exists():
    raise ValueError(
      f"{folder} has no votes yet; serve the study, or import sessions"
    )
  rows = database.Database(path, study).votes()
  found = analysis.analyse(study, rows, seed, replicates)
  contents = {
    out / "report.json": json.dumps(found, indent=1) + "\n",
    out / "report.md": markdown(found),
    out / "report.html": page(found),
    out / "votes.csv": analysis.votes_csv(study, rows),
  }
  if pairs is not None:
    checks = analysis.check_raters(study, rows)
    contents[pairs] = analysis.preference_pairs(study, rows, checks)
  for target, text in contents.items():
    with files.atomic_path(target) as temporary:
      temporary.write_text(text, "utf-8")
  return found


def _number(value: float | None, digits: int = 2, sign: bool = False) -> str:
  if value is None:
    return _NONE
  return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _interval(
  values: Sequence[float | None], digits: int = 2, sign: bool = False
) -> str:
  low, high = (_number(v, digits, sign) for v in values)
  return _NONE if low == _NONE else f"{low} to {high}"


def _percent(share: dict[str, Any]) -> str:
  """A share with its Wilson interval."""
  if not share["of"]:
    return _NONE
  low, high = share["interval"]
  value = 100 * share["part"] / share["of"]
  return (
    f"{value:.0f} % ({100 * low:.0f} to {100 * high:.0f}; {share['part']} of"
    f" {share['of']})"
  )


# A table: headings and rows of text.
Table = tuple[list[str], list[list[str]]]


def _pair_table(question: dict[str, Any]) -> Table:
  rows = [
    [
      f"{pair['first']} against {pair['second']}",
      f"{pair['win']} / {pair['tie']} / {pair['loss']}",
      _number(pair["pwr"]["value"]),
      _interval(pair["pwr"]["two_way"]),
      _interval(pair["pwr"]["over_prompts"]),
      _interval(pair["pwr"]["over_raters"]),
      _number(pair["pwr_untied"]["value"]),
      _number(pair["net"]["value"], sign=True),
      _number(pair["p"], 4),
      _number(pair["p_holm"], 4),
    ]
    for pair in question["pairs"]
  ]
  head = ["pair", "win / tie / loss", "PWR", TWO_WAY, OVER_PROMPTS]
  head += [OVER_RATERS, "W/(W+L)", "net", "p", "p (Holm)"]
  return head, rows


def _ranked(question: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
  """Systems, the strongest first, and last those without votes."""
  return sorted(
    question["systems"].items(),
    key=lambda x: math.inf if x[1]["value"] is None else -x[1]["value"],
  )


def _system_table(question: dict[str, Any]) -> Table:
  rows = [
    [
      name if found["votes"] else f"{name} (no votes)",
      _number(found["elo"][0], 0),
      _interval(found["elo"][1:], 0),
      _number(found["value"], sign=True),
      _interval(found["over_prompts"], sign=True),
      _interval(found["over_raters"], sign=True),
    ]
    for name, found in _ranked(question)
  ]
  head = ["system", "Elo", TWO_WAY, "log strength", OVER_PROMPTS]
  return [*head, OVER_RATERS], rows


def _quality_table(question: dict[str, Any]) -> Table:
  bias, alpha = question["side_bias"], question["alpha"]
  rows = [
    ["votes", str(question["votes"])],
    ["cannot judge", str(question["cannot_judge"])],
    ["left among preferences (Wilson)", _percent(question["left_share"])],
    [
      "side bias, log odds for the left (two-way clusters)",
      f"{_number(bias['value'], sign=True)}"
      f" ({_interval(bias['two_way'], sign=True)})",
    ],
    [
      "Krippendorff's alpha (bootstrap over items)",
      f"{_number(alpha['value'])} ({_interval(alpha['interval'])};"
      f" {alpha['items']} items)",
    ],
    ["repeats answered alike (Wilson)", _percent(question["self_consistency"])],
  ]
  return ["measure (method of the interval)", "value (95 %)"], rows


def _exclusion_table(found: dict[str, Any]) -> Table:
  """PWR of each pair with and without the raters that are left out."""
  rows = []
  for name in found["results"]["all"]["questions"]:
    sets = {
      group: result["questions"][name].get("pairs", [])
      for group, result in found["results"].items()
    }
    kept = {(p["first"], p["second"]): p for p in sets.get("kept", ())}
    for pair in sets["all"]:
      other = kept.get((pair["first"], pair["second"]))
      rows.append(
        [
          name,
          f"{pair['first']} against {pair['second']}",
          *_rate(pair),
          *(_rate(other) if other else (_NONE, _NONE)),
        ]
      )
  head = ["question", "pair", "PWR, all", TWO_WAY, "PWR, kept", TWO_WAY]
  return head, rows


def _rate(pair: dict[str, Any]) -> tuple[str, str]:
  return _number(pair["pwr"]["value"]), _interval(pair["pwr"]["two_way"])


def _rater_table(found: dict[str, Any]) -> Table:
  rows = [
    [
      check["rater"],
      str(check["items"]),
      "{} of {}".format(*check["gold"]),
      "{} of {}".format(*check["repeats"]),
      "{} of {}".format(*check["sides"]),
      _NONE if check["headphones"] is None else str(check["headphones"]),
      f"{check['seconds']:.0f} s",
      "; ".join(check["reasons"]) or "kept",
    ]
    for check in found["raters"]
  ]
  head = ["rater", "items", "gold", "repeats", "left", "sound check"]
  return [*head, "median time", "exclusion"], rows


def _clip_table(found: dict[str, Any]) -> Table:
  rows = [
    [
      system,
      str(clips["clips"]),
      "{:.2f} / {:.2f} / {:.2f}".format(*clips["seconds"]),
      ", ".join(clips["sizes"]),
      ", ".join(f"{fps:g}" for fps in clips["fps"]),
      str(clips["with_sound"]),
    ]
    for system, clips in found["systems"].items()
  ]
  head = ["system", "clips", "seconds (least / mean / most)", "size", "fps"]
  return [*head, "with sound"], rows


def _sections(
  found: dict[str, Any],
) -> Iterator[tuple[int, str, Table | None, dict[str, Any] | None]]:
  """Level, title, table and question of each part of the report."""
  yield 2, "Clips", _clip_table(found), None
  for group in ("kept", "all"):
    result = found["results"].get(group)
    if result is None:
      continue
    yield 2, f"{_TITLES[group]} ({result['raters']})", None, None
    for name, question in result["questions"].items():
      if not question["votes"]:
        yield 3, f"{name}: no votes", None, None
        continue
      yield 3, f"{name}: pairs", _pair_table(question), question
      yield 3, f"{name}: systems", _system_table(question), None
      yield 3, f"{name}: quality of the votes", _quality_table(question), None
  yield 2, "With and without exclusions", _exclusion_table(found), None
  yield 2, "Raters", _rater_table(found), None


def _summary(found: dict[str, Any]) -> list[str]:
  rules = [
    f"{name} {value:g}"
    for name, value in found["exclusion"].items()
    if value is not None
  ]
  left_out = sum(bool(check["reasons"]) for check in found["raters"])
  return [
    f"Study {found['study']}: {found['prompts']} prompts, {found['items']}"
    f" pairs of clips, {len(found['raters'])} raters, {left_out} of them left"
    f" out by the rule ({', '.join(rules) or 'none'}).",
    "PWR is (W + T/2) / N of the first system, net is (W - L) / N. Elo is from"
    " Davidson's Bradley-Terry model with ties and side bias: 1000 on average,"
    " 400 for tenfold odds. Intervals of 95 % are over prompts and raters"
    " together unless said otherwise; p is of a sign-flip test over prompts,"
    " corrected by Holm over all pairs and questions."
    f" Bootstrap: {found['replicates']} replicates, seed {found['seed']}.",
  ]


def markdown(found: dict[str, Any]) -> str:
  """The report as Markdown."""
  parts = [f"# {_escape(found['title'])}", *_summary(found)]
  for level, title, table, _ in _sections(found):
    parts.append(f"{'#' * level} {title}")
    if table:
      head, rows = table
      lines = [head, ["---"] * len(head), *rows]
      parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
  return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
  """Text of one line without Markdown or HTML."""
  line = " ".join(text.split())
  return "".join(f"\\{c}" if c in r"\`*_[]<>#|" else c for c in line)


def page(found: dict[str, Any]) -> str:
  """The report as an HTML page without scripts."""
  title = html.escape(found["title"])
  parts = [f"<h1>{title}</h1>"]
  parts += [f"<p>{html.escape(text)}</p>" for text in _summary(found)]
  for level, heading, table, question in _sections(found):
    parts.append(f"<h{level}>{html.escape(heading)}</h{level}>")
    if question:
      parts += [outcome_figure(question), strength_figure(question)]
    if table:
      parts.append(_html_table(*table))
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy"'
    " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>"
    + "\n".join(parts)
    + "</body></html>\n"
  )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  def line(cells: Sequence[str], tag: str) -> str:
    inner = "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells)
    return f"<tr>{inner}</tr>"

  body = "".join(line(row, "td") for row in rows)
  return f'<div class="wide"><table>{line(head, "th")}{body}</table></div>'


_LABEL, _WIDTH, _ROW = 220, 640, 28


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
  return (
    f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img"'
    f' aria-label="{html.escape(label, quote=True)}">{"".join(parts)}</svg>'
  )


def outcome_figure(question: dict[str, Any]) -> str:
  """Stacked bars of wins, ties and losses of each pair, as SVG."""
  parts, width = [], _WIDTH - _LABEL - 10
  for row, pair in enumerate(question["pairs"]):
    y, x = row * _ROW + 4, float(_LABEL)
    name = html.escape(f"{pair['first']} against {pair['second']}")
    parts.append(f'<text x="0" y="{y + 14}">{name}</text>')
    total = pair["win"] + pair["tie"] + pair["loss"]
    for kind in ("win", "tie", "loss"):
      share = pair[kind] / total
      parts.append(
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" height="20"'
        f' width="{share * width:.1f}"/>'
      )
      if share > 0.13:
        parts.append(
          f'<text x="{x + 4:.1f}" y="{y + 14}">{share:.0%} {kind}</text>'
        )
      x += share * width
  return _svg(len(question["pairs"]) * _ROW + 4, "Wins, ties, losses", parts)


def strength_figure(question: dict[str, Any]) -> str:
  """Forest plot of Elo with two-way intervals, as SVG."""
  ranked = [each for each in _ranked(question) if each[1]["votes"]]
  values = [v for _, s in ranked for v in s["elo"] if v is not None]
  low, high = min([*values, 900.0]), max([*values, 1100.0])
  scale = (_WIDTH - _LABEL - 40) / (high - low)

  def place(value: float) -> float:
    return _LABEL + 20 + (value - low) * scale

  height = len(ranked) * _ROW
  middle = place(1000)
  parts = [
    f'<line class="axis" x1="{middle:.1f}" x2="{middle:.1f}" y1="0"'
    f' y2="{height}"/>'
  ]
  for row, (name, found) in enumerate(ranked):
    y, (value, *ends) = row * _ROW + 14, found["elo"]
    label = html.escape(f"{name}  {value:.0f}")
    parts.append(f'<text x="0" y="{y + 4}">{label}</text>')
    if None not in ends:
      parts.append(
        f'<line class="mark" x1="{place(ends[0]):.1f}"'
        f' x2="{place(ends[1]):.1f}" y1="{y}" y2="{y}"/>'
      )
    parts.append(
      f'<circle class="mark" cx="{place(value):.1f}" cy="{y}" r="5"/>'
    )
  for value in (low, 1000, high):
    parts.append(
      f'<text x="{place(value):.1f}" y="{height + 14}" text-anchor="middle">'
      f"{value:.0f}</text>"
    )
  return _svg(height + 20, "Elo with 95 % intervals", parts)
