"""Analysis of the votes of a study, as plain values for the report.

Real items alone are analysed; gold items and repeats decide, by the rule in the
study file, which raters are left out. Everything is computed for all raters and
for those that are kept.
"""

import collections
import csv
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax.study import assignment
from ovi_jax.study import database
from ovi_jax.study import manifest
from ovi_jax.study import settings as settings_lib
from ovi_jax.study.statistics import agreement
from ovi_jax.study.statistics import davidson
from ovi_jax.study.statistics import intervals
from ovi_jax.study.statistics import significance
from ovi_jax.study.statistics import votes as votes_lib

_CODES = {
  database.LEFT: votes_lib.LEFT,
  database.RIGHT: votes_lib.RIGHT,
  database.EQUAL: votes_lib.EQUAL,
}
_MIRRORED = {
  database.LEFT: database.RIGHT,
  database.RIGHT: database.LEFT,
}
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaterCheck:
  """What is known of a rater's care.

  Attributes:
    rater: name.
    items: answered items.
    gold: gold questions answered correctly, and all of them.
    repeats: repeated questions answered alike, and all of them.
    sides: answers for the left side, and for either side.
    headphones: correct trials of the sound check; None without one.
    seconds: median time for an item.
    reasons: why the rater is left out; empty for raters that are kept.
  """

  rater: str
  items: int
  gold: tuple[int, int]
  repeats: tuple[int, int]
  sides: tuple[int, int]
  headphones: int | None
  seconds: float
  reasons: tuple[str, ...] = ()


def check_raters(
  study: manifest.Study, rows: Sequence[Row]
) -> list[RaterCheck]:
  """Check each rater against the rule of exclusion.

  Args:
    study: of the votes.
    rows: from `Database.votes`.
  """
  by_rater: dict[str, list[Row]] = {}
  for row in rows:
    by_rater.setdefault(row["rater"], []).append(row)
  return [
    _check(study, rater, of_rater) for rater, of_rater in by_rater.items()
  ]


def _check(
  study: manifest.Study, rater: str, rows: Sequence[Row]
) -> RaterCheck:
  golds = {q.id: q.gold for q in study.settings.questions}
  correct = [
    row["choice"] == (database.RIGHT if row["flipped"] else database.LEFT)
    for row in rows
    if row["kind"] == assignment.GOLD
    and golds[row["question"]] == study.gold[row["number"]].kind
  ]
  first = {
    (row["number"], row["question"]): row["choice"]
    for row in rows
    if row["kind"] == assignment.REAL
  }
  alike = []
  for row in rows:
    before = first.get((row["number"], row["question"]))
    if row["kind"] != assignment.REPEAT or before is None:
      continue
    if database.CANNOT_JUDGE not in (before, row["choice"]):
      alike.append(_MIRRORED.get(before, before) == row["choice"])
  sides = [
    row["choice"] == database.LEFT
    for row in rows
    if row["kind"] == assignment.REAL and row["choice"] in _MIRRORED
  ]
  seconds = {row["position"]: row["seconds"] for row in rows}
  found = RaterCheck(
    rater=rater,
    items=len(seconds),
    gold=(sum(correct), len(correct)),
    repeats=(sum(alike), len(alike)),
    sides=(sum(sides), len(sides)),
    headphones=rows[0]["headphones"],
    seconds=float(np.median([*seconds.values()])),
  )
  reasons = tuple(_reasons(study.settings.exclusion, found))
  return dataclasses.replace(found, reasons=reasons)


def _reasons(rule: settings_lib.Exclusion, found: RaterCheck) -> list[str]:
  """Which parts of the rule a rater fails; shares of nothing fail none."""
  reasons = []
  for least, (part, total), what in (
    (rule.min_gold_accuracy, found.gold, "gold questions correct"),
    (rule.min_repeat_agreement, found.repeats, "repeated answers alike"),
  ):
    if least is not None and total and part < least * total:
      reasons.append(f"{part} of {total} {what}, less than {least:g}")
  left, total = found.sides
  largest = rule.max_side_share
  # Ten answers for one side are rare by chance; fewer prove nothing.
  if largest is not None and total >= 10:
    one_side = max(left, total - left)
    if one_side > largest * total:
      reasons.append(
        f"{one_side} of {total} answers for one side, more than {largest:g}"
      )
  least = rule.min_headphones
  if least is not None and (found.headphones or 0) < least:
    reasons.append(
      f"{found.headphones or 0} trials of the sound check correct, less than"
      f" {least}"
    )
  return reasons


def analyse(
  study: manifest.Study,
  rows: Sequence[Row],
  seed: int = 0,
  replicates: int = intervals.REPLICATES,
) -> dict[str, Any]:
  """All results of a study, as JSON holds them.

  Args:
    study: of the votes.
    rows: from `Database.votes`.
    seed: of bootstrap and tests.
    replicates: of each bootstrap.

  Raises:
    ValueError: there are no votes on real items.
  """
  if not any(row["kind"] == assignment.REAL for row in rows):
    raise ValueError("the study has no votes yet")
  checks = check_raters(study, rows)
  kept = {check.rater for check in checks if not check.reasons}
  groups = {"all": {c.rater for c in checks}, "kept": kept}
  results = {}
  for name, raters in groups.items():
    chosen = [row for row in rows if row["rater"] in raters]
    if any(row["kind"] == assignment.REAL for row in chosen):
      results[name] = _results(study, chosen, seed, replicates)
  return _plain(
    {
      "study": study.hash,
      "title": study.settings.title,
      "seed": seed,
      "replicates": replicates,
      "prompts": len(study.prompts),
      "items": len(study.items),
      "exclusion": dataclasses.asdict(study.settings.exclusion),
      "systems": {
        system: _lengths(clips) for system, clips in study.clips.items()
      },
      "raters": [dataclasses.asdict(check) for check in checks],
      "results": results,
    }
  )


def _lengths(clips: Sequence[manifest.Clip]) -> dict[str, Any]:
  seconds = [clip.seconds for clip in clips]
  return {
    "clips": len(clips),
    "seconds": [min(seconds), float(np.mean(seconds)), max(seconds)],
    "sizes": sorted({f"{clip.width}x{clip.height}" for clip in clips}),
    "fps": sorted({clip.fps for clip in clips}),
    "with_sound": sum(clip.sound for clip in clips),
  }


def _results(
  study: manifest.Study, rows: Sequence[Row], seed: int, replicates: int
) -> dict[str, Any]:
  """Results by question, with p-values corrected over pairs and questions."""
  questions = {
    question.id: _question(study, rows, question.id, seed, replicates)
    for question in study.settings.questions
  }
  pairs = [pair for q in questions.values() for pair in q.get("pairs", ())]
  for pair, adjusted in zip(pairs, significance.holm([p["p"] for p in pairs])):
    pair["p_holm"] = adjusted
  return {"raters": len({r["rater"] for r in rows}), "questions": questions}


def votes_of(
  study: manifest.Study, rows: Sequence[Row], question: str
) -> votes_lib.Votes:
  """Votes on real items that could judge, of one question."""
  systems = sorted(study.clips)
  number = {system: i for i, system in enumerate(systems)}
  raters: dict[str, int] = {}
  found = []
  for row in rows:
    if (
      row["kind"] != assignment.REAL
      or row["question"] != question
      or row["choice"] not in _CODES
    ):
      continue
    item = study.items[row["number"]]
    sides = number[item.first], number[item.second]
    left, right = sides[::-1] if row["flipped"] else sides
    rater = raters.setdefault(row["rater"], len(raters))
    found.append((item.prompt, rater, left, right, _CODES[row["choice"]]))
  return votes_lib.make(systems, found)


def _question(
  study: manifest.Study,
  rows: Sequence[Row],
  question: str,
  seed: int,
  replicates: int,
) -> dict[str, Any]:
  votes = votes_of(study, rows, question)
  asked = [
    row
    for row in rows
    if row["kind"] == assignment.REAL and row["question"] == question
  ]
  result: dict[str, Any] = {
    "votes": len(votes),
    "cannot_judge": len(asked) - len(votes),
  }
  if not len(votes):
    return result
  size, ordered, pairs = len(votes.systems), votes.ordered_pairs, votes.pairs

  def estimate(counts_XEO: np.ndarray) -> np.ndarray:
    fit = davidson.fit(counts_XEO, ordered, size)
    rates = [
      votes_lib.win_rates(votes_lib.outcomes(counts_XEO, ordered, pair))
      for pair in pairs
    ]
    others = np.stack([fit.beta_X, fit.log_nu_X], 1)
    return np.concatenate([fit.theta_XS, others, *rates], 1)

  found = intervals.bootstrap(votes, estimate, seed, replicates)
  result["systems"] = {
    name: _system(votes, found, index)
    for index, name in enumerate(votes.systems)
  }
  result["side_bias"] = _estimate(found, size)
  result["log_nu"] = _estimate(found, size + 1)
  result["pairs"] = [
    _pair(votes, pair, found, size + 2 + 3 * index, seed)
    for index, pair in enumerate(pairs)
  ]
  result["alpha"] = _alpha(votes, seed, replicates)
  untied = votes.choice != votes_lib.EQUAL
  left = int((votes.choice == votes_lib.LEFT).sum())
  result["left_share"] = _share(left, int(untied.sum()))
  of_question = [row for row in rows if row["question"] == question]
  repeats = [c.repeats for c in check_raters(study, of_question)]
  result["self_consistency"] = _share(
    sum(alike for alike, _ in repeats), sum(total for _, total in repeats)
  )
  return result


def _estimate(
  found: intervals.Intervals,
  index: int,
  least: float = -math.inf,
  most: float = math.inf,
) -> dict[str, Any]:
  """An estimate and its intervals, within the range of its values."""
  return {
    field.name: np.clip(getattr(found, field.name)[index], least, most).tolist()
    for field in dataclasses.fields(found)
  }


def _system(
  votes: votes_lib.Votes, found: intervals.Intervals, index: int
) -> dict[str, Any]:
  """Number of votes, log strength and Elo; NaN without votes."""
  count = int(((votes.left == index) | (votes.right == index)).sum())
  if not count:
    # The fit has the mean for it, which is not what anybody found.
    found = intervals.Intervals(
      **{
        field.name: np.full_like(getattr(found, field.name), np.nan)
        for field in dataclasses.fields(found)
      }
    )
  return {
    "votes": count,
    **_estimate(found, index),
    "elo": _elo(found, index),
  }


def _elo(found: intervals.Intervals, index: int) -> list[float]:
  """Elo and its two-way interval."""
  scale = 400 / math.log(10)
  values = [found.value[index], *found.two_way[index]]
  return [1000 + scale * float(value) for value in values]


def _pair(
  votes: votes_lib.Votes,
  pair: tuple[int, int],
  found: intervals.Intervals,
  index: int,
  seed: int,
) -> dict[str, Any]:
  first, second = pair
  chosen = votes.of(
    ((votes.left == first) & (votes.right == second))
    | ((votes.left == second) & (votes.right == first))
  )
  counts_XEO = chosen.counts_by(chosen.prompt).reshape(
    -1, len(chosen.ordered_pairs), 3
  )
  win, loss, tie = votes_lib.outcomes(counts_XEO, chosen.ordered_pairs, pair).T
  scores = significance.prompt_scores(win, loss, win + loss + tie)
  return {
    "first": votes.systems[first],
    "second": votes.systems[second],
    "prompts": len(scores),
    "win": int(win.sum()),
    "tie": int(tie.sum()),
    "loss": int(loss.sum()),
    "pwr": _estimate(found, index, 0, 1),
    "pwr_untied": _estimate(found, index + 1, 0, 1),
    "net": _estimate(found, index + 2, -1, 1),
    "p": significance.sign_flip(scores, seed),
  }


def _alpha(
  votes: votes_lib.Votes, seed: int, replicates: int
) -> dict[str, Any]:
  """Agreement on which system of an item is better."""
  size = len(votes.systems)
  low = np.minimum(votes.left, votes.right)
  high = np.maximum(votes.left, votes.right)
  unit = (votes.prompt * size + low) * size + high
  flipped = votes.left > votes.right
  better = np.where(
    (votes.choice != votes_lib.EQUAL) & flipped, 1 - votes.choice, votes.choice
  )
  counts = agreement.value_counts(unit, better)
  return {
    "value": float(agreement.alpha(counts)[0]),
    "interval": agreement.alpha_interval(counts, seed, replicates),
    "items": int((counts.sum(1) > 1).sum()),
  }


def _share(part: int, total: int) -> dict[str, Any]:
  return {
    "part": part,
    "of": total,
    "interval": intervals.wilson(part, total),
  }


def _plain(value: Any) -> Any:
  """The value as strict JSON holds it: lists, and None for NaN."""
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(each) for each in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def votes_csv(study: manifest.Study, rows: Sequence[Row]) -> str:
  """All votes as CSV, with systems and prompts by name."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  places = ("rater", "position", "kind", "prompt", "left", "right", "question")
  columns = ("choice", "seconds", "plays_left", "plays_right", "headphones")
  writer.writerow((*places, *columns))
  for row in rows:
    if row["kind"] == assignment.GOLD:
      gold = study.gold[row["number"]]
      prompt = gold.prompt
      sides = [gold.system, f"{gold.system} {gold.kind}"]
    else:
      item = study.items[row["number"]]
      prompt, sides = item.prompt, [item.first, item.second]
    left, right = sides[::-1] if row["flipped"] else sides
    writer.writerow(
      [
        *(row["rater"], row["position"], row["kind"]),
        *(study.prompts[prompt].name, left, right, row["question"]),
        *(row[column] for column in columns),
      ]
    )
  return file.getvalue()


def preference_pairs(
  study: manifest.Study, rows: Sequence[Row], raters: Sequence[RaterCheck]
) -> str:
  """Preferred and rejected clips as JSON lines, for preference training.

  One line for each item and question that more kept raters decide for one clip
  than for the other.
  """
  kept = {check.rater for check in raters if not check.reasons}
  tally: dict[tuple[int, str], collections.Counter[str]] = {}
  for row in rows:
    if row["kind"] == assignment.REAL and row["rater"] in kept:
      choice: str = row["choice"]
      if row["flipped"]:
        choice = _MIRRORED.get(choice, choice)
      key = row["number"], row["question"]
      tally.setdefault(key, collections.Counter())[choice] += 1
  lines = []
  for (number, question), counts in sorted(tally.items()):
    item = study.items[number]
    win, loss = counts[database.LEFT], counts[database.RIGHT]
    if win == loss:
      continue
    chosen, rejected = (
      (item.first, item.second) if win > loss else (item.second, item.first)
    )
    prompt = study.prompts[item.prompt]
    lines.append(
      json.dumps(
        {
          "prompt": prompt.text or prompt.name,
          "question": question,
          "chosen": study.clips[chosen][item.prompt].source,
          "rejected": study.clips[rejected][item.prompt].source,
          "chosen_system": chosen,
          "rejected_system": rejected,
          "wins": max(win, loss),
          "losses": min(win, loss),
          "ties": counts[database.EQUAL],
        },
        ensure_ascii=False,
      )
    )
  return "".join(itertools.chain.from_iterable((x, "\n") for x in lines))
