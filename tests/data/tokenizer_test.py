"""Word tokenizers trained on captions."""

import dataclasses

import numpy as np
import pytest

from ovi_jax import synthetic
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import builder
from ovi_jax.data import tokenizer
from tests.lib import random_records

CAPTIONS = (
  "A red ball bounces on wood. Audio: dull knocks.",
  "A face says <S>ah oh<E>. <AUDCAP>A low voice.<ENDAUDCAP>",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
  tokenizer.write(path, CAPTIONS)
  return path


@pytest.fixture(scope="module")
def loaded(path):
  return tokenizer_lib.Tokenizer.load(path)


def words(loaded: tokenizer_lib.Tokenizer, text: str) -> list[str]:
  ids_BS, mask_BS = loaded.encode([text], 32)
  assert (ids_BS[mask_BS == 0] == loaded.pad).all()
  names = [loaded.model.id_to_token(i) for i in ids_BS[mask_BS > 0]]
  assert names[-1] == "</s>"
  return names[:-1]


def test_captions_round_trip(loaded):
  assert words(loaded, CAPTIONS[0]) == [
    *("a", "red", "ball", "bounces", "on", "wood", "."),
    *("audio", ":", "dull", "knocks", "."),
  ]
  assert words(loaded, CAPTIONS[1]) == [
    *("a", "face", "says", "<S>", "ah", "oh", "<E>", "."),
    *("<AUDCAP>", "a", "low", "voice", ".", "<ENDAUDCAP>"),
  ]
  ids, _ = loaded.encode([CAPTIONS[0]], 32)
  text = loaded.model.decode(list(ids[0]))
  assert text == "a red ball bounces on wood . audio : dull knocks ."


def test_the_first_ids_are_t5s(loaded):
  names = [loaded.model.id_to_token(i) for i in range(3)]
  assert names == ["<pad>", "</s>", "<unk>"]
  assert (loaded.pad, loaded.eos) == (0, 1)


@pytest.mark.parametrize(
  "text, expected",
  [
    ("A Red BALL", ["a", "red", "ball"]),
    (
      "  a shiny red ball, bouncing on wood!",
      ["a", "red", "ball", "on", "wood"],
    ),
    ("balls reddish a-red ball's", ["a", "red"]),
    ("<s>Oh</s", ["oh"]),
    ("日本 \N{SNOWMAN} ", []),
    ("", []),
  ],
)
def test_unknown_words_are_left_out(loaded, text, expected):
  assert words(loaded, text) == expected


def test_the_same_captions_in_any_order_make_the_same_file(path, tmp_path):
  again = tmp_path / "again.json"
  tokenizer.write(again, CAPTIONS[::-1])
  assert again.read_bytes() == path.read_bytes()


def test_truncated_prompts_are_reported(loaded):
  ids, mask = loaded.encode(["a red ball bounces"], 3)
  assert mask.sum() == 3 and ids[0, -1] == loaded.eos
  (note,) = loaded.notes(["a red ball bounces"], 3)
  assert (
    "5 tokens, more than the limit of 3" in note and "'ball bounces'" in note
  )
  np.testing.assert_array_equal(loaded.encode([""], 2)[0], [[1, 0]])


def test_a_tokenizer_is_trained_on_the_captions_of_a_dataset(tmp_path):
  for number, name in enumerate("ab"):
    made = dataclasses.replace(
      random_records.record(number, video=None),
      captions=(CAPTIONS[number],) * 2,
    )
    builder.write(
      tmp_path / name,
      {"train": [made], "test": [made]},
      geometry=random_records.GEOMETRY,
    )
  paths = [str(tmp_path / name) for name in "ab"]
  size = tokenizer.write(tmp_path / "t.json", tokenizer.captions_of(paths))
  made = tokenizer_lib.Tokenizer.load(tmp_path / "t.json")
  assert made.model.get_vocab_size() == size
  assert not any(made.unread(caption) for caption in CAPTIONS)
  # Each caption occurs four times here, "a" eight times.
  captions = list(tokenizer.captions_of(paths))
  few = tokenizer.make(captions, min_count=8)
  assert few.token_to_id("a") and few.token_to_id("ball") is None
  with pytest.raises(ValueError, match="that come 99 times, got none"):
    tokenizer.make(captions, min_count=99)


def test_captions_without_words_are_refused():
  with pytest.raises(ValueError, match="captions with words"):
    tokenizer.make(["<S><E>", ""])


def test_words_outside_the_vocabulary_are_reported():
  made = tokenizer_lib.Tokenizer.load(synthetic.WEIGHTS / "tokenizer.json")
  text = "A pink elephant, don't! dances. Pink rain."
  wanted = ["pink", "elephant", "don't", "dances", "Pink", "rain"]
  assert made.unread(text) == wanted
  known = "A red ball on a wooden floor. <AUDCAP>Dull knocks.<ENDAUDCAP>"
  assert made.unread(known) == []


@pytest.mark.parametrize("text", ["\U0001f600", "!!!", "\u4f60\u597d", "Xyz"])
def test_a_prompt_without_a_known_token_is_noted(text):
  made = tokenizer_lib.Tokenizer.load(synthetic.WEIGHTS / "tokenizer.json")
  (note,) = made.notes([text, "A red ball.", "A \U0001f600"], 64)
  assert note.startswith("none of the prompt's words are in the vocabulary")
  assert text in note
