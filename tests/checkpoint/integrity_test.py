"""Checksums of the files of a directory."""

import json

import pytest
from etils import epath

from ovi_jax.checkpoint import integrity


@pytest.fixture
def folder(tmp_path):
  """Files `a`, `d/b` and `c/b`, with the checksums of the folders."""
  for name, content in (("a", b"1"), ("d/b", b""), ("c/b", b"x")):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
  integrity.write(epath.Path(tmp_path), ("c", "d"))
  return epath.Path(tmp_path)


def test_the_files_of_the_folders_are_listed(folder):
  assert integrity.listing(folder) == {
    "d/b": {"bytes": 0, "crc32": 0},
    "c/b": {"bytes": 1, "crc32": 0x8CDC1683},
  }


def test_files_of_a_folder_with_a_list_are_not_read_again(folder, monkeypatch):
  before = integrity.listing(folder)
  integrity.write(folder / "c")
  read = []
  original = integrity._checksum
  monkeypatch.setattr(
    integrity, "_checksum", lambda p, flush: read.append(str(p)) or original(p)
  )
  integrity.write(folder, ("c", "d"))
  assert read == [f"{folder}/c/checksums.json", f"{folder}/d/b"]
  after = integrity.listing(folder)
  assert after.pop("c/checksums.json") and after == before
  (folder / "c/checksums.json").write_text("{}")
  with pytest.raises(ValueError, match=r"c/checksums.json is damaged"):
    integrity.write(folder, ("c", "d"))


def test_changed_files_are_named(folder):
  listed = integrity.listing(folder)
  assert integrity.problems(folder, listed) == []
  (folder / "d/b").write_bytes(b"longer")
  (folder / "c/b").write_bytes(b"y")
  assert integrity.problems(folder, listed) == [
    "c/b has another checksum than when it was written",
    "d/b has 6 bytes, expected 0",
  ]
  (folder / "d/b").unlink()
  assert integrity.problems(folder, {"d/b": listed["d/b"]}) == [
    "d/b is missing"
  ]


def test_the_list_has_a_checksum_of_its_own(folder):
  path = folder / "checksums.json"
  data = json.loads(path.read_text())
  del data["files"]["d/b"]
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
