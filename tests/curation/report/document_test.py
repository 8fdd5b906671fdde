"""The report shows the numbers in the files, with passed and rejected clips."""

import base64
import io
import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from ovi_jax.curation.engine import settings
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.report import statistics
from tests.lib.curation import harness

pytest.importorskip("matplotlib", reason="pip install 'ovi_jax[curate]' has it")
from ovi_jax.curation.report import document


@pytest.fixture(scope="module")
def chosen(tmp_path_factory) -> settings.Settings:
  """A run with all there is: refused, failed, dropped, kept."""
  folder = tmp_path_factory.mktemp("run")
  inputs = harness.write_inputs(folder / "in")
  (inputs / "<b>&.txt").write_text("raise <i>it</i>\none fine\n")
  made = harness.chosen(folder / "out", [inputs], max_failure_rate=1.0)
  harness.finish(made)
  return made


@pytest.fixture(scope="module")
def page(chosen) -> str:
  return pathlib.Path(
    document.write(chosen, ["end, shard 3: <none>"])
  ).read_text()


def pictures(page: str) -> list[Image.Image]:
  found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
  return [Image.open(io.BytesIO(base64.b64decode(value))) for value in found]


def test_numbers_equal_those_in_the_files(chosen):
  stages = {stage.name: stage for stage in statistics.collect(chosen, 3)}
  measure = stages["measure"]
  assert stages["inputs"].passed == 6 and stages["split"].passed == 27
  assert (measure.passed, measure.rejected, measure.failed) == (21, 5, 1)
  assert measure.seconds == 21 and measure.shards == 3
  short, failed = (
    measure.reasons["too short"],
    measure.reasons["failed: ValueError"],
  )
  assert (short.count, short.failed, short.scores) == (5, False, (1.0,) * 5)
  assert (failed.count, failed.failed, failed.scores) == (1, True, ())
  assert len(short.examples) == statistics.MAX_REJECT_EXAMPLES
  # A score is shown for the stage that measured it, not for later ones.
  assert len(measure.scores["length"]) == 21 and not stages["reverse"].scores
  kinds = stages["balance"].facts["measure", "kind"]
  lines = [
    line.facts["measure"]["kind"]
    for shard in range(3)
    for line in shard_store.read_clips(chosen.shard_files(3, shard))
  ]
  assert kinds == {kind: lines.count(kind) for kind in ("two", "one", "three")}
  assert list(kinds.values()) == sorted(kinds.values(), reverse=True)


def test_the_page_has_all_sections(chosen, page):
  text = re.sub(r"<[^>]+>", " ", page)
  assert "6 files" in re.sub(r"\s+", " ", text)
  for words in (
    "measure: too short (5)",
    "measure: failed: ValueError (1)",
    "balance: over its share",
    "&quot;lines&quot;: 1",
    "measure.kind",
    "ValueError: what is",
  ):
    assert words in text, words
  for stage in chosen.stages:
    assert stage.key in text
  # Names and errors are escaped.
  assert "&lt;b&gt;&amp;.txt" in page and "<b>&.txt" not in page
  assert "&lt;i&gt;it&lt;/i&gt;" in page and "<i>" not in page
  assert "end, shard 3: &lt;none&gt;" in page
  assert not re.search(r'(src|href)="(?!data:)', page)


def test_all_figures_are_drawn(page):
  figures = pictures(page)
  assert len(figures) == 4  # stages, reasons, scores, shares
  for figure in figures:
    pixels_HWC = np.asarray(figure.convert("RGB"))
    assert pixels_HWC.shape[1] == 900 and pixels_HWC.std() > 10


def test_scores_are_drawn_with_their_threshold(chosen, monkeypatch):
  drawn = []
  monkeypatch.setattr(document.figures, "scores", lambda p: drawn.extend(p))
  stages = statistics.collect(chosen, 3)
  document._scores(chosen, stages)
  ((title, kept, dropped, bounds),) = drawn
  assert title == "measure: length" and bounds == {"too short": 3.0}
  assert len(kept) == 21 and dropped == {"too short": (1.0,) * 5}


def test_a_complete_run_is_reported_as_complete(chosen):
  page = pathlib.Path(document.write(chosen)).read_text()
  assert "incomplete" not in page


def test_the_same_run_gives_the_same_report(chosen, page):
  again = document.write(chosen, ["end, shard 3: <none>"])
  assert pathlib.Path(again).read_text() == page


def test_a_run_that_has_just_started_has_a_report(tmp_path):
  inputs = harness.write_inputs(tmp_path / "in", 1)
  made = harness.chosen(tmp_path / "out", [inputs])
  page = pathlib.Path(document.write(made)).read_text()
  assert "The run is incomplete" not in page
  assert (
    "Stages with incomplete shards: split, measure, reverse, balance, write"
    in page
  )
  assert (
    json.loads((tmp_path / "out" / "inputs.json").read_text())["num_files"] == 1
  )
