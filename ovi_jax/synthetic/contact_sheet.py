"""Clips on paper: rows of frames, the prompt above, the sound's wave below.

  python -m ovi_jax.synthetic.contact_sheet --clips=DIR --out=FILE.png

A row shows as many moments as `--frames`, evenly over the clip; the wave below
runs over the same time.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import app
from absl import flags
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from ovi_jax import cli
from ovi_jax import files
from ovi_jax.media import mp4
from ovi_jax.sampling import outputs

TEXT_HEIGHT, WAVE_HEIGHT, GAP = 18, 40, 10  # pixels
_INK, _WAVE, _PAPER = (30, 30, 30), (30, 70, 170), (255, 255, 255)


def row(
  frames_THWC: np.ndarray,
  wave: np.ndarray | None,
  title: str,
  moments: int,
  scale: int,
) -> Image.Image:
  """One clip.

  Args:
    frames_THWC: uint8.
    wave: samples in [-1, 1]; `None` for a silent clip.
    title: stands above.
    moments: frames that are shown.
    scale: pixels of a pixel.
  """
  chosen = np.linspace(0, len(frames_THWC) - 1, moments).round().astype(int)
  strip = np.concatenate(list(frames_THWC[chosen]), axis=1)
  picture = Image.fromarray(strip)
  width, height = scale * picture.width, scale * picture.height
  picture = picture.resize((width, height), Image.Resampling.NEAREST)
  above = TEXT_HEIGHT
  whole = Image.new("RGB", (width, above + height + WAVE_HEIGHT + GAP), _PAPER)
  whole.paste(picture, (0, above))
  draw = ImageDraw.Draw(whole)
  draw.text((2, 2), title, fill=_INK, font=ImageFont.load_default(13))
  middle = above + height + WAVE_HEIGHT // 2
  draw.line((0, middle, width, middle), fill=_WAVE)
  if wave is not None and len(wave) >= width:
    parts = np.array_split(np.abs(wave), width)
    for x, part in enumerate(parts):
      tall = min(1.0, float(part.max())) * (WAVE_HEIGHT // 2 - 1)
      draw.line((x, middle - tall, x, middle + tall), fill=_WAVE)
  return whole


def sheet(rows: Sequence[Image.Image]) -> Image.Image:
  """Rows, one below the other."""
  width = max(each.width for each in rows)
  whole = Image.new("RGB", (width, sum(each.height for each in rows)), _PAPER)
  top = 0
  for each in rows:
    whole.paste(each, (0, top))
    top += each.height
  return whole


def of_folder(
  folder: pathlib.Path, moments: int = 12, scale: int = 1
) -> Image.Image:
  """A sheet of all clips of a folder, by name.

  Raises:
    ValueError: there are none, or one lacks its recipe.
  """
  paths = sorted(folder.glob("*.mp4"))
  if not paths:
    raise ValueError(f"{folder} has no *.mp4; make some with sample.py")
  rows = []
  for path in paths:
    title = outputs.prompt_of(path)
    frames_THWC, _, wave, _ = mp4.read(path)
    rows.append(row(frames_THWC, wave, title, moments, scale))
  return sheet(rows)


FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    cli.require_flags(FLAGS, clips="DIR", out="FILE.png")
    made = of_folder(pathlib.Path(FLAGS.clips), FLAGS.frames, FLAGS.scale)
    with files.atomic_path(pathlib.Path(FLAGS.out)) as temporary:
      made.save(temporary, "PNG")
    print(f"wrote {FLAGS.out}")
  except (OSError, ValueError) as error:
    sys.exit(f"sheet: {error}")


if __name__ == "__main__":
  flags.DEFINE_string("clips", "", "Directory of clips with their recipes.")
  flags.DEFINE_string("out", "", "PNG to write.")
  flags.DEFINE_integer("frames", 12, "Moments of each clip.", lower_bound=1)
  flags.DEFINE_integer("scale", 1, "Pixels of a pixel.", lower_bound=1)
  app.run(main, flags_parser=cli.parse_flags)
