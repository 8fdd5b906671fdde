"""Shot detectors, on videos with known cuts."""

import numpy as np
import pytest

from ovi_jax.curation.media import shot_detectors
from tests.lib import media_files

ROWS, COLUMNS = 27, 48


def frames(counts):
  return [
    frame
    for seed, count in enumerate(counts)
    for frame in media_files.moving(count, seed, ROWS, COLUMNS)
  ]


def test_pyscenedetect_finds_every_cut():
  pytest.importorskip("scenedetect", reason="pip install 'ovi_jax[curate]'")
  detect = shot_detectors.pyscenedetect(3.0, 15.0)
  counts = (20, 9, 4, 31, 12)
  wanted = np.cumsum(counts)[:-1].tolist()
  # One detector serves many films.
  for _ in range(2):
    found = list(detect(iter(frames(counts))))
    assert [cut.first for cut in found] == wanted
    assert [cut.last for cut in found] == [first - 1 for first in wanted]
  assert not list(detect(iter(frames([40]))))


def judged(values):
  """A fake network: the score of a frame is looked up by its number."""

  def judge(frames_BTHWC):
    numbers = frames_BTHWC[:, :, 0, 0, 0].astype(int)
    return np.asarray(values)[numbers]

  return judge


@pytest.mark.parametrize("count", [1, 24, 25, 49, 50, 51, 100, 149, 200, 251])
def test_each_frame_is_scored_once_with_context(count):
  values = np.random.default_rng(count).random(256)
  shown = [np.full((ROWS, COLUMNS, 3), n, np.uint8) for n in range(count)]
  windows = []

  def judge(frames_BTHWC):
    assert frames_BTHWC.shape[1:] == (100, ROWS, COLUMNS, 3)
    windows.extend(frames_BTHWC[:, :, 0, 0, 0].astype(int).tolist())
    return judged(values)(frames_BTHWC)

  found = list(shot_detectors._probabilities(judge, iter(shown)))
  assert found == values[:count].tolist()
  # Before the first frame stand copies of it, behind the last one too.
  for start, window in enumerate(windows[: -(-count // 50)]):
    wanted = np.clip(np.arange(100) + 50 * start - 25, 0, count - 1)
    assert window == wanted.tolist()


@pytest.mark.parametrize(
  "last, wanted",
  [
    ([10], [(10, 11)]),
    ([10, 40], [(10, 11), (40, 41)]),
    ([20, 21, 22, 23], [(19, 24)]),
    ([0], [(0, 1)]),
    ([59], []),
    ([58, 59], [(57, 60)]),
    ([], []),
  ],
)
def test_last_frames_of_shots_become_cuts(monkeypatch, last, wanted):
  values = np.isin(np.arange(60), last).astype(float)
  monkeypatch.setattr(
    shot_detectors, "_network", lambda weights: judged(values)
  )
  shown = [np.full((ROWS, COLUMNS, 3), n, np.uint8) for n in range(60)]
  found = list(shot_detectors.transnetv2("any", 0.5)(iter(shown)))
  assert [tuple(cut) for cut in found] == wanted
