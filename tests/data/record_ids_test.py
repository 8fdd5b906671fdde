"""Record ids in configs and messages."""

import numpy as np
import pytest

from ovi_jax import storage
from ovi_jax.data import record_ids


def test_ids_are_read_from_text_and_files(tmp_path):
  file = tmp_path / "bad.txt"
  file.write_text("1:4  # a comment\n\n# another\n0:29\n0:29\n")
  ids = (29, (1 << 40) | 4)
  assert record_ids.parse(" 1:4, 0:29") == record_ids.parse(str(file)) == ids
  assert record_ids.parse("0:29,1:4,") == record_ids.parse("0:29,,1:4") == ids
  assert record_ids.parse("") == record_ids.parse(",") == ()
  assert record_ids.names(ids) == "0:29, 1:4"
  assert record_ids.names(range(10)).endswith("0:7 and 2 more")
  first, second = record_ids.by_source(ids, [30, 5])
  assert (first.tolist(), second.tolist()) == ([29], [4])


def test_ids_are_read_from_a_file_in_a_bucket(monkeypatch):
  objects = {"gs://bucket/bad.txt": b"1:4\n0:29  # a comment\n"}
  monkeypatch.setattr(storage, "read_bytes", lambda name, _: objects[str(name)])
  ids = record_ids.parse("0:29,1:4")
  assert record_ids.parse("gs://bucket/bad.txt") == ids


@pytest.mark.parametrize("text", ["nowhere.txt", "0-3", "x" * 300, "."])
def test_what_is_no_id_is_refused(text):
  with pytest.raises(ValueError, match="exclude_records: expected ids SOURCE"):
    record_ids.parse(text)


def test_a_bad_entry_of_a_long_list_is_named():
  text = ",".join(f"0:{n}" for n in range(200))
  with pytest.raises(ValueError, match="records, entry 201: .*got 'two'"):
    record_ids.parse(f"{text},two")


def test_a_bad_line_and_a_record_that_does_not_exist_are_named(tmp_path):
  file = tmp_path / "bad.txt"
  file.write_text("0:1\nclip-7\n")
  with pytest.raises(ValueError, match="bad.txt, entry 2: expected SOURCE"):
    record_ids.parse(str(file))
  for wrong in (5, 1 << 40):
    with pytest.raises(ValueError, match="there is no record .*0:0 to 0:4"):
      record_ids.by_source(np.array([0, wrong]), [5])
