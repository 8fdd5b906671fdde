"""Detection of letterbox bars."""

import numpy as np
import pytest

from ovi_jax.curation.media import letterbox
from tests.lib import media_files

ROWS, COLUMNS = 90, 160


def film(colour=None, top=0, bottom=0, left=0, right=0):
  """A moving mosaic within bars of a colour, noisy as decoded films are."""
  frames = np.stack(media_files.moving(8, 3, ROWS, COLUMNS))
  if colour is not None:
    for part in (
      np.s_[:, :top],
      np.s_[:, ROWS - bottom :],
      np.s_[:, :, :left],
      np.s_[:, :, COLUMNS - right :],
    ):
      frames[part] = colour
  random = np.random.default_rng(0)
  noise = random.integers(-2, 3, frames.shape)
  return np.clip(frames + noise, 0, 255).astype(np.uint8)


def box(frames):
  found = letterbox.detect(frames)
  return found.top, found.left, found.height, found.width


WHOLE = (0, 0, ROWS, COLUMNS)


def test_a_full_frame_has_no_bars():
  assert box(film()) == WHOLE


@pytest.mark.parametrize("colour", [(0, 0, 0), (16, 16, 16)])
@pytest.mark.parametrize(
  "bars, wanted",
  [
    ({"top": 10, "bottom": 10}, (12, 0, 66, COLUMNS)),
    ({"left": 20, "right": 24}, (0, 22, ROWS, 112)),
    ({"top": 7}, (9, 0, 81, COLUMNS)),
    ({"top": 8, "bottom": 9, "left": 5, "right": 6}, (10, 7, 69, 145)),
  ],
)
def test_dark_bars_and_their_blurred_edges_are_cropped(colour, bars, wanted):
  assert box(film(colour, **bars)) == wanted


def test_coloured_bars_must_be_on_both_sides():
  white = (250, 250, 250)
  assert box(film(white, left=20, right=20)) == (0, 22, ROWS, 116)
  # One such bar alone may be a sky, or a wall.
  assert box(film((90, 140, 220), top=30)) == WHOLE


def test_a_dark_scene_has_no_bars():
  frames = film() // 12
  assert box(frames.astype(np.uint8)) == WHOLE


def test_a_changing_edge_is_not_a_bar():
  frames = film((0, 0, 0), top=20)
  frames[4:, :20] = 200
  assert box(frames) == WHOLE


def test_a_uniform_frame_is_not_cropped():
  assert box(np.zeros((5, ROWS, COLUMNS, 3), np.uint8)) == WHOLE


def test_a_box_crops_frames():
  frames = film()
  part = letterbox.Box(top=3, left=5, height=7, width=11)
  np.testing.assert_array_equal(part.crop(frames), frames[:, 3:10, 5:16])
