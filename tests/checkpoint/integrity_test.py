"""Checksums of the files of a directory."""

import json

import pytest

from ovi_jax.checkpoint import integrity


@pytest.fixture
def folder(tmp_path):
  """Files `a` (left out), `b` and `c/b`, with their checksums."""
  (tmp_path / "c").mkdir()
  for name, content in (("a", b"1"), ("b", b""), ("c/b", b"x")):
    (tmp_path / name).write_bytes(content)
  integrity.write(tmp_path, ["a"])
  return tmp_path


def test_all_files_are_listed(folder):
  assert integrity.listing(folder) == {
    "b": {"bytes": 0, "crc32": 0},
    "c/b": {"bytes": 1, "crc32": 0x8CDC1683},
  }


def test_files_of_a_folder_with_a_list_are_not_read_again(folder, monkeypatch):
  before = integrity.listing(folder)
  integrity.write(folder / "c")
  read = []
  original = integrity._checksum
  monkeypatch.setattr(
    integrity, "_checksum", lambda p, flush: read.append(p) or original(p)
  )
  integrity.write(folder, ["a"])
  assert read == [folder / "b", folder / "c/checksums.json"]
  after = integrity.listing(folder)
  assert after.pop("c/checksums.json") and after == before
  (folder / "c/checksums.json").write_text("{}")
  with pytest.raises(ValueError, match=r"c/checksums.json is damaged"):
    integrity.write(folder)


def test_changed_files_are_named(folder):
  listed = integrity.listing(folder)
  assert integrity.problems(folder, listed) == []
  (folder / "b").write_bytes(b"longer")
  (folder / "c/b").write_bytes(b"y")
  assert integrity.problems(folder, listed) == [
    "b has 6 bytes, expected 0",
    "c/b has another checksum than when it was written",
  ]
  (folder / "b").unlink()
  assert integrity.problems(folder, {"b": listed["b"]}) == ["b is missing"]


def test_the_list_has_a_checksum_of_its_own(folder):
  path = folder / "checksums.json"
  data = json.loads(path.read_text())
  del data["files"]["b"]
  path.write_text(json.dumps(data))
  with pytest.raises(ValueError, match="its own checksum differs"):
    integrity.listing(folder)
  for text in ("", "[]", "{}", '{"files": 3, "crc32": 1}'):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"checksums.json is damaged"):
      integrity.listing(folder)
  path.unlink()
  with pytest.raises(ValueError, match=r"checksums.json is missing"):
    integrity.listing(folder)


def test_long_lists_are_cut():
  assert integrity.shorten(list("abcd")) == "a; b; c; d"
  assert integrity.shorten(list("abcdef")) == "a; b; c; d; and 2 more"
