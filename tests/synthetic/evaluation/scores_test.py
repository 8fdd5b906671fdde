"""Confidence intervals, and word alignment."""

import math

import pytest

from ovi_jax.evaluation import intervals
from ovi_jax.synthetic.evaluation import scores
from ovi_jax.synthetic.evaluation.scores import Part


def test_a_share_counts_clips_and_a_ratio_events():
  share = scores.score("kind", [Part(1, 1)] * 9 + [Part(0, 1), None])
  assert (share.value, share.clips, share.of) == (0.9, 10, 10)
  assert (share.low, share.high) == intervals.wilson(9, 10)
  ratio = scores.score("f1", [Part(2, 4), Part(6, 6), Part(0, 0), None])
  assert (ratio.value, ratio.clips, ratio.of) == (0.8, 2, 10)
  assert (ratio.low, ratio.high) == (0.5, 1.0)


def test_the_interval_of_a_perfect_score_has_width():
  perfect = scores.score("f1", [Part(4, 4)] * 10)
  assert perfect.value == 1 and perfect.low == intervals.wilson(10, 10)[0] < 0.8


def test_no_clips_give_no_score():
  nothing = scores.score("kind", [None, Part(0, 0)])
  assert math.isnan(nothing.value) and nothing.clips == 0
  assert scores.mean("late", [[], []]).clips == 0


def test_a_mean_is_over_all_events_of_all_clips():
  late = scores.mean("late", [[0.01, 0.02], [], [0.03]])
  assert late.value == pytest.approx(20) and late.clips == 2
  assert late.unit == "ms" and late.low <= 20 <= late.high


@pytest.mark.parametrize(
  "asked, given, right",
  [
    ("ah oh ee", "ah oh ee", 3),
    ("ah oh ee", "oh ee ah", 0),  # moved by one: nothing is in its place
    ("ah oh ee", "ah ee oh ee", 3),  # one too many
    ("ah oh ee", "ah ee", 2),  # one is missing
    ("ah oh ee", "ee", 1),
    ("ah ah", "ee ah ee", 1),  # spoken once, counted once
    ("ah oh", "", 0),
  ],
)
def test_words_are_compared_by_position(asked, given, right):
  assert scores.aligned(asked.split(), given.split()) == right
