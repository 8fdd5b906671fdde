"""Folders of clips become a report; known distortions are ordered."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from ovi_jax.evaluation import clips
from ovi_jax.evaluation import imported
from ovi_jax.evaluation import lists
from ovi_jax.evaluation import protocols
from ovi_jax.evaluation import report
from ovi_jax.evaluation import run
from tests.lib import media_files

FPS, SECONDS = 24, 3
BASIC = [score.name for score in protocols.known()["basic"].scores]


def write_clip(path: pathlib.Path, seed: int, late: float = 0.0) -> None:
  """A square that jumps at random moments, each with a click."""
  random = np.random.default_rng(seed)
  jumps = 4 + np.cumsum(random.integers(5, 15, 5))
  frames, wave_A = [], np.zeros(SECONDS * media_files.RATE)
  for t in range(SECONDS * FPS):
    frame_HWC = np.full((48, 64, 3), 90, np.uint8)
    column = 4 + 9 * int((jumps <= t).sum())
    frame_HWC[12:36, column : column + 12] = 230
    frames.append(frame_HWC)
  for jump in jumps:
    at = round((jump / FPS + late) * media_files.RATE)
    length = min(1600, max(0, wave_A.size - at))
    decay = np.exp(-np.arange(length) / 400)
    wave_A[at : at + length] += random.normal(0, 0.2, length) * decay
  times = media_files.even(len(frames), FPS)
  media_files.write(path, frames, times, wave_A[None].astype(np.float32))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """True clips, the same with late sound, and a system that lacks one."""
  root = tmp_path_factory.mktemp("systems")
  for name, late in (("true", 0.0), ("late", 0.3)):
    (root / name).mkdir()
    for seed in range(3):
      write_clip(root / name / f"{seed}.mp4", seed, late)
  (root / "partial").mkdir()
  for seed in (0,):
    shutil.copy(root / "true" / f"{seed}.mp4", root / "partial")
  frames = media_files.numbered(12)
  media_files.write(root / "partial/2.mp4", frames, media_files.even(12))
  return root


@pytest.fixture(scope="module")
def result(folders):
  return run.run(
    run.Settings(
      systems={n: folders / n for n in ("late", "partial")},
      reference=folders / "true",
      cache=folders / "cache",
      draws=200,
    )
  )


def lines(result):
  return {line.score.name: line for line in result.lines}


def test_late_sound_has_worse_sync_scores_than_true_clips(result):
  found = lines(result)
  lag = found["envelope lag"].cells
  assert lag["late"].interval.value == pytest.approx(0.3, abs=0.05)
  assert lag["reference"].interval.value < 0.06
  for name in ("AV-Align", "envelope correlation"):
    cells = found[name].cells
    assert (
      cells["late"].interval.value < cells["reference"].interval.value - 0.3
    )
  change = lag["partial"].change
  assert change is not None and change.value == pytest.approx(-0.3, abs=0.05)


def test_sync_scores_order_the_distorted_clips(result):
  for name in ("AV-Align", "envelope lag", "envelope correlation", "flicker"):
    check = lines(result)[name].check
    assert not check.problems and not check.skipped, (name, check)
  delays = lines(result)["envelope lag"].check.values
  assert delays["delayed 0.5 s"] == pytest.approx(0.5, abs=0.06)
  assert lines(result)["loudness"].check.skipped == "nothing to order"


def test_a_score_that_does_not_order_distorted_clips_is_marked(
  folders, tmp_path
):
  wrong = {
    "mine": {
      "source": "test",
      "scores": [
        {
          "name": "noise is good",
          "rule": "value",
          "features": ["picture"],
          "params": {"array": "picture.flicker"},
          "better": "lower",
          "orders": [["true", "noise"]],
        }
      ],
    }
  }
  path = tmp_path / "mine.json"
  path.write_text(json.dumps(wrong))
  settings = run.Settings(
    systems={"a": folders / "true"},
    cache=folders / "cache",
    protocols=[str(path)],
    draws=10,
  )
  made = run.run(settings)
  assert made.lines[0].check.problems == ("true is not better than noise",)
  assert "mine: noise is good ↓‡" in report.markdown(made)


def test_only_clips_that_all_systems_have_are_scored(result):
  names = {n: [c.name for c in clips] for n, clips in result.systems.items()}
  assert names["late"] == names["partial"] == ["0", "2"]
  assert names["reference"] == ["0", "1", "2"]
  assert result.left_out == {"partial": ["1"]}
  assert "partial lacks 1 clips: 1." in report.markdown(result)


def test_clips_without_sound_are_counted_and_do_not_count(result):
  cell = lines(result)["loudness"].cells["partial"]
  assert (cell.clips, cell.of, cell.missing) == (1, 2, "")
  assert lines(result)["stillness"].cells["partial"].clips == 2
  text = report.markdown(result)
  assert "| partial | 2 | 1 |" in text and "partial: 1 of 2 clips" in text


def test_the_report_has_all_scores_in_three_formats(result, tmp_path):
  report.write(tmp_path, result, examples=1)
  made = json.loads((tmp_path / report.JSON).read_text())
  assert [score["name"] for score in made["scores"]] == BASIC
  loud = made["scores"][BASIC.index("loudness")]["systems"]["late"]
  assert loud["low"] <= loud["value"] <= loud["high"] and loud["clips"] == 2
  text = (tmp_path / report.MARKDOWN).read_text()
  page = (tmp_path / report.HTML).read_text()
  for name in BASIC:
    assert f"basic: {name}" in text and f"basic: {name}" in page
  assert "<svg" in page and "<video" in page and "data:image/jpeg" in page


def test_scores_without_their_features_are_not_measured(folders, tmp_path):
  score = {
    "name": "FD",
    "rule": "value",
    "features": ["absent"],
    "params": {"array": "absent.x"},
  }
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"p": {"source": "", "scores": [score]}}))
  settings = run.Settings(
    systems={"a": folders / "partial"}, cache=tmp_path, protocols=[str(path)]
  )
  (line,) = run.run(settings).lines
  assert line.cells["a"].missing == "needs imported features 'absent'"
  assert report.cell_text(line.score, line.cells["a"]) == "not measured"


def test_scores_of_pairs_need_a_reference(folders, tmp_path):
  score = {
    "name": "similarity",
    "rule": "cosine",
    "features": ["picture"],
    "params": {
      "first": "picture.motion_T",
      "second": "picture.motion_T",
      "of_reference": True,
    },
  }
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"p": {"source": "", "scores": [score]}}))
  given = {"cache": folders / "cache", "protocols": [str(path)], "draws": 5}
  (alone,) = run.run(
    run.Settings(systems={"a": folders / "late"}, **given)
  ).lines
  assert alone.cells["a"].missing == "needs a reference: --reference=DIR"
  (paired,) = run.run(
    run.Settings(
      systems={"a": folders / "late"}, reference=folders / "true", **given
    )
  ).lines
  assert paired.cells["reference"].interval.value == pytest.approx(1)
  assert paired.cells["a"].clips == 3


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"systems": {}}, "at least one system"),
    ({"imported": {"x": pathlib.Path("x")}}, "no system 'x'"),
    ({"protocols": ["basics"]}, "did you mean basic"),
    ({"protocols": ["basic", "basic"]}, "given twice"),
    ({"weights": {"x": "y"}}, "extractor 'x' is unknown"),
    ({"draws": -1}, "draws must be at least 0"),
    ({"reference": pathlib.Path("absent")}, "there is no such folder of clips"),
  ],
)
def test_bad_settings_are_refused_in_one_line(
  changes, message, folders, tmp_path
):
  values = {"systems": {"a": folders / "true"}, "cache": tmp_path} | changes
  with pytest.raises(ValueError, match=message) as error:
    run.run(run.Settings(**values))
  assert "\n" not in str(error.value)


def test_systems_without_a_common_name_are_refused(folders, tmp_path):
  shutil.copy(folders / "true/0.mp4", tmp_path / "other.mp4")
  systems = {"a": folders / "true", "b": tmp_path}
  settings = run.Settings(systems=systems, cache=tmp_path / "cache")
  with pytest.raises(ValueError, match="no clip name in common"):
    run.run(settings)


def true_features(name, count=8):
  random = np.random.default_rng(1)
  return [{f"{name}": random.normal(size=3)} for _ in range(count)]


@pytest.mark.parametrize("rule", ["fd", "kid"])
def test_sets_of_true_clips_are_compared_with_other_true_clips(rule):
  score = protocols.Score(
    name="x",
    rule=rule,
    features=("v",),
    params={"array": "v.e"},
    better="lower",
    orders=(("true", "noise"),),
  )
  true = true_features("v.e")
  far = [{"v.e": each["v.e"] + 9} for each in true]
  rows = {protocols.TRUE: [{}, *true], protocols.NOISE: [{}, *far]}
  check = run._check(score, rows, "")
  halves = score.compute(true[::2], true[1::2]).value(np.arange(4))
  assert check.values["true"] == halves != 0 and not check.problems
  # A distortion that changes nothing is found, though the clips are the same.
  rows[protocols.NOISE] = rows[protocols.TRUE]
  assert run._check(score, rows, "").problems


@pytest.mark.parametrize("name", ["KL_PANNs", "voice similarity"])
def test_scores_of_pairs_are_not_checked_on_one_recording(name):
  score = next(
    score
    for protocol in protocols.known().values()
    for score in protocol.scores
    if score.name == name
  )
  array = next(iter(score.params.values()))
  true = true_features(array)
  rows = {protocols.TRUE: true, protocols.NOISE: true[::-1]}
  check = run._check(score, rows, "")
  assert "second recording" in check.skipped and not check.problems
  line = run.Line(
    protocol="p", score=score, cells={"a": run.Cell(clips=1, of=1)}, check=check
  )
  assert any(
    "not checked on distorted clips: " in n for n in report.notes(line)
  )


def test_another_sound_is_far_away_and_of_another_text():
  def named(texts):
    return [
      clips.Clip(
        name=str(number),
        path=pathlib.Path(f"{number}.mp4"),
        has_picture=True,
        has_sound=text is not None,
        text=text or "",
      )
      for number, text in enumerate(texts)
    ]

  def others(texts):
    return {n: int(c.name) for n, c in run._others(named(texts)).items()}

  assert others(["a", "b", "c", "d"]) == {"0": 2, "1": 3, "2": 0, "3": 1}
  assert others(["a", None, "b", "a", "a"]) == {"0": 2, "2": 4, "3": 2, "4": 2}
  assert others(["", ""]) == {"0": 1, "1": 0}
  assert others(["a", "a"]) == others(["a"]) == others([]) == {}


def imported_run(tmp_path, made):
  """A run with imported features; clips x and y, of the prompts p and q."""
  for stem, seed in (("x", 1), ("y", 2)):
    media_files.write_sound(tmp_path / f"a/{stem}.wav", media_files.tone(0.1))
    recipe = {"prompt": "A lamp.", "seed": seed}
    (tmp_path / f"a/{stem}.json").write_text(json.dumps(recipe))
  names = {
    (lists.prompt_key("A lamp."), s): n for s, n in (("1", "p"), ("2", "q"))
  }
  imported.write(tmp_path / "f", "v", made)
  score = {
    "name": "v",
    "rule": "value",
    "features": ["v"],
    "params": {"array": "v.e"},
  }
  path = tmp_path / "p.json"
  path.write_text(json.dumps({"p": {"source": "", "scores": [score]}}))
  return run.run(
    run.Settings(
      systems={"a": tmp_path / "a"},
      cache=tmp_path / "cache",
      protocols=[str(path)],
      prompts=lists.PromptTable(names=names),
      imported={"a": tmp_path / "f"},
      draws=5,
    )
  )


def test_imported_features_have_the_name_of_a_clip_or_of_its_file(tmp_path):
  (tmp_path / "a").mkdir()
  made = {name: {"e": value} for name, value in (("x", 1), ("q", 2), ("z", 9))}
  result = imported_run(tmp_path, made)
  assert result.lines[0].cells["a"].interval.value == 1.5
  assert result.unmatched == {"a": ["z"]}
  text = "a: imported features of 1 names are of no clip: z."
  assert text in report.markdown(result)
  assert report.plain(result)["unmatched_features"] == {"a": ["z"]}
  with pytest.raises(
    ValueError, match="expected features of clips of a, .*'z'"
  ):
    imported_run(tmp_path, {"z": {"e": 1}})


def test_imported_features_of_another_form_are_not_measured(tmp_path):
  (tmp_path / "a").mkdir()
  result = imported_run(tmp_path, {"x": {"e": [1, 2]}})
  missing = result.lines[0].cells["a"].missing
  assert missing == "v.e: expected a number, found shape (2,)"
