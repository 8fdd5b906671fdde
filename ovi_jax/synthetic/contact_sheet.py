"""Contact sheets of clips: frames, the prompt above, the audio waveform below.

  python -m ovi_jax.synthetic.contact_sheet --clips=DIR --out=FILE.png
  python -m ovi_jax.synthetic.contact_sheet --clips=DIR --out=FILE.gif

A PNG has a row for each clip, with `--frames` frames evenly spaced over the
clip; the waveform below covers the same time. A GIF plays all clips at once,
half of their frames, with a cursor that moves along the waveforms.
"""

import functools
import pathlib
import textwrap
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from ovi_jax import cli
from ovi_jax import files
from ovi_jax import storage
from ovi_jax.media import mp4
from ovi_jax.sampling import outputs

TEXT_HEIGHT, WAVE_HEIGHT, GAP = 18, 40, 10  # pixels
_INK, _WAVE, _PAPER = (30, 30, 30), (30, 70, 170), (255, 255, 255)
_CURSOR = (200, 60, 30)
_COLUMNS, _LINES = 3, 4  # clips beside each other, lines of a title: of a GIF
_COLORS = 128


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
  picture = _scaled(strip, scale)
  (width, height), above = picture.size, TEXT_HEIGHT
  whole = Image.new("RGB", (width, above + height + WAVE_HEIGHT + GAP), _PAPER)
  whole.paste(picture, (0, above))
  draw = ImageDraw.Draw(whole)
  draw.text((2, 2), title, fill=_INK, font=ImageFont.load_default(13))
  _draw_wave(draw, wave, width, above + height)
  return whole


def _scaled(pixels_HWC: np.ndarray, scale: int) -> Image.Image:
  height, width, _ = pixels_HWC.shape
  size = scale * width, scale * height
  return Image.fromarray(pixels_HWC).resize(size, Image.Resampling.NEAREST)


def _draw_wave(
  draw: ImageDraw.ImageDraw, wave: np.ndarray | None, width: int, top: int
) -> None:
  """The waveform's envelope, `WAVE_HEIGHT` pixels tall."""
  middle = top + WAVE_HEIGHT // 2
  draw.line((0, middle, width, middle), fill=_WAVE)
  if wave is not None and len(wave) >= width:
    parts = np.array_split(np.abs(wave), width)
    for x, part in enumerate(parts):
      tall = min(1.0, float(part.max())) * (WAVE_HEIGHT // 2 - 1)
      draw.line((x, middle - tall, x, middle + tall), fill=_WAVE)


def _tile(
  frames_THWC: np.ndarray, wave: np.ndarray | None, title: str, scale: int
) -> Iterator[Image.Image]:
  """The images of one clip in a GIF."""
  _, height, width, _ = frames_THWC.shape
  width, height = scale * width, scale * height
  above = _LINES * TEXT_HEIGHT - GAP
  still = Image.new("RGB", (width + GAP, above + height + WAVE_HEIGHT), _PAPER)
  draw = ImageDraw.Draw(still)
  lines = textwrap.wrap(title, max(1, width // 6), max_lines=_LINES)
  font = ImageFont.load_default(11)
  draw.multiline_text((2, 2), "\n".join(lines), fill=_INK, font=font)
  _draw_wave(draw, wave, width, above + height)
  for time, frame_HWC in enumerate(frames_THWC[::2]):
    image = still.copy()
    image.paste(_scaled(frame_HWC, scale), (0, above))
    x = 2 * time * width // len(frames_THWC)
    bottom = above + height
    ImageDraw.Draw(image).line(
      (x, bottom, x, bottom + WAVE_HEIGHT), fill=_CURSOR
    )
    yield image


def animation(folder: pathlib.Path, scale: int = 1) -> list[Image.Image]:
  """Images of a GIF of all clips of a folder, by name.

  Raises:
    ValueError: there are none, or one lacks its recipe.
  """
  tiles = [_tile(*clip, scale) for clip in _clips(folder)]
  images = []
  for moment in zip(*tiles, strict=False):
    width, height = (max(sizes) for sizes in zip(*(t.size for t in moment)))
    rows = -(-len(moment) // _COLUMNS)
    columns = min(_COLUMNS, len(moment))
    whole = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for number, tile in enumerate(moment):
      row, column = divmod(number, _COLUMNS)
      whole.paste(tile, (column * width, row * height))
    images.append(whole)
  # One palette for all images: colours do not flicker.
  palette = sheet(images[::10]).quantize(_COLORS, kmeans=1)
  return [
    each.quantize(palette=palette, dither=Image.Dither.NONE) for each in images
  ]


def sheet(rows: Sequence[Image.Image]) -> Image.Image:
  """Rows, one below the other."""
  width = max(each.width for each in rows)
  whole = Image.new("RGB", (width, sum(each.height for each in rows)), _PAPER)
  top = 0
  for each in rows:
    whole.paste(each, (0, top))
    top += each.height
  return whole


def _clips(
  folder: pathlib.Path,
) -> Iterator[tuple[np.ndarray, np.ndarray | None, str]]:
  """Frames, wave and prompt of the clips of a folder, by name."""
  paths = sorted(folder.glob("*.mp4"))
  if not paths:
    raise ValueError(f"{folder} has no *.mp4; make some with sample.py")
  for path in paths:
    title = outputs.prompt_of(path)
    frames_THWC, _, wave, _ = mp4.read(path)
    yield frames_THWC, wave, title


def of_folder(
  folder: pathlib.Path, moments: int = 12, scale: int = 1
) -> Image.Image:
  """A sheet of all clips of a folder, by name.

  Raises:
    ValueError: there are none, or one lacks its recipe.
  """
  return sheet([row(*clip, moments, scale) for clip in _clips(folder)])


FLAGS = flags.FLAGS


def main() -> None:
  cli.require_flags(FLAGS, clips="DIR", out="FILE.png")
  clips, out = storage.local(FLAGS.clips), storage.locate(FLAGS.out)
  if out.suffix.lower() == ".gif":
    made, *others = animation(clips, FLAGS.scale)
    options = {"append_images": others, "duration": 80, "loop": 0}
    save = functools.partial(made.save, format="GIF", save_all=True)
  else:
    made, options = of_folder(clips, FLAGS.frames, FLAGS.scale), {}
    save = functools.partial(made.save, format="PNG")
  with files.atomic_path(out) as temporary:
    save(temporary, **options)
  print(f"wrote {FLAGS.out}")


if __name__ == "__main__":
  flags.DEFINE_string("clips", "", "Directory of clips with their JSON files.")
  flags.DEFINE_string("out", "", "PNG or GIF to write.")
  flags.DEFINE_integer("frames", 12, "PNG: frames per clip.", lower_bound=1)
  flags.DEFINE_integer("scale", 1, "Magnification.", lower_bound=1)
  cli.run(main)
