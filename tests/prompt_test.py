import dataclasses
import json
import pathlib
import random

import numpy as np
import pytest

from ovi_jax import geometry
from ovi_jax import prompt
from ovi_jax.convert import standin

PROMPTS = json.loads(
  (pathlib.Path(__file__).parent / "goldens" / "prompts.json").read_text()
)
TOKENIZER = standin.HERE / "tokenizer.json"
TAGGED, LINED = geometry.variant("720x720_5s"), geometry.variant("960x960_5s")


@pytest.fixture(scope="module")
def tokenizer():
  return prompt.Tokenizer.load(TOKENIZER)


@pytest.mark.parametrize(
  "raw, cleaned",
  [
    ("  a \t\n\u3000b\u00a0 ", "a b"),
    ("wind &amp;amp; <S>", "wind & <S>"),
    ("&lt;S&gt;hi&lt;E&gt;", "<S>hi<E>"),
    ("schÃ¶n â€œquotedâ€\x9d", 'schön "quoted"'),
  ],
)
def test_cleaning(raw, cleaned):
  assert prompt.clean(raw) == cleaned


@pytest.mark.parametrize(
  "raw, variant, formatted",
  [
    ("x. Audio:  wind\n ", TAGGED, "x. <AUDCAP>wind\n <ENDAUDCAP>"),
    ("Audio: a Audio: b", TAGGED, "<AUDCAP>a Audio: b<ENDAUDCAP>"),
    ("<AUDCAP>a\nb<ENDAUDCAP> y", LINED, "Audio: a\nb y"),
    (
      "<AUDCAP>a<ENDAUDCAP><AUDCAP>\\1<ENDAUDCAP>",
      LINED,
      "Audio: aAudio: \\1",
    ),
  ],
)
def test_the_other_variants_tag_is_rewritten(raw, variant, formatted):
  ours, notes = prompt.format_for(raw, variant)
  assert ours == formatted
  assert len(notes) == 1 and variant.name in notes[0]


@pytest.mark.parametrize("variant", [TAGGED, LINED])
def test_a_fitting_prompt_stays_as_it_is(variant):
  raw = "A man: <S>hi<E>, then <S>bye<E>."
  end = {TAGGED: "<AUDCAP>wind<ENDAUDCAP>", LINED: "Audio: wind"}[variant]
  assert prompt.format_for(raw + end, variant) == (raw + end, ())


@pytest.mark.parametrize("raw", ["Audio: a", "<AUDCAP>a<ENDAUDCAP>"])
def test_a_variant_without_a_tag_takes_both_forms(raw):
  custom = dataclasses.replace(LINED, audio_tag="")
  assert prompt.format_for(raw, custom) == (raw, ())


@pytest.mark.parametrize(
  "text, notes",
  [
    ("a <S>b", ["<S> (character 3) has no <E> before the end"]),
    (
      "<S>a <S>b<E> <E>",
      [
        "<S> (character 1) has no <E> before <S> (character 6)",
        "<E> (character 14) has no <S> before it",
      ],
    ),
    ("<AUDCAP>x", ["<AUDCAP> (character 1) has no <ENDAUDCAP> before"]),
    (
      "<S>a<ENDAUDCAP>",
      ["<ENDAUDCAP> (character 5) has no <AUDCAP>", "<S> (character 1)"],
    ),
    ("<S> <E>", ["nothing between <S> (character 1) and <E>"]),
    ("<s>a</S>", ["<s> (character 1) is not", "</S> (character 5) is not"]),
  ],
)
def test_misplaced_tags_are_noted(text, notes):
  ours = prompt.tag_notes(text)
  assert len(ours) == len(notes)
  assert all(note.startswith(n) for note, n in zip(ours, notes, strict=True))


def test_token_ids_are_the_originals(golden, tokenizer):
  reference = golden("umt5")
  ids_BS, mask_BS = tokenizer.encode(PROMPTS, 32)
  assert ids_BS.dtype == mask_BS.dtype == np.int32
  np.testing.assert_array_equal(ids_BS, reference["t5_ids"])
  np.testing.assert_array_equal(mask_BS, reference["t5_mask"])


def test_an_empty_prompt_is_its_end_token(tokenizer):
  ids_BS, mask_BS = tokenizer.encode([""], 3)
  assert ids_BS.tolist() == [[tokenizer.eos, tokenizer.pad, tokenizer.pad]]
  assert mask_BS.tolist() == [[1, 0, 0]]


def test_what_was_cut_is_noted(tokenizer):
  assert tokenizer.notes(PROMPTS[1:], 32) == ()
  (note,) = tokenizer.notes(PROMPTS, 32)
  assert "32 are read" in note
  assert "'day?<E> near the sea. Audio: deep male voice, wind & rain'" in note


def test_a_prompt_that_just_fits_is_not_cut(tokenizer):
  length = int(tokenizer.encode(PROMPTS[:1], 100)[1].sum())
  assert tokenizer.notes(PROMPTS[:1], length) == ()
  assert len(tokenizer.notes(PROMPTS[:1], length - 1)) == 1


def test_a_large_vocabulary_reads_every_word(tokenizer):
  text = "A pink elephant \u4f60\u597d e\u0301te\u0301 don't \U0001f642"
  assert tokenizer.unread(text) == []


def test_settings_within_the_file_do_not_count(tokenizer, tmp_path):
  content = json.loads(TOKENIZER.read_text())
  content["truncation"] = {
    "direction": "Right",
    "max_length": 5,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(content))
  ids_BS, _ = prompt.Tokenizer.load(path).encode(PROMPTS, 32)
  np.testing.assert_array_equal(ids_BS, tokenizer.encode(PROMPTS, 32)[0])


def _without(key):
  content = json.loads(TOKENIZER.read_text())
  content[key] = None
  return json.dumps(content)


@pytest.mark.parametrize(
  "content, expected",
  [
    (None, "No such file"),
    ("{", "expected JSON"),
    ('{"a": 1}', "does not describe a tokenizer"),
    (TOKENIZER.read_text().replace("<pad>", "<gap>"), "has no <pad>"),
    (_without("post_processor"), "does not end prompts with </s>"),
  ],
)
def test_an_unfit_tokenizer_file_is_named(content, expected, tmp_path):
  path = tmp_path / "tokenizer.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ValueError, match=expected) as error:
    prompt.Tokenizer.load(path)
  assert str(path) in str(error.value)


def test_a_length_without_room_is_refused(tokenizer):
  with pytest.raises(ValueError, match="at least 1 token, got 0"):
    tokenizer.encode(["a"], 0)


@pytest.mark.parametrize(
  "text, stem",
  [
    ("", "clip"),
    ("<S>?!<E>", "clip"),
    ("CON", "clip_CON"),
    ("<S>Hi, you<E>/../c:\\x*. ", "Hi_you_c_x"),
    ("A <AUDCAP>wind<ENDAUDCAP>", "A_wind"),
    ("नमस्ते 世界", "नमस्ते_世界"),
  ],
)
def test_file_stems(text, stem):
  assert prompt.file_stem(text) == stem


def test_file_stems_are_safe_whatever_the_prompt():
  choose = random.Random(0)
  for _ in range(300):
    text = "".join(chr(choose.randrange(1, 0x3000)) for _ in range(80))
    stem = prompt.file_stem(text)
    assert 1 <= len(stem) <= prompt.STEM_LENGTH
    assert not set(stem) & set('<>:"/\\|?*. \n\t\0')
