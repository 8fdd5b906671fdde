"""A tokenizer.json of unknown origin cannot exhaust or crash a run."""

import base64
import json
import pathlib

import pytest

from ovi_jax import prompt
from ovi_jax import tokenizer_file

FILE = pathlib.Path(prompt.__file__).parent / "convert/standin/tokenizer.json"
REPLACE = {
  "type": "Replace",
  "pattern": {"String": "a"},
  "content": "a" * 10,
}
# A trie of one empty node, then what characters are replaced by.
TABLE = (4).to_bytes(4, "little") + bytes(4)


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
def test_pipelines_that_make_too_much_of_a_text_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    tokenizer_file.parse(content(**changes))


def test_deep_and_huge_files_are_refused(monkeypatch):
  deep = b"[" * 200_000 + b"]" * 200_000
  with pytest.raises(ValueError, match="nested at most 64 deep"):
    tokenizer_file.parse(deep)
  monkeypatch.setattr(tokenizer_file, "MAX_BYTES", 100)
  with pytest.raises(ValueError, match="JSON of at most 100 bytes"):
    tokenizer_file.parse(content())


def test_what_the_library_panics_about_is_an_error():
  # An expression that takes exponential time, until the library gives up.
  split = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
  }
  tokenizer = prompt.Tokenizer.parse(content(pre_tokenizer=split))
  with pytest.raises(ValueError, match=r"cannot read a prompt .*retry-limit"):
    tokenizer.encode(["a" * 40 + "b"], 8)


def test_a_token_that_is_not_there_is_an_error():
  model = json.loads(FILE.read_text())["model"] | {"unk_id": None}
  tokenizer = prompt.Tokenizer.parse(content(model=model))
  with pytest.raises(ValueError, match="cannot read a prompt"):
    tokenizer.encode(["\u4f60"], 8)


def test_ids_beyond_the_embedding_are_refused(tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_bytes(content())
  assert prompt.Tokenizer.load(path, rows=138).eos == 1
  with pytest.raises(ValueError, match="id 137, but the text encoder has 137"):
    prompt.Tokenizer.load(path, rows=137)


def test_the_pipeline_of_umt5_is_read():
  # Its normalizer, with a table of its own size, as converted from T5's.
  spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
  strip = {"type": "Strip", "strip_left": False, "strip_right": True}
  umt5 = sequence(strip, spaces)
  growing = sequence(precompiled(b"a" * 33), strip, spaces)
  parts = tokenizer_file._parts(growing)
  assert [tokenizer_file._growth(p) for p in parts] == [2, 1, 33]
  assert tokenizer_file.parse(content(normalizer=umt5))[1] == 137
