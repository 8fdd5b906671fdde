"""Analysis and report: exclusions, values, all three formats."""

import csv
import io
import json
import re

import numpy as np
import pytest

from ovi_jax.study import analysis
from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import report
from ovi_jax.study import simulated
from tests.lib import study_clips

SYSTEMS = ["ours", "baseline", "real"]
THETA = {"ours": 0.5, "baseline": -0.8, "real": 0.3}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
  """A study with careful raters, one who always takes the left, one random."""
  folder = tmp_path_factory.mktemp("judged")
  study = study_clips.without_media(
    SYSTEMS, 8, items_per_session=16, raters_per_item=4
  )
  manifest.write(folder, study)
  store = database.Database(folder / manifest.VOTES, study)
  strength = {
    (question.id, system, prompt): THETA[system]
    for question in study.settings.questions
    for system in SYSTEMS
    for prompt in range(8)
  }
  careful = simulated.Rater(study=study, strength=strength)
  random = np.random.default_rng(4)
  for _ in range(6):
    simulated.judge(store, study, careful, random)
  simulated.judge(store, study, lambda *_: database.LEFT, random)
  return folder, study, store


@pytest.fixture(scope="module")
def found(judged, tmp_path_factory):
  folder, _, _ = judged
  out = tmp_path_factory.mktemp("report")
  result = report.write(folder, out, out / "pairs.jsonl", replicates=100)
  return result, out


def test_the_better_systems_win_and_intervals_are_around_their_values(found):
  result, _ = found
  question = result["results"]["kept"]["questions"]["video"]
  ranks = sorted(
    question["systems"], key=lambda s: -question["systems"][s]["value"]
  )
  assert ranks[-1] == "baseline"
  for pair in question["pairs"]:
    rate = pair["pwr"]
    for name in ("over_prompts", "over_raters", "two_way"):
      low, high = rate[name]
      assert low <= rate["value"] <= high
    total = pair["win"] + pair["tie"] + pair["loss"]
    expected = (pair["win"] + pair["tie"] / 2) / total
    assert rate["value"] == pytest.approx(expected)
    assert pair["p"] <= pair["p_holm"] <= 1
  worst = [p for p in question["pairs"] if p["first"] == "baseline"]
  assert all(p["pwr"]["value"] < 0.5 for p in worst) and len(worst) == 2
  assert question["self_consistency"]["of"] >= 4


def test_a_rater_who_always_takes_one_side_is_left_out(found, judged):
  result, _ = found
  out = [r for r in result["raters"] if r["reasons"]]
  assert len(out) == 1
  assert "answers for one side" in " ".join(out[0]["reasons"])
  everyone = result["results"]["all"]["questions"]["video"]
  kept = result["results"]["kept"]["questions"]["video"]
  assert everyone["votes"] > kept["votes"]
  assert everyone["side_bias"]["value"] > kept["side_bias"]["value"]


def test_the_report_has_the_same_numbers_in_all_formats(found):
  result, out = found
  assert json.loads((out / "report.json").read_text()) == result
  text = (out / "report.md").read_text()
  page = (out / "report.html").read_text()
  pair = result["results"]["kept"]["questions"]["sync"]["pairs"][0]
  rate = f"{pair['pwr']['value']:.2f}"
  counts = f"{pair['win']} / {pair['tie']} / {pair['loss']}"
  for content in (text, page):
    assert rate in content and counts in content and result["study"] in content
    assert "left out by the rule" in content
    assert "With and without exclusions" in content
    # Every interval says by which method it was found.
    for method in (report.TWO_WAY, report.OVER_PROMPTS, report.OVER_RATERS):
      assert method in content
    assert "(bootstrap over items)" in content and "(Wilson)" in content
    assert not re.search(r"(\| |<th>)95 %( \||</th>)", content)
  assert page.count("<svg") == 12 and "<script" not in page
  assert not re.search(r'(?:src|href)="', page)
  assert all(
    row.startswith("|") for row in re.findall(r"^.*\| PWR.*$", text, re.M)
  )


def test_the_votes_are_exported_with_systems_and_prompts(found, judged):
  _, out = found
  _, _, store = judged
  rows = list(csv.DictReader(io.StringIO((out / "votes.csv").read_text())))
  assert len(rows) == len(store.votes())
  real = [row for row in rows if row["kind"] == "real"]
  assert {row["left"] for row in real} == set(SYSTEMS)
  gold = [row for row in rows if row["kind"] == "gold"]
  assert any("noise" in row["left"] + row["right"] for row in gold)


def test_preference_pairs_name_the_clip_that_most_raters_chose(found, judged):
  _, out = found
  _, study, _ = judged
  lines = [
    json.loads(x) for x in (out / "pairs.jsonl").read_text().splitlines()
  ]
  assert lines and all(line["wins"] > line["losses"] for line in lines)
  sources = {c.source for clips in study.clips.values() for c in clips}
  assert {line["chosen"] for line in lines} <= sources
  chosen = [line["chosen_system"] for line in lines]
  assert chosen.count("baseline") < chosen.count("ours")
  assert {line["question"] for line in lines} == {"audio", "video", "sync"}


def row(rater="r", kind="real", number=0, flipped=0, choice="left", **changes):
  return {
    "rater": rater,
    "position": number,
    "kind": kind,
    "number": number,
    "flipped": flipped,
    "question": "video",
    "choice": choice,
    "answered": 0.0,
    "seconds": 5.0,
    "plays_left": 1,
    "plays_right": 1,
    "headphones": 6,
    **changes,
  }


def test_gold_answers_are_judged_by_their_own_question_and_side():
  study = study_clips.without_media(SYSTEMS, 4)
  numbers = {g.kind: i for i, g in enumerate(study.gold)}
  video, audio = numbers["video_noise"], numbers["audio_noise"]
  rows = [
    row(kind="gold", number=video),  # the clean clip is on the left
    row(kind="gold", number=video, flipped=1, choice="right"),
    row(kind="gold", number=video, flipped=1, choice="left"),
    row(kind="gold", number=video, choice="equal"),
    row(kind="gold", number=audio, choice="right"),  # another question's
  ]
  (check,) = analysis.check_raters(study, rows)
  assert check.gold == (2, 4)
  assert check.reasons == ("2 of 4 gold questions correct, less than 0.6",)
  # One miss of the three gold items of a session is no carelessness.
  (check,) = analysis.check_raters(study, rows[:3])
  assert check.gold == (2, 3) and not check.reasons


def test_repeats_are_compared_by_system_and_not_by_side():
  study = study_clips.without_media(SYSTEMS, 4)
  rows = [
    row(number=0, choice="left"),
    row(number=1, choice="equal"),
    row(number=2, choice="left"),
    row(number=3, choice="cannot_judge"),
    *(
      row(kind="repeat", number=n, flipped=1, choice=c)
      for n, c in enumerate(("right", "equal", "left", "left"))
    ),
  ]
  (check,) = analysis.check_raters(study, rows)
  assert check.repeats == (2, 3)


@pytest.mark.parametrize(
  ("rule", "reasons"),
  [
    ({}, 0),
    ({"min_headphones": 6}, 1),
    ({"min_repeat_agreement": 1.0}, 1),
    ({"max_side_share": None}, 0),
    ({"max_side_share": 0.5}, 1),
  ],
)
def test_each_part_of_the_rule_can_be_chosen(rule, reasons):
  study = study_clips.without_media(SYSTEMS, 6, exclusion=rule)
  rows = [row(number=n, choice="left" if n < 7 else "right") for n in range(12)]
  rows.append(row(kind="repeat", number=0, flipped=1, choice="left"))
  rows = [each | {"headphones": 5} for each in rows]
  (check,) = analysis.check_raters(study, rows)
  assert len(check.reasons) == reasons


def test_a_study_without_votes_has_no_report(tmp_path):
  study = study_clips.without_media(SYSTEMS, 2)
  manifest.write(tmp_path, study)
  with pytest.raises(ValueError, match="has no votes yet"):
    report.write(tmp_path, tmp_path / "out")
  database.Database(tmp_path / manifest.VOTES, study)
  with pytest.raises(ValueError, match="has no votes yet"):
    report.write(tmp_path, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_one_vote_or_none_that_can_judge_gives_a_report_without_intervals():
  study = study_clips.without_media(SYSTEMS, 2)
  one = analysis.analyse(study, [row()], replicates=20)
  question = one["results"]["kept"]["questions"]["video"]
  assert question["pairs"][0]["pwr"]["two_way"] == [None, None]
  assert question["alpha"]["value"] is None
  # The vote is about the first pair of systems; the third one has none.
  item = study.items[0]
  (missing,) = set(SYSTEMS) - {item.first, item.second}
  systems = question["systems"]
  assert {s: v["votes"] for s, v in systems.items() if s != missing} == {
    item.first: 1,
    item.second: 1,
  }
  assert systems[missing]["elo"] == [None, None, None]
  assert f"| {missing} (no votes) | - | - |" in report.markdown(one)
  for render in (report.markdown, report.page):
    assert "no votes" in render(one)
  none = analysis.analyse(study, [row(choice="cannot_judge")], replicates=20)
  assert none["results"]["all"]["questions"]["video"]["votes"] == 0
  assert "no votes" in report.page(none)


def test_intervals_of_shares_stay_within_their_range():
  study = study_clips.without_media(SYSTEMS, 6)
  rows = [
    row(rater=f"rater {n % 2}", number=n, choice="left" if n < 7 else "right")
    for n in range(12)
  ]
  found = analysis.analyse(study, rows, replicates=50)
  for pair in found["results"]["kept"]["questions"]["video"]["pairs"]:
    for name, least in (("pwr", 0), ("pwr_untied", 0), ("net", -1)):
      low, high = pair[name]["two_way"]
      assert least <= low <= high <= 1


def test_when_all_raters_are_left_out_the_report_says_so():
  rule = {"min_headphones": 6}
  study = study_clips.without_media(SYSTEMS, 2, exclusion=rule)
  found = analysis.analyse(study, [row(headphones=5)], replicates=20)
  assert set(found["results"]) == {"all"}
  assert "trials of the sound check" in report.markdown(found)


def test_titles_cannot_add_markup_to_the_report():
  title = "<script>alert(1)</script> | [x](y)"
  study = study_clips.without_media(SYSTEMS, 2, title=title)
  found = analysis.analyse(study, [row()], replicates=20)
  assert "<script" not in report.page(found)
  assert "<script" not in report.markdown(found).replace("\\<script", "")


def test_analysis_of_simulated_votes_equals_that_of_the_model(judged):
  """Rows of the database and the statistics' own columns mean the same."""
  _, study, store = judged
  rows = [r for r in store.votes() if r["kind"] == assignment.REAL]
  votes = analysis.votes_of(study, rows, "video")
  systems = sorted(SYSTEMS)
  for index in (0, len(votes) // 2, len(votes) - 1):
    of_question = [
      r
      for r in rows
      if r["question"] == "video" and r["choice"] != database.CANNOT_JUDGE
    ]
    item = study.items[of_question[index]["number"]]
    left = item.second if of_question[index]["flipped"] else item.first
    assert systems[votes.left[index]] == left
    assert votes.prompt[index] == item.prompt
