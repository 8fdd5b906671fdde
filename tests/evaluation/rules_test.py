"""Rules of clips, against literal computations."""

import math

import numpy as np
import pytest

from ovi_jax.evaluation import rules

FPS = 24.0


def av_clip(flow_T, onsets):
  return {
    "flow.flow_T": np.array(flow_T),
    "flow.fps": np.float64(FPS),
    "sound.onsets": np.array(onsets, np.float64),
  }


def literal_av_align(flow_T, onsets, threshold):
  """Each onset in turn takes the first free peak less than a frame away."""
  peaks = [
    t / FPS
    for t in range(1, len(flow_T) - 1)
    if flow_T[t - 1] < flow_T[t] > flow_T[t + 1] and flow_T[t] >= threshold
  ]
  free, both = list(peaks), 0
  for onset in onsets:
    for peak in free:
      if peak - 1 / FPS < onset < peak + 1 / FPS:
        free.remove(peak)
        both += 1
        break
  return both / (len(peaks) + len(onsets) - both)


def test_av_align_equals_its_definition():
  random = np.random.default_rng(0)
  for _ in range(50):
    flow_T = random.gamma(0.5, 0.3, 48)
    onsets = np.sort(random.uniform(0, 2, random.integers(1, 9)))
    found = rules.av_align(av_clip(flow_T, onsets), None, threshold=0.1)
    expected = literal_av_align(flow_T, onsets, 0.1)
    assert found == pytest.approx(expected, abs=1e-12)


def test_av_align_of_nothing_is_no_number():
  assert math.isnan(rules.av_align(av_clip([0.0] * 9, []), None, threshold=0.1))
  assert math.isnan(rules.av_align({}, None, threshold=0.1))


def moving_clip(late: float):
  """Motion and a sound that follows it; levels every 10 ms."""
  random = np.random.default_rng(3)
  motion_T = random.gamma(0.4, 2, 120)
  times = np.arange(500) * 0.01 - late
  level = np.interp(times, np.arange(120) / FPS, motion_T)
  return {
    "picture.motion_T": motion_T,
    "picture.fps": np.float64(FPS),
    "sound.envelope_T": level,
  }


@pytest.mark.parametrize("frames", [0, 5, 12, 24])
def test_the_envelope_lag_is_the_delay_of_the_sound(frames):
  clip = moving_clip(frames / FPS)
  assert rules.envelope_lag(clip, None) == pytest.approx(frames / FPS)
  now = rules.envelope_correlation(clip, None)
  assert (now > 0.9) == (frames == 0)


def test_still_pictures_and_constant_sounds_have_no_lag():
  clip = moving_clip(0)
  still = clip | {"picture.motion_T": np.zeros(120)}
  steady = clip | {"sound.envelope_T": np.ones(500)}
  for each in (still, steady, {}):
    assert math.isnan(rules.envelope_lag(each, None))
    assert math.isnan(rules.envelope_correlation(each, None))


def test_cosines_are_between_a_clip_and_its_reference():
  one, other = {"a.x": np.array([3.0, 4.0])}, {"a.x": np.array([4.0, 3.0])}
  found = rules.cosine(one, other, first="a.x", second="a.x", of_reference=True)
  assert found == pytest.approx(0.96)
  for reference in (None, {}, {"a.x": np.zeros(2)}):
    assert math.isnan(
      rules.cosine(one, reference, first="a.x", second="a.x", of_reference=True)
    )


@pytest.mark.parametrize(
  "rule, params, clip, message",
  [
    ("value", {"array": "a.x"}, {"a.x": np.ones(2)}, "expected a number"),
    ("value", {"array": "a.x"}, {"a.x": np.array("b")}, "expected numbers"),
    (
      "cosine",
      {"first": "a.x", "second": "a.y"},
      {"a.x": np.ones(2), "a.y": np.ones(3)},
      "a.x and a.y: expected one width, found 2 and 3",
    ),
    ("mean_of", {"array": "a.x"}, {"a.x": np.ones((2, 2))}, "expected a list"),
    ("consistency", {"array": "a.x"}, {"a.x": np.ones(4)}, "expected rows"),
    ("kl", {"array": "a.x"}, {"a.x": np.ones(4)}, r"\(1, 4\) and \(1, 3\)"),
    (
      "envelope_lag",
      {},
      {
        "picture.motion_T": np.ones(9),
        "sound.envelope_T": np.ones(9),
        "picture.fps": np.float64(0),
      },
      "expected a rate above 0",
    ),
  ],
)
def test_features_of_another_form_are_named(rule, params, clip, message):
  reference = {"a.x": np.ones(3)}
  with pytest.raises(ValueError, match=message) as error:
    rules.CLIP_RULES[rule](clip, reference, **params)
  assert "\n" not in str(error.value)


def test_frames_of_zeros_are_not_consistent():
  clip = {"a.x": np.zeros((3, 2))}
  assert rules.consistency(clip, None, array="a.x") == 0
