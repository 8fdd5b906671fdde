"""The report: Markdown, JSON and one HTML page, with the same content.

A value stands with its 95 % interval. A score that does not put distorted
versions of true clips below them is marked with ‡ and should not be quoted for
these clips.
"""

import dataclasses
import html
import io
import json
import math
import os
import pathlib
import urllib.parse
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ovi_jax import files
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.curation.report import page
from ovi_jax.evaluation import clips as clips_lib
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation import run
from ovi_jax.media import images

MARKDOWN, JSON, HTML = "report.md", "report.json", "report.html"
UNORDERED = "‡"
_NONE = "-"
_FRAMES, _FRAME_WIDTH, _QUALITY = 5, 160, 80
_BETTER = {protocols.HIGHER: "↑", protocols.LOWER: "↓", protocols.NEUTRAL: ""}


def write(
  folder: storage.AnyPath, result: run.Result, examples: int = 4
) -> None:
  """Write all three files.

  Args:
    folder: made if absent.
    result: of the run.
    examples: clips per system that the page shows.

  Raises:
    OSError: the folder cannot be written, or the disk is full.
  """
  contents = {
    MARKDOWN: markdown(result),
    JSON: json.dumps(plain(result), indent=1, allow_nan=False) + "\n",
    HTML: html_page(result, folder, examples),
  }
  for name, text in contents.items():
    with files.atomic_path(folder / name) as temporary:
      temporary.write_text(text, "utf-8")


def _shown(score: protocols.Score, value: float) -> str:
  """A number in the score's unit."""
  if not math.isfinite(value):
    return _NONE
  return f"{value * score.scale:.{score.digits}f}"


def cell_text(score: protocols.Score, cell: run.Cell) -> str:
  """`value [low, high]`, or that it is not measured."""
  if cell.missing:
    return "not measured"
  value, low, high = (_shown(score, number) for number in cell.interval)
  if not math.isfinite(cell.interval.low):
    return value
  return f"{value} [{low}, {high}]"


def score_name(line: run.Line) -> str:
  """`protocol: name, unit` with its direction and mark."""
  score = line.score
  unit = f", {score.unit}" if score.unit else ""
  mark = UNORDERED if line.check.problems else ""
  arrow = _BETTER[score.better]
  return f"{line.protocol}: {score.name}{unit} {arrow}{mark}".rstrip()


def notes(line: run.Line) -> list[str]:
  """What the reader of a line has to know."""
  found = [line.score.note] if line.score.note else []
  counts = {
    name: f"{cell.clips} of {cell.of}"
    for name, cell in line.cells.items()
    if not cell.missing and cell.clips < cell.of
  }
  found += [f"{name}: {count} clips" for name, count in counts.items()]
  reasons: dict[str, list[str]] = {}
  for name, cell in line.cells.items():
    for text in (cell.missing, *cell.warnings):
      if text:
        reasons.setdefault(text, []).append(name)
  for text, names in reasons.items():
    everywhere = len(names) == len(line.cells)
    found.append(text if everywhere else f"{', '.join(names)}: {text}")
  found += [f"{UNORDERED} {problem}" for problem in line.check.problems]
  measured = any(not cell.missing for cell in line.cells.values())
  if measured and line.score.orders and line.check.skipped:
    found.append(f"not checked on distorted clips: {line.check.skipped}")
  return found


def markdown(result: run.Result) -> str:
  """The report as Markdown."""
  return "\n".join([*_markdown(result), ""])


def _markdown(result: run.Result) -> Iterator[str]:
  yield "# Evaluation\n"
  yield from _rows(("system", "clips", "without sound"), _counts(result))
  yield ""
  for name, lacks in result.left_out.items():
    yield f"{_cell(name)} lacks {len(lacks)} clips: {_listed(lacks)}.\n"
  for name, unknown in result.unmatched.items():
    yield f"{_cell(_unmatched(name, unknown))}\n"
  yield "## Scores\n"
  yield from _rows(
    ("score", *result.systems),
    [
      (score_name(line), *(cell_text(line.score, c) for c in _cells(line)))
      for line in result.lines
    ],
  )
  yield f"\n{LEGEND}\n"
  for line in result.lines:
    if found := notes(line):
      yield f"- {_cell(score_name(line))}: {_cell('; '.join(found))}"
  if changes := _changes(result):
    yield "\n## Differences from the first system\n"
    yield from _rows(
      ("score", *changes[0][1]), [(n, *c) for n, _, c in changes]
    )
  yield f"\n## Distorted versions of clips of {_cell(result.base)}\n"
  yield from _rows(
    ("score", *protocols.SANITY, "order"),
    _check_rows(result),
  )
  yield "\n## Definitions\n"
  for protocol in result.protocols:
    yield f"- {_cell(protocol.name)}: {_cell(protocol.source)}"
  for extractor in result.extractors:
    yield f"- `{json.dumps(extractor, sort_keys=True)}`"


LEGEND = (
  "Brackets: 95 % interval over clips. ↑ higher is better, ↓ lower is better."
  f" {UNORDERED}: the score does not put distorted clips below the true ones;"
  " do not quote it for these clips."
)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
  """Lines of a table."""
  yield "| " + " | ".join(map(_cell, head)) + " |"
  yield "|---" * len(head) + "|"
  for row in rows:
    yield "| " + " | ".join(map(_cell, row)) + " |"


def _cell(text: str) -> str:
  """Text within a table; names of files may hold anything."""
  return untrusted.printable(str(text), 2000).replace("|", "\\|")


def _listed(names: Sequence[str]) -> str:
  shown = [untrusted.printable(name) for name in names]
  return ", ".join(untrusted.shortened(shown))


def _unmatched(name: str, unknown: Sequence[str]) -> str:
  return (
    f"{name}: imported features of {len(unknown)} names are of no clip:"
    f" {_listed(unknown)}."
  )


def _counts(result: run.Result) -> list[tuple[str, str, str]]:
  return [
    (name, str(len(clips)), str(sum(not clip.has_sound for clip in clips)))
    for name, clips in result.systems.items()
  ]


def _cells(line: run.Line) -> list[run.Cell]:
  return list(line.cells.values())


def _changes(
  result: run.Result,
) -> list[tuple[str, list[str], list[str]]]:
  """Name, systems and differences of the scores that have any."""
  systems = [name for name in result.systems if name != run.REFERENCE][1:]
  found = []
  for line in result.lines:
    texts = []
    for name in systems:
      change = line.cells[name].change
      texts.append(
        _NONE
        if change is None
        else cell_text(line.score, run.Cell(interval=change))
      )
    if any(text != _NONE for text in texts):
      found.append((score_name(line), systems, texts))
  return found


def _check_rows(result: run.Result) -> list[tuple[str, ...]]:
  """Values on distorted clips of the scores that order them."""
  rows = []
  for line in result.lines:
    if line.check.skipped:
      continue
    values = line.check.values
    verdict = "as expected"
    if line.check.problems:
      verdict = f"{UNORDERED} " + "; ".join(line.check.problems)
    shown = [_shown(line.score, values[row]) for row in protocols.SANITY]
    rows.append((score_name(line), *shown, verdict))
  return rows


def plain(result: run.Result) -> Any:
  """The report for JSON; NaN becomes null."""
  return {
    "systems": {
      name: [{"name": clip.name, "has_sound": clip.has_sound} for clip in clips]
      for name, clips in result.systems.items()
    },
    "left_out": {name: list(lacks) for name, lacks in result.left_out.items()},
    "unmatched_features": {n: list(u) for n, u in result.unmatched.items()},
    "distorted_clips_of": result.base,
    "scores": [_plain_line(line) for line in result.lines],
    "protocols": [_valid(dataclasses.asdict(p)) for p in result.protocols],
    "extractors": [_valid(dict(each)) for each in result.extractors],
  }


def _plain_line(line: run.Line) -> Any:
  return {
    "protocol": line.protocol,
    "name": line.score.name,
    "better": line.score.better,
    "unit": line.score.unit,
    "systems": {
      name: _valid(
        {
          "value": cell.interval.value,
          "low": cell.interval.low,
          "high": cell.interval.high,
          "clips": cell.clips,
          "of": cell.of,
          "not_measured": cell.missing,
          "warnings": list(cell.warnings),
          "change": cell.change and cell.change._asdict(),
        }
      )
      for name, cell in line.cells.items()
    },
    "check": _valid(dataclasses.asdict(line.check)),
  }


def _valid(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _valid(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_valid(each) for each in value]
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def html_page(
  result: run.Result, folder: storage.AnyPath, examples: int
) -> str:
  """The report as a page that needs no other files but the clips it plays."""
  head = ("score", *result.systems)
  scores = [
    (score_name(line), *(cell_text(line.score, c) for c in _cells(line)))
    for line in result.lines
  ]
  parts = [
    "<h1>Evaluation</h1>",
    page.table(("system", "clips", "without sound"), _counts(result)),
    *(
      f'<p class="bad">{page.text(name)} lacks {len(lacks)} clips:'
      f" {page.text(_listed(lacks))}.</p>"
      for name, lacks in result.left_out.items()
    ),
    *(
      f'<p class="bad">{page.text(_unmatched(name, unknown))}</p>'
      for name, unknown in result.unmatched.items()
    ),
    "<h2>Scores</h2>",
    page.table(head, scores),
    f"<p>{page.text(LEGEND)}</p>",
    *_notes_html(result),
    "<h2>Intervals</h2>",
    *(plot(line) for line in result.lines),
  ]
  if changes := _changes(result):
    parts += [
      "<h2>Differences from the first system</h2>",
      page.table(("score", *changes[0][1]), [(n, *c) for n, _, c in changes]),
    ]
  parts += [
    f"<h2>Distorted versions of clips of {page.text(result.base)}</h2>",
    page.table(
      ("score", *protocols.SANITY, "order"),
      _check_rows(result),
    ),
    "<h2>Clips</h2>",
    *_examples(result, folder, examples),
  ]
  return page.page("Evaluation", parts)


def _notes_html(result: run.Result) -> Iterator[str]:
  lines = [
    f"<li>{page.text(score_name(line))}: {page.text('; '.join(found))}</li>"
    for line in result.lines
    if (found := notes(line))
  ]
  yield f'<ul class="small">{"".join(lines)}</ul>'


def plot(line: run.Line) -> str:
  """Intervals of all systems, as SVG; "" if none is measured."""
  cells = {n: c for n, c in line.cells.items() if not c.missing}
  ends = [
    x * line.score.scale
    for cell in cells.values()
    for x in cell.interval
    if math.isfinite(x)
  ]
  if not ends:
    return ""
  low, high = min(ends), max(ends)
  room = (high - low or abs(high) or 1.0) * 0.08
  low, high, left, width, row = low - room, high + room, 170, 420, 20
  height = row * len(cells) + 24

  def place(value: float) -> float:
    return left + width * (value * line.score.scale - low) / (high - low)

  marks = []
  for number, (name, cell) in enumerate(cells.items()):
    y = row * number + 12
    label = html.escape(untrusted.printable(name, 24))
    value, start, end = cell.interval
    marks.append(
      f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{label}</text>'
      f'<circle cx="{place(value):.1f}" cy="{y}" r="4" fill="#2a6f97"/>'
    )
    if math.isfinite(start):
      marks.append(
        f'<line x1="{place(start):.1f}" x2="{place(end):.1f}" y1="{y}"'
        f' y2="{y}" stroke="#2a6f97" stroke-width="2"/>'
      )
  digits = line.score.digits
  axis = (
    f'<line x1="{left}" x2="{left + width}" y1="{height - 20}"'
    f' y2="{height - 20}" stroke="#999"/>'
    f'<text x="{left}" y="{height - 6}">{low:.{digits}f}</text>'
    f'<text x="{left + width}" y="{height - 6}" text-anchor="end">'
    f"{high:.{digits}f}</text>"
  )
  return (
    f"<figure><figcaption>{page.text(score_name(line))}</figcaption>"
    f'<svg width="{left + width + 10}" height="{height}" font-size="12"'
    f' role="img">{"".join(marks)}{axis}</svg></figure>'
  )


def _examples(
  result: run.Result, folder: storage.AnyPath, count: int
) -> Iterator[str]:
  """The first clips of the systems, next to each other."""
  first = next(n for n in result.systems if n != run.REFERENCE)
  for clip in result.systems[first][:count]:
    yield f"<h3>{page.text(clip.name)}</h3>"
    if clip.text:
      yield f'<p class="small">{page.text(clip.text)}</p>'
    for name, clips in result.systems.items():
      found = next((c for c in clips if c.name == clip.name), None)
      if found is not None:
        yield _figure(name, found, folder)


def _figure(name: str, clip: clips_lib.Clip, folder: storage.AnyPath) -> str:
  """Some frames, the waveform and a player of a clip."""
  player = ""
  if not storage.is_remote(folder):
    path = os.path.relpath(clip.path, pathlib.Path(folder))
    address = html.escape(urllib.parse.quote(path, errors="surrogateescape"))
    tag = "video" if clip.has_picture else "audio"
    player = (
      f'<br><{tag} controls preload="none" width="480" src="{address}"></{tag}>'
    )
  return (
    f"<figure><figcaption>{page.text(name)}</figcaption>"
    f"{page.image(_thumbnail(clip), 'jpeg')}{player}</figure>"
  )


def _thumbnail(clip: clips_lib.Clip) -> bytes:
  """Frames above the waveform, as JPEG."""
  media, parts = clips_lib.Media(clips_lib.Source(clip=clip)), []
  if clip.has_picture:
    frames_THWC = media.frames_THWC
    spread = np.linspace(0, len(frames_THWC) - 1, _FRAMES).round().astype(int)
    rows, columns = frames_THWC.shape[1:3]
    size = _FRAME_WIDTH, max(1, round(rows * _FRAME_WIDTH / columns))
    small = [
      np.asarray(Image.fromarray(frames_THWC[t]).resize(size)) for t in spread
    ]
    parts.append(images.contact_sheet(np.stack(small), _FRAMES))
  if clip.has_sound:
    width = parts[0].width if parts else _FRAME_WIDTH * _FRAMES
    parts.append(images.waveform_png(media.mono(), media.rate, width, 60))
  sheet = Image.new(
    "RGB", (max(p.width for p in parts), sum(p.height for p in parts))
  )
  top = 0
  for part in parts:
    sheet.paste(part, (0, top))
    top += part.height
  file = io.BytesIO()
  sheet.save(file, "JPEG", quality=_QUALITY)
  return file.getvalue()
