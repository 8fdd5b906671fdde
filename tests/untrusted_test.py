"""Untrusted JSON is bounded before it is used."""

import json
import os

import pytest

from ovi_jax import tables
from ovi_jax import tokenizer
from ovi_jax import untrusted
from ovi_jax.convert import reader
from ovi_jax.convert import torch_file
from ovi_jax.curation.engine import storage
from ovi_jax.media import container as media_container
from ovi_jax.media import images
from ovi_jax.media import probe
from ovi_jax.pretrained import tensor_file
from tests.lib import traced_memory


@pytest.mark.parametrize(
  "text",
  ['{"a": [1, 2.5, "x[[[{{{", null, true]}', '"\\"[["', "[]", '{"a": -7}'],
)
def test_plain_json_is_read_as_the_standard_library_reads_it(text):
  assert untrusted.parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
  "text, said",
  [
    ("[" * 100_000, "at most 64 deep"),
    ('{"a":' * 65 + "1" + "}" * 65, "at most 64 deep"),
    ('{"a": "\\\\", "b": ' + "[" * 70, "at most 64 deep"),
    ("1" * 400, "at most 40 digits"),
    ("1e999", "finite numbers"),
    ("-1e" + "9" * 300, "finite numbers"),
    ("NaN", "finite numbers"),
    ('{"a": 1, "a": 2}', "'a' twice"),
    (b"\xff{}", "UTF-8"),
    ("{", "expected JSON"),
    ("", "expected JSON"),
    ('"' + "a" * 2000, "at most 1000 bytes"),
  ],
)
def test_json_outside_the_limits_is_refused(text, said):
  limit = 1000 if len(text) == 2001 else untrusted.MAX_JSON_BYTES
  with pytest.raises(ValueError, match=said):
    untrusted.parse_json(text, max_bytes=limit)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
  path = tmp_path / "a.json"
  for text in ('{"a": 1}', '\ufeff{"a": 1}'):
    path.write_text(text, "utf-8")
    assert untrusted.read_json(path) == untrusted.parse_json(text) == {"a": 1}
  path.write_text('{"a": 1}', "utf-16")
  with pytest.raises(ValueError, match="UTF-8, found UTF-16; save it as UTF-8"):
    untrusted.read_json(path)


def test_64_levels_are_read():
  text = "[" * 64 + "]" * 64
  assert untrusted.parse_json(text) == json.loads(text)


def test_no_more_of_a_file_than_the_limit_is_read(tmp_path):
  path = tmp_path / "a.json"
  path.write_text("[" + " " * 5000 + "]")
  assert untrusted.read_json(path) == []
  with pytest.raises(ValueError, match="at most 100 bytes"):
    untrusted.read_json(path, max_bytes=100)


def test_a_long_text_takes_little_memory_beyond_its_own():
  for text in (b"a" * 2**20, b"\\n" * 2**19):
    with traced_memory.peak() as peak:
      untrusted.parse_json(b'["' + text + b'"]')
    assert peak.bytes < 8 * 2**20


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_opened(tmp_path, kind):
  path = tmp_path / "a.json"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "device":
    path.symlink_to("/dev/zero")
  else:
    path.mkdir()
  with pytest.raises(ValueError, match="expected a regular file"):
    untrusted.read_json(path)


@pytest.mark.parametrize(
  "read",
  [
    tables.read_list,
    tokenizer.Tokenizer.load,
    images.read_image,
    media_container.digest,
    probe.read,
    reader.open_tensors,
    torch_file.open_torch,
    tensor_file.open_safetensors,
    storage.read,
  ],
)
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path, read):
  path = tmp_path / "pipe"
  os.mkfifo(path)
  with pytest.raises((OSError, ValueError), match="a named pipe"):
    read(str(path))


def test_terminal_control_characters_are_escaped():
  assert untrusted.printable("a\x1b[31mb\r\n\u202ec\udc80 ě") == (
    "a\\x1b[31mb\\r\\n\\u202ec\\udc80 ě"
  )
  assert untrusted.printable("a" * 300, 10) == "a" * 10 + "…"


def test_spaces_of_other_scripts_are_kept():
  assert untrusted.escape("a\u3000b\xa0c\nd", keep="\n") == "a\u3000b\xa0c\nd"


def test_more_than_ten_lines_are_counted():
  lines = [str(number) for number in range(12)]
  assert untrusted.shortened(lines[:10]) == lines[:10]
  assert untrusted.shortened(lines, "more rows") == [
    *lines[:10],
    "and 2 more rows",
  ]
