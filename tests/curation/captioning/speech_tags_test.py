"""Insertion of speech tags."""

import pytest

from ovi_jax.curation.captioning import speech_tags


@pytest.mark.parametrize(
  "text, speech, placed",
  [
    ("She says hi and goes.", ["hi"], "She says <S>hi<E> and goes."),
    (
      "This is it: <S>is that so?",
      ["is that so?"],
      "This is it: <S>is that so?<E>",
    ),
    ("He: go<E> She: <S>no", ["go", "no"], "He: <S>go<E> She: <S>no<E>"),
    ("go, then go again", ["go", "go"], "<S>go<E>, then <S>go<E> again"),
    ("one two one", ["one", "two one"], "<S>one<E> <S>two one<E>"),
  ],
)
def test_missing_speech_tags_are_inserted(text, speech, placed):
  assert speech_tags.insert_tags(text, speech) == placed


@pytest.mark.parametrize(
  "text, speech",
  [
    ("She says something.", ["hi"]),  # not there
    ("this thing", ["hi"]),  # within a word only
    ("go, then go again", ["go"]),  # which of the two?
    ("first second", ["second", "first"]),  # in another order
    ("anything", []),
  ],
)
def test_ambiguous_speech_is_unchanged(text, speech):
  assert speech_tags.insert_tags(text, speech) is None


def test_words_match_regardless_of_punctuation_and_case():
  assert speech_tags.same_words(["Well, HI!"], ["well hi"])
  assert not speech_tags.same_words(["well", "hi"], ["well hi"])
  assert speech_tags.tagged_speech("<S> a <E> b <S>c<E>") == ("a", "c")
