"""Records by number over many shards, of which few are open."""

import os
import pickle

import array_record.python.array_record_module as array_record_module
import pytest

from ovi_jax.data import shard_reader

LENGTHS = (2, 1, 3, 1)


@pytest.fixture
def shards(tmp_path) -> list[str]:
  """Files whose records are their numbers over all files."""
  names, number = [], 0
  for length in LENGTHS:
    names.append(str(tmp_path / f"{len(names)}.array_record"))
    writer = array_record_module.ArrayRecordWriter(names[-1], "group_size:1")
    for _ in range(length):
      writer.write(str(number).encode())
      number += 1
    writer.close()
  return names


def open_files() -> set[str]:
  """Paths of the files that this process has open."""
  folder = "/proc/self/fd"
  return {os.path.realpath(f"{folder}/{name}") for name in os.listdir(folder)}


def test_records_are_numbered_over_all_shards(shards):
  reader = shard_reader.ShardReader(shards, LENGTHS)
  assert len(reader) == 7
  assert [reader[n] for n in (6, 0, 2, 5, 3)] == [b"6", b"0", b"2", b"5", b"3"]
  assert reader.place(5) == (shards[2], 2)
  for number in (-1, 7):
    with pytest.raises(IndexError, match=f"below 7, got {number}"):
      reader[number]


def test_few_shards_stay_open(shards, monkeypatch):
  monkeypatch.setattr(shard_reader, "_MAX_OPEN", 2)
  reader = shard_reader.ShardReader(shards, LENGTHS)
  assert not open_files() & set(shards)
  assert [reader[n] for n in range(7)] == [str(n).encode() for n in range(7)]
  assert open_files() & set(shards) == set(shards[2:])
  assert reader[0] == b"0"
  assert open_files() & set(shards) == {shards[0], shards[3]}


def test_another_process_opens_shards_itself(shards):
  reader = shard_reader.ShardReader(shards, LENGTHS)
  assert reader[0] == b"0"
  sent = pickle.dumps(reader)
  del reader
  received = pickle.loads(sent)
  assert not open_files() & set(shards)
  assert received[3] == b"3"
