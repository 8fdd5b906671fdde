"""Scores of ground-truth clips measure the detectors' errors."""

import pytest

from ovi_jax.synthetic.evaluation import calibration
from ovi_jax.synthetic.evaluation import report

# Least values, by score; F1 with another's sound is the most.
LEAST = {
  "kind": 1.0,
  "colour": 0.99,
  "number of events seen": 0.98,
  "number of sounds heard": 0.98,
  "material": 0.97,
  "pitch": 0.97,
  "voice": 0.97,
  "vowels heard": 0.97,
  "vowels seen": 0.97,
  "sync F1": 0.97,
  "events seen against the truth, F1": 0.98,
  "events heard against the truth, F1": 0.98,
}
MOST = {
  "sync F1, sound of another": 0.35,
  "events seen later than the truth": 3,
  "events heard later than the truth": 3,
}


def check(table, slack: float = 0.0):
  values = {score.name: score.value for score in table}
  low = {n: values[n] for n in LEAST if not values[n] >= LEAST[n] - slack}
  high = {n: values[n] for n in MOST if not abs(values[n]) <= MOST[n]}
  assert not low and not high


@pytest.mark.slow
def test_clean_clips_are_scored_correct(clips, worn):
  check(calibration.score(clips, worn[1]))
  assert {len(clip.facts.colours) for clip in clips} == {1, 2}
  assert {clip.facts.kind for clip in clips} == {"ball", "lamp", "face"}


@pytest.mark.slow
def test_degraded_clips_are_scored_almost_as_high(worn):
  check(calibration.score(*worn), slack=0.04)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "is_worn"),
  [
    (30, False),
    pytest.param(100, False, marks=pytest.mark.nightly),
    pytest.param(100, True, marks=pytest.mark.nightly),
  ],
)
def test_many_clips_are_scored_correct(count, is_worn):
  table = calibration.calibrate(count, 1000, worn=is_worn)
  print(report.markdown(table))
  check(table, slack=0.02 if is_worn else 0.0)


def test_zero_clips_are_refused():
  with pytest.raises(ValueError, match="at least 1 clip"):
    calibration.calibrate(0, 0, worn=False)
