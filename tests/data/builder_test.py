"""Datasets on disk: written atomically, checked when opened."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import schema
from ovi_jax.data import shards
from tests.lib import random_records

RECORDS = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
  """Ten records in shards of four, and a test split."""
  path = tmp_path_factory.mktemp("data") / "clips"
  builder.write(
    path,
    {"train": map(random_records.record, range(RECORDS)), "test": [sound()]},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
    records_per_shard=4,
  )
  return path


def sound() -> schema.Record:
  return random_records.record(77, video=None, audio=20)


@pytest.fixture
def copied(dataset, tmp_path) -> pathlib.Path:
  return shutil.copytree(dataset, tmp_path / "copy")


def test_records_are_read_in_order_and_by_index(dataset):
  split = builder.read(dataset, geometry=random_records.GEOMETRY)
  assert len(split) == RECORDS
  for number in (7, 0, 9, 3):
    wanted = random_records.record(number)
    assert split[number].id == wanted.id
    assert split[number].captions == wanted.captions
    np.testing.assert_array_equal(
      split[number].latents.video, wanted.latents.video
    )
  np.testing.assert_array_equal(split.index, [[3, 4, 6, 12]] * RECORDS)
  np.testing.assert_array_equal(split.null_text, random_records.null_text())
  test = builder.read(dataset, "test")
  np.testing.assert_array_equal(test.index, [[0, 0, 0, 20]])
  assert test[0].latents.video is None


def test_tensorflow_is_not_imported(dataset):
  script = (
    "import sys; from ovi_jax.data import builder;"
    f"builder.read({str(dataset)!r})[0]; assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", script], check=True)


def test_another_process_writes_the_same_bytes(tmp_path):
  script = (
    "import sys; from ovi_jax.data import builder;"
    "from tests.lib import random_records;"
    "records = {'train': map(random_records.record, range(3))};"
    "builder.write(sys.argv[1], records, geometry=random_records.GEOMETRY)"
  )
  for name in ("one", "other"):
    subprocess.run(
      [sys.executable, "-c", script, str(tmp_path / name)],
      check=True,
      cwd=pathlib.Path(__file__).parents[2],
    )
  ours, theirs = (
    {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    for name in ("one", "other")
  )
  assert ours == theirs and len(ours) > 3


def test_a_failed_write_leaves_nothing(tmp_path):
  def broken():
    yield random_records.record(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    builder.write(
      tmp_path / "clips", {"train": broken()}, geometry=random_records.GEOMETRY
    )
  assert not list(tmp_path.iterdir())


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
  class Full:
    def __init__(self, path, options):
      pathlib.Path(path).touch()

    def write(self, record):
      raise RuntimeError("write() failed: No space left on device; writing x")

    def close(self):
      pass

  monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
  with pytest.raises(OSError, match="free some, or choose another.*clips"):
    builder.write(
      tmp_path / "clips", {"train": [sound()]}, geometry=random_records.GEOMETRY
    )
  assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_write_are_no_dataset(tmp_path):
  seen = []

  def watched():
    yield from map(random_records.record, range(3))
    part = next(tmp_path.glob(".clips.*.part"))
    seen.append(shutil.copytree(part, tmp_path / "left"))

  builder.write(
    tmp_path / "clips",
    {"train": watched()},
    geometry=random_records.GEOMETRY,
    records_per_shard=2,
  )
  assert list(seen[0].glob("train-00000.*"))
  with pytest.raises(ValueError, match="not written to the end"):
    builder.read(seen[0])


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
  left = tmp_path / ".clips.99999999.part"
  left.mkdir()
  (left / "train-00000.array_record").touch()
  builder.write(
    tmp_path / "clips", {"train": [sound()]}, geometry=random_records.GEOMETRY
  )
  assert [p.name for p in tmp_path.iterdir()] == ["clips"]


def test_empty_sources_and_duplicate_ids_are_refused(tmp_path):
  for records, message in (
    ([], "'train': the source is empty"),
    ([random_records.record(1)] * 2, "'clip-1' comes twice"),
  ):
    with pytest.raises(ValueError, match=message):
      builder.write(
        tmp_path / "a", {"train": records}, geometry=random_records.GEOMETRY
      )
  with pytest.raises(ValueError, match="no splits"):
    builder.write(tmp_path / "a", {}, geometry=random_records.GEOMETRY)


def test_an_existing_folder_is_left_alone(dataset):
  with pytest.raises(ValueError, match="exists; choose another"):
    builder.write(
      dataset, {"train": [sound()]}, geometry=random_records.GEOMETRY
    )


def test_null_text_of_another_width_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"null_text: expected \[S, 5\]"):
    builder.write(
      tmp_path / "a",
      {"train": [sound()]},
      geometry=random_records.GEOMETRY,
      null_text=np.zeros((1, 6)),
    )


def test_other_geometries_versions_and_splits_are_refused(copied, tmp_path):
  other = dataclasses.replace(random_records.GEOMETRY, audio_channels=20)
  with pytest.raises(ValueError, match="audio_channels: expected 20, got 3"):
    builder.read(copied, geometry=other)
  with pytest.raises(ValueError, match=r"no split 'x'.*\['test', 'train'\]"):
    builder.read(copied, "x")
  (tmp_path / "file").touch()
  for path in (tmp_path, tmp_path / "file"):
    with pytest.raises(ValueError, match="not a dataset of records"):
      builder.read(path)
  file = copied / builder.METADATA
  metadata = json.loads(file.read_text())
  file.write_text(json.dumps({**metadata, "version": "2.1.0"}))
  with pytest.raises(ValueError, match="version 2.1.0, expected 1.0.0"):
    builder.read(copied)
  file.write_text("{")
  with pytest.raises(ValueError, match="metadata.json is damaged"):
    builder.read(copied)


def test_truncated_and_missing_files_are_named_on_opening(copied):
  parts = sorted(copied.glob("*train.array_record*"))
  parts[1].write_bytes(parts[1].read_bytes()[:1000])
  parts[2].unlink()
  with pytest.raises(ValueError) as caught:
    builder.read(copied)
  assert f"{parts[1]}: expected" in str(caught.value)
  assert f"{parts[2]} is missing" in str(caught.value)
  assert parts[0].name not in str(caught.value)


@pytest.mark.parametrize("name", ["index-train.npy", "features.json"])
def test_damage_beside_the_shards_is_named_on_opening(copied, name):
  content = bytearray((copied / name).read_bytes())
  content[-5] ^= 1
  (copied / name).write_bytes(bytes(content))
  with pytest.raises(ValueError, match=f"{name} is damaged: its sha256"):
    builder.read(copied)


def test_damage_in_the_middle_names_file_and_record(copied):
  shard = sorted(copied.glob("*train.array_record*"))[1]
  damaged = bytearray(shard.read_bytes())
  held = [n for n in range(0, 60_000, 50) if any(damaged[n : n + 50])]
  damaged[held[0] + 200] ^= 255
  damaged[held[-1] - 200] ^= 255
  shard.write_bytes(bytes(damaged))
  split, broken = builder.read(copied), []
  for number in range(RECORDS):
    try:
      assert split[number].id == f"clip-{number}"
    except ValueError as error:
      broken.append(number)
      assert f"{shard}: record {number - 4} (number {number}" in str(error)
  assert 7 in broken and set(broken) <= {4, 5, 6, 7}


@pytest.mark.parametrize("part", ["shard", "notes"])
@pytest.mark.parametrize("left", [0, 1, 0.5, 0.999])
def test_a_damaged_shard_is_written_again(tmp_path, part, left):
  records = [random_records.record(n) for n in range(2)]

  def write():
    shards.write(
      tmp_path, "train", 0, records, random_records.GEOMETRY, "float16"
    )

  assert not shards.is_written(tmp_path, "train", 0, 1)
  write()
  assert shards.is_written(tmp_path, "train", 0, 1)
  (path,) = tmp_path.glob("[!.]*" if part == "shard" else ".*")
  data = path.read_bytes()
  path.write_bytes(data[: left if left == 1 else int(left * len(data))])
  assert not shards.is_written(tmp_path, "train", 0, 1)
  write()
  assert shards.is_written(tmp_path, "train", 0, 1)
