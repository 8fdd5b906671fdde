"""The moving picture of the studio's page."""

import io
from typing import Any

from PIL import Image

from benchmarks import studio_page


class Page:
  """A page that is one colour after another."""

  def __init__(self, colours):
    self._colours = iter(colours)

  def picture(self) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 45), next(self._colours)).save(buffer, "PNG")
    return buffer.getvalue()


def test_equal_frames_are_one_that_is_shown_for_longer(tmp_path):
  page: Any = Page(["red", "red", "blue"])
  movie = studio_page.Movie(page)
  for milliseconds in (100, 200, 400):
    movie.add(milliseconds)
  movie.save(tmp_path / "a.webp")
  found: Any = Image.open(tmp_path / "a.webp")
  assert (found.n_frames, found.size) == (2, studio_page._SIZE)
  durations = []
  for number in range(2):
    found.seek(number)
    found.load()
    durations.append(found.info["duration"])
  assert durations == [300, 400]
