"""Token ids equal the original's; tokenizer files are bounded."""

import base64
import json
import pathlib

import numpy as np
import pytest

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.convert import standin

PROMPTS = json.loads(
  (pathlib.Path(__file__).parent / "goldens" / "prompts.json").read_text()
)
FILE = standin.HERE / "tokenizer.json"
REPLACE = {
  "type": "Replace",
  "pattern": {"String": "a"},
  "content": "a" * 10,
}
# A trie of one empty node, then what characters are replaced by.
TABLE = (4).to_bytes(4, "little") + bytes(4)


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.Tokenizer.load(FILE)


def content(**changes) -> bytes:
  return json.dumps(json.loads(FILE.read_text()) | changes).encode()


def words(**ids: int) -> dict:
  """A model of whole words."""
  known = {"<pad>": 0, "</s>": 1, "<unk>": 2}
  return {"type": "WordLevel", "vocab": known | ids, "unk_token": "<unk>"}


def sequence(*parts) -> dict:
  return {"type": "Sequence", "normalizers": list(parts)}


def precompiled(*texts: bytes) -> dict:
  table = base64.b64encode(TABLE + b"\0".join(texts)).decode()
  return {"type": "Precompiled", "precompiled_charsmap": table}


def test_token_ids_equal_the_originals(golden, tokenizer):
  reference = golden("umt5")
  ids_BS, mask_BS = tokenizer.encode(PROMPTS, 32)
  assert ids_BS.dtype == mask_BS.dtype == np.int32
  np.testing.assert_array_equal(ids_BS, reference["t5_ids"])
  np.testing.assert_array_equal(mask_BS, reference["t5_mask"])


def test_a_byte_order_mark_is_no_part_of_the_file(tokenizer, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(b"\xef\xbb\xbf" + FILE.read_bytes())
  assert tokenizer_lib.Tokenizer.load(path).eos == tokenizer.eos


def test_an_empty_prompt_is_its_end_token(tokenizer):
  ids_BS, mask_BS = tokenizer.encode([""], 3)
  assert ids_BS.tolist() == [[tokenizer.eos, tokenizer.pad, tokenizer.pad]]
  assert mask_BS.tolist() == [[1, 0, 0]]


def test_truncation_is_noted(tokenizer):
  assert tokenizer.notes(PROMPTS[1:], 32) == ()
  (note,) = tokenizer.notes(PROMPTS, 32)
  assert "more than the limit of 32" in note
  assert "'day?<E> near the sea. Audio: deep male voice, wind & rain'" in note


def test_a_prompt_of_the_maximum_length_is_not_truncated(tokenizer):
  length = int(tokenizer.encode(PROMPTS[:1], 100)[1].sum())
  assert tokenizer.notes(PROMPTS[:1], length) == ()
  assert len(tokenizer.notes(PROMPTS[:1], length - 1)) == 1


def test_words_without_a_token_are_reported_as_unread(tokenizer):
  text = "A pink elephant \u4f60\u597d e\u0301te\u0301 don't \U0001f642"
  # Read as <unk>; all else is spelt out.
  assert tokenizer.unread(text) == ["\u4f60\u597d"]


def test_truncation_settings_of_the_file_are_ignored(tokenizer, tmp_path):
  content = json.loads(FILE.read_text())
  content["truncation"] = {
    "direction": "Right",
    "max_length": 5,
    "strategy": "LongestFirst",
    "stride": 0,
  }
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(content))
  ids_BS, _ = tokenizer_lib.Tokenizer.load(path).encode(PROMPTS, 32)
  np.testing.assert_array_equal(ids_BS, tokenizer.encode(PROMPTS, 32)[0])


def _without(key):
  content = json.loads(FILE.read_text())
  content[key] = None
  return json.dumps(content)


@pytest.mark.parametrize(
  "content, expected",
  [
    (None, "No such file"),
    ("{", "expected JSON"),
    (
      "version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 16837417",
      "found a git-lfs pointer to the file; fetch the file itself",
    ),
    ("<!DOCTYPE html><html>", "found a web page: the address needs a login"),
    ('{"a": 1}', "does not describe a tokenizer"),
    (FILE.read_text().replace("<pad>", "<gap>"), "has no <pad>"),
    (_without("post_processor"), "does not end prompts with </s>"),
  ],
)
def test_an_invalid_tokenizer_file_is_named(content, expected, tmp_path):
  path = tmp_path / "tokenizer.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ValueError, match=expected) as error:
    tokenizer_lib.Tokenizer.load(path)
  assert str(path) in str(error.value)


def test_a_length_without_room_for_a_token_is_refused(tokenizer):
  with pytest.raises(ValueError, match="at least 1 token, got 0"):
    tokenizer.encode(["a"], 0)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"normalizer": sequence(*[REPLACE] * 9)}, r"2e\+09 characters of one"),
    (
      {"normalizer": sequence(REPLACE, sequence(REPLACE, REPLACE))},
      r"2e\+03 characters of one",
    ),
    (
      {
        "normalizer": REPLACE
        | {"pattern": {"Regex": ""}, "content": "a" * 1000}
      },
      r"2e\+03 characters of one",
    ),
    ({"normalizer": precompiled(b"a", b"b" * 999)}, r"2e\+03 characters"),
    (
      {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
      "precompiled_charsmap is truncated",
    ),
    (
      {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "ě"}},
      "precompiled_charsmap is no base64",
    ),
    ({"normalizer": {"type": "Prepend", "prepend": "a" * 999}}, "puts more"),
    ({"normalizer": {"type": "Evil\x1b[2J"}}, r"'Evil\\\\x1b\[2J' is unknown"),
    (
      {
        "pre_tokenizer": {
          "type": "Sequence",
          "pretokenizers": [{"type": "ByteLevel"}] * 30,
        }
      },
      "characters of one",
    ),
    ({"normalizer": sequence(*[{"type": "NFC"}] * 99)}, "more than 64 parts"),
    ({"normalizer": 3}, "does not describe a tokenizer"),
    ({"model": words(a=2**31)}, "it has the id 2147483648"),
    ({"model": words(a=2**33)}, "it has the id 8589934592"),
    ({"model": words(a=10**80)}, "numbers of at most 40 digits"),
    (
      {"added_tokens": [{"id": 2**31, "content": "a"}]},
      "it has the id 2147483648",
    ),
    ({"model": {"type": "Unigram", "unk_id": 9, "vocab": []}}, "not describe"),
  ],
)
def test_pipelines_that_expand_text_too_much_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tokenizer_lib.parse_pipeline(content(**changes))


def test_deep_and_huge_files_are_refused(monkeypatch):
  deep = b"[" * 200_000 + b"]" * 200_000
  with pytest.raises(ValueError, match="nested at most 64 deep"):
    tokenizer_lib.parse_pipeline(deep)
  monkeypatch.setattr(tokenizer_lib, "MAX_BYTES", 100)
  with pytest.raises(ValueError, match="JSON of at most 100 bytes"):
    tokenizer_lib.parse_pipeline(content())


def test_panics_of_the_library_are_value_errors():
  # An expression that takes exponential time, until the library gives up.
  split = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
  }
  tokenizer = tokenizer_lib.Tokenizer.parse(content(pre_tokenizer=split))
  with pytest.raises(ValueError, match=r"cannot read a prompt .*retry-limit"):
    tokenizer.encode(["a" * 40 + "b"], 8)


def test_a_missing_token_is_an_error():
  model = json.loads(FILE.read_text())["model"] | {"unk_id": None}
  tokenizer = tokenizer_lib.Tokenizer.parse(content(model=model))
  with pytest.raises(ValueError, match="cannot read a prompt"):
    tokenizer.encode(["\u4f60"], 8)


def test_ids_beyond_the_embedding_are_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(content())
  assert tokenizer_lib.Tokenizer.load(path, rows=138).eos == 1
  with pytest.raises(ValueError, match="id 137, but the text encoder has 137"):
    tokenizer_lib.Tokenizer.load(path, rows=137)


def test_the_pipeline_of_umt5_is_read():
  # Its normalizer, with a table of its own size, as converted from T5's.
  spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
  strip = {"type": "Strip", "strip_left": False, "strip_right": True}
  umt5 = sequence(strip, spaces)
  growing = sequence(precompiled(b"a" * 33), strip, spaces)
  parts = tokenizer_lib._parts(growing)
  assert [tokenizer_lib._growth(p) for p in parts] == [2, 1, 33]
  assert tokenizer_lib.parse_pipeline(content(normalizer=umt5))[1] == 137
