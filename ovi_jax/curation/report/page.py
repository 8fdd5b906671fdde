"""Builds a self-contained HTML page."""

import base64
import html
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2em auto;
  max-width: 62em; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2.2em; font-size: 1.25em;
  border-bottom: 1px solid #ddd; } h3 { font-size: 1em; margin-bottom: 0.3em; }
table { border-collapse: collapse; } td, th { padding: 0.2em 0.8em 0.2em 0;
  text-align: left; vertical-align: top; border-bottom: 1px solid #eee; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { display: inline-block; margin: 0.4em 0.8em 0.6em 0; }
figcaption, .small { font-size: 0.8em; color: #555; overflow-wrap: anywhere;
  max-width: 34em; }
pre { font-size: 0.75em; background: #f6f6f6; padding: 0.6em; overflow: auto;
  max-height: 14em; } img { max-width: 100%; }
.bad { color: #a33; }
"""


def page(title: str, parts: Sequence[str]) -> str:
  """The complete page.

  Args:
    title: plain text.
    parts: parts of the body, as HTML.
  """
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f"<title>{text(title)}</title><style>{_STYLE}</style>"
    + "\n".join(parts)
    + "</html>\n"
  )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """A table; numbers are right-aligned."""

  def cells(row: Sequence[Any], tag: str) -> Iterator[str]:
    for value in row:
      number = isinstance(value, int) and not isinstance(value, bool)
      shown = f"{value:,}" if number else text(str(value))
      yield f"<{tag}{' class=n' if number else ''}>{shown}</{tag}>"

  lines = ["".join(cells(head, "th")), *("".join(cells(r, "td")) for r in rows)]
  return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def image(value: bytes | None, kind: str = "png") -> str:
  """An embedded image."""
  if value is None:
    return "<p>None.</p>"
  return (
    f'<img src="data:image/{kind};base64,{base64.b64encode(value).decode()}">'
  )


def text(value: str) -> str:
  """Escape text; file names may contain any bytes."""
  return html.escape(value.encode(errors="backslashreplace").decode())
