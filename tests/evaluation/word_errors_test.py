"""Word error rates, against a literal definition and by hand."""

import functools
import math

import numpy as np
import pytest

from ovi_jax.evaluation import word_errors


def literal(one, other):
  """The edit distance by its recursion."""

  @functools.cache
  def d(i, j):
    if not i or not j:
      return i + j
    changed = d(i - 1, j - 1) + (one[i - 1] != other[j - 1])
    return min(changed, d(i - 1, j) + 1, d(i, j - 1) + 1)

  return d(len(one), len(other))


def test_the_distance_equals_its_recursion():
  random = np.random.default_rng(0)
  for _ in range(100):
    one, other = (
      tuple(random.choice(list("abcd"), random.integers(0, 9)))
      for _ in range(2)
    )
    assert word_errors.distance(one, other) == literal(one, other)


def clip(speech, text):
  return {"text.speech": np.array(speech), "whisper.text": np.array(text)}


@pytest.mark.parametrize(
  "speech, heard, rate",
  [
    ("Don't stop, now!", "don't stop now", 0),
    ("One two three four", "one too three", 2 / 4),
    ("Wait.", "wait a bit longer", 3),
    ("a - b", "A B", 0),  # two spaces where the hyphen was become one
    ("word", "", 1),
  ],
)
def test_rates_after_the_normalization_of_seed_tts(speech, heard, rate):
  found = word_errors.word_error_rate(clip(speech, heard), None)
  assert found == pytest.approx(rate)


def test_clips_that_should_say_nothing_have_no_rate():
  for each in (clip("", "hello"), clip("...", "hello"), {}):
    assert math.isnan(word_errors.word_error_rate(each, None))
