"""The contact sheet: frames or waves of imported clips with their captions."""

import functools
import importlib.util
import io
import pathlib
import textwrap
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from ovi_jax import untrusted
from ovi_jax.media import images

CELLS = 48  # most clips on a sheet
_COLUMNS = 3
_TEXT = 12  # size of letters
_LINE = 15  # pixels between lines
_LINES = 4  # of a caption
_GAP = 10
_FONTS = (
  "NotoSansCJK-Regular.ttc",
  "Arial Unicode.ttf",
  "DejaVuSans.ttf",
  "arial.ttf",
)


class Cell(NamedTuple):
  """A clip on the sheet.

  Attributes:
    picture: PNG.
    name: of its file.
    title: split, length and the like.
    caption: the first one.
  """

  picture: bytes
  name: str
  title: str
  caption: str


def spread(count: int) -> list[int]:
  """Indices of the clips that are shown: all, or evenly spaced ones."""
  if count <= CELLS:
    return list(range(count))
  return [round(n * (count - 1) / (CELLS - 1)) for n in range(CELLS)]


def draw(cells: Sequence[Cell]) -> Image.Image:
  """Lay clips out in rows; expects at least one."""
  pictures = [
    Image.fromarray(images.read_image(io.BytesIO(cell.picture))[0])
    for cell in cells
  ]
  width = max(240, *(picture.width for picture in pictures))
  height = max(picture.height for picture in pictures)
  columns = min(_COLUMNS, len(cells))
  step = width + _GAP, height + (_LINES + 2) * _LINE + 2 * _GAP
  rows = -(-len(cells) // columns)
  size = columns * step[0] + _GAP, rows * step[1] + _GAP
  sheet = Image.new("RGB", size, "white")
  pen = ImageDraw.Draw(sheet)
  font = _font()
  for number, (cell, picture) in enumerate(zip(cells, pictures)):
    row, column = divmod(number, columns)
    left, top = _GAP + column * step[0], _GAP + row * step[1]
    sheet.paste(picture, (left, top))
    top += height + 3
    titles = [untrusted.printable(line) for line in (cell.name, cell.title)]
    for line in [
      *(next(_fitted([t], width, font, 1)) for t in titles),
      *_wrapped(cell, width, font),
    ]:
      pen.text((left, top), line, fill="black", font=font)
      top += _LINE
  return sheet


@functools.cache
def _font() -> Any:
  """The first font at hand with many scripts; Pillow's has Latin alone."""
  for name in _FONTS:
    try:
      return ImageFont.truetype(name, _TEXT)
    except OSError:
      continue
  found = importlib.util.find_spec("matplotlib")
  if found is not None and found.origin:
    folder = pathlib.Path(found.origin).parent / "mpl-data/fonts/ttf"
    if (folder / "DejaVuSans.ttf").is_file():
      return ImageFont.truetype(folder / "DejaVuSans.ttf", _TEXT)
  return ImageFont.load_default(_TEXT)


def _wrapped(cell: Cell, width: int, font: Any) -> list[str]:
  """The caption in lines, its end cut off where there are too many."""
  each = width / max(1.0, font.getlength("n"))
  lines = textwrap.wrap(untrusted.printable(cell.caption, 1000), int(each))
  return list(_fitted(lines, width, font, _LINES))


def _fitted(
  lines: Sequence[str], width: int, font: Any, most: int
) -> Iterator[str]:
  """At most so many lines, each cut to the width."""
  for number, line in enumerate(lines[:most]):
    more = number == most - 1 and len(lines) > most
    text = line + ("…" if more else "")
    while len(line) > 1 and font.getlength(text) > width:
      line = line[:-1]
      text = line + "…"
    yield text
