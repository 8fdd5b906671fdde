"""Hostile datasets: no code is run, no file outside is read."""

import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from ovi_jax import files
from ovi_jax.data import builder
from ovi_jax.data import features
from ovi_jax.data import schema
from ovi_jax.data import shards
from tests.lib import random_records

DEEP = "[" * 100_000
EVIL = "raise SystemExit('a module that the dataset names was imported')\n"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("data") / "clips"
  builder.write(
    path,
    {"train": [random_records.record(0), random_records.record(1)]},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  return path


@pytest.fixture
def dataset(written, tmp_path) -> pathlib.Path:
  return shutil.copytree(written, tmp_path / "clips")


def change(path, **fields):
  """Change metadata, as somebody would who forges a dataset."""
  file = path / builder.METADATA
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def sealed(path):
  """Make sizes and digests in the metadata fit the files."""
  kept = [f for f in path.iterdir() if f.name != builder.METADATA]
  kept = [f for f in kept if f.is_file()]
  change(
    path,
    files={f.name: f.stat().st_size for f in kept},
    digests={
      f.name: shards.digest(f) for f in kept if "array_record" not in f.name
    },
  )


@pytest.mark.parametrize("nested", [False, True])
def test_modules_named_in_features_json_are_not_imported(
  dataset, monkeypatch, nested
):
  (dataset / "evil.py").write_text(EVIL)
  file = dataset / "features.json"
  described = json.loads(file.read_text())
  name = f"{dataset.name}.evil.X"
  if nested:
    described["featuresDict"]["features"]["id"]["pythonClassName"] = name
  else:
    described["pythonClassName"] = name
  file.write_text(json.dumps(described))
  sealed(dataset)
  monkeypatch.syspath_prepend(str(dataset.parent))
  with pytest.raises(ValueError, match=r"features.json describes other"):
    builder.read(dataset)
  assert not [m for m in sys.modules if m.endswith("evil")]


def test_class_names_in_metadata_are_ignored(dataset, monkeypatch):
  """tfds has one function that imports by name; nothing calls it."""

  def called(name):
    raise AssertionError(f"{name} was looked up")

  monkeypatch.setattr(
    features.tfds.features.FeatureConnector, "cls_from_name", called
  )
  assert builder.read(dataset)[1].id == "clip-1"


@pytest.mark.parametrize(
  "name",
  ["/dev/zero", "../outside.npy", "a/../../outside.npy", "", "a\0b", "/"],
)
def test_metadata_names_files_of_its_folder_only(dataset, name):
  (dataset.parent / "outside.npy").write_bytes(b"x")
  listed = json.loads((dataset / builder.METADATA).read_text())["files"]
  change(dataset, files={**listed, name: 0})
  with pytest.raises(ValueError, match=r"metadata\.json names") as caught:
    builder.read(dataset)
  assert "\0" not in str(caught.value)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_outside_and_pipes_are_refused(dataset, kind):
  (shard,) = dataset.glob("*array_record*")
  if kind == "link":
    shard.rename(dataset.parent / "elsewhere")
    shard.symlink_to(dataset.parent / "elsewhere")
    wanted = "leads outside .* through a link"
  else:
    shard.unlink()
    os.mkfifo(shard)
    wanted = "expected a regular file"
  with pytest.raises(ValueError, match=wanted):
    builder.read(dataset)


def test_a_symlinked_folder_is_read(dataset, tmp_path):
  (tmp_path / "link").symlink_to(dataset)
  assert builder.read(tmp_path / "link")[0].id == "clip-0"


@pytest.mark.parametrize(
  "text",
  [
    DEEP,
    '{"version":' * 2000,
    json.dumps([1]),
    '{"version": ' + "1" * 400 + "}",
    '{"version": 1, "geometry": 2, "null_text": 3, "files": 4, "digests": 5}',
  ],
  ids=["deep list", "deep object", "list", "400 digits", "numbers"],
)
@pytest.mark.parametrize("name", ["metadata.json", "features.json"])
def test_bad_json_is_one_error_that_names_the_file(dataset, name, text):
  (dataset / name).write_text(text)
  if name != builder.METADATA:
    sealed(dataset)
  with pytest.raises(ValueError) as caught:
    builder.read(dataset)
  assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "fields",
  [
    {"version": 1},
    {"geometry": {}},
    {"geometry": [1]},
    {"null_text": "?"},
    {"null_text": "AAAA"},
    {"null_text": 5},
    {"files": ["a"]},
    {"files": {"a": "b"}},
    {"digests": {"index-train.npy": 1}},
    {"files": {}},
  ],
  ids=str,
)
def test_metadata_of_wrong_types_is_refused(dataset, fields):
  change(dataset, **fields)
  with pytest.raises(ValueError):
    builder.read(dataset)


@pytest.mark.parametrize("size", [0, -1, 2**40, 1.5, "3", True])
def test_sizes_of_a_geometry_are_positive(dataset, size):
  found = json.loads((dataset / builder.METADATA).read_text())["geometry"]
  change(dataset, geometry={**found, "text_dim": size})
  with pytest.raises(ValueError, match="positive whole numbers"):
    builder.read(dataset)


@pytest.mark.parametrize(
  "lengths", [[], ["0"], ["-1"], ["x"], [2**62], ["1"], "2", None]
)
def test_impossible_shard_lengths_are_refused(dataset, lengths):
  file = dataset / "dataset_info.json"
  info = json.loads(file.read_text())
  info["splits"][0]["shardLengths"] = lengths
  file.write_text(json.dumps(info))
  sealed(dataset)
  with pytest.raises(ValueError):
    builder.read(dataset)


def header(shape, dtype="<i4"):
  """An npy file without its numbers."""
  text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
  "content",
  [
    header((2**60, 4)),
    header((2, 4), "|O") + b"cos\nsystem\n(S'false'\ntR.",
    header((-2, 4)) + bytes(32),
    header((2, 4)) + b"\xff" * 32,
    header((2, 4)).replace(b"(2, 4)", b"((((((") + bytes(32),
    b"PK\x03\x04",
    b"",
  ],
  ids=[
    "2**60 rows",
    "pickle",
    "minus two",
    "negative",
    "brackets",
    "zip",
    "empty",
  ],
)
def test_an_index_is_checked_before_it_is_read(dataset, content):
  (dataset / "index-train.npy").write_bytes(content)
  sealed(dataset)
  with pytest.raises(ValueError, match=r"index-train.npy: expected int32"):
    builder.read(dataset)


FACTS = [
  {"video_shape": [3, 4, 6]},
  {"video_shape": [2**40, 1, 1, 1]},
  {"video_shape": [-1, 4, 6, -4]},
  {"video_shape": "3"},
  {"text_shapes": [[2, 5], 3]},
  {"dtype": "object"},
  {"dtype": ["float16"]},
  {"fps": "24"},
  {"fps": 0},
  {"frames": -9},
  {"scores": {"a": "b"}},
  {"has_video": 1},
  {"version": 1},
]


@pytest.mark.parametrize("wrong", FACTS, ids=str)
def test_facts_of_a_wrong_type_are_refused(wrong):
  encoded = features.encode(random_records.record(0), random_records.GEOMETRY)
  facts = json.loads(encoded["facts"])
  encoded["facts"] = json.dumps({**facts, **wrong})
  raw = features.parse(features.serialize(encoded))
  with pytest.raises(ValueError, match="facts: missing or of a wrong type"):
    features.decode(raw)


@pytest.mark.parametrize("text", [DEEP, "[]", "1" * 400, "{}", "NaN"])
def test_facts_that_are_not_an_object_are_refused(text):
  encoded = features.encode(random_records.record(0), random_records.GEOMETRY)
  raw = features.parse(features.serialize({**encoded, "facts": text}))
  with pytest.raises(ValueError):
    features.decode(raw)


def test_a_record_that_contradicts_the_index_is_named(dataset):
  rows = np.asarray([[3, 4, 6, 12], [3, 4, 6, 11]], np.int32)
  np.save(dataset / "index-train.npy", rows)
  sealed(dataset)
  split = builder.read(dataset)
  assert split[0].id == "clip-0"
  with pytest.raises(ValueError, match=r"record 1 .* the index says"):
    split[1]


def test_a_record_of_other_features_is_named(dataset):
  (shard,) = dataset.glob("*array_record*")
  module = shards.array_record_module
  writer = module.ArrayRecordWriter(str(shard), "group_size:1,uncompressed")
  writer.write(b"\xff\xff")
  writer.write(b"")
  writer.close()
  sealed(dataset)
  split = builder.read(dataset)
  for number, what in enumerate(["expected a tf.train.Example", "'id'"]):
    with pytest.raises(ValueError, match=f"record {number} .*{what}"):
      split[number]


def test_a_deeply_nested_encoding_recipe_is_refused(tmp_path):
  from ovi_jax.data import encode

  (tmp_path / encode.RECIPE).write_text(DEEP)
  with pytest.raises(ValueError, match="nested at most"):
    encode._check_recipe(tmp_path, {}, "remove it")


def test_file_names_are_resolved_within_the_folder(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a/b").write_bytes(b"")
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  (tmp_path / "near").symlink_to("a/b")
  assert files.inside(tmp_path, "a/b") == tmp_path / "a/b"
  assert files.inside(tmp_path, "near") == tmp_path / "near"
  with pytest.raises(FileNotFoundError):
    files.inside(tmp_path, "c")
  for name in ("a", ".", "loop"):
    with pytest.raises((OSError, ValueError)):
      files.inside(tmp_path, name)


def test_published_shards_are_named_as_tfds_names_them(dataset):
  """Names are computed without tfds; both must agree."""
  template = shards._template(dataset, "train")
  assert template.sharded_filepath(shard_index=1, num_shards=12).name == (
    shards.published_name("train", 1, 12)
  )


def test_another_version_is_refused():
  with pytest.raises(ValueError, match="schema version"):
    schema.check_version("9.0.0", "x")
