"""Hostile checkpoints: files within their directory, JSON within limits.

Every forged list carries a right checksum of itself: CRC-32 is no signature.
"""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir
from ovi_jax.training import init_from

META = "meta/metadata"
UP = "../" * 20


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  directory = tmp_path_factory.mktemp("run") / "checkpoints"
  state = {"trained_params": {"w": np.arange(6.0).reshape(2, 3)}}
  with manager.Manager(directory) as opened:
    opened.save(1, state, b"\1\2", {"loss": float("nan")})
  return directory


@pytest.fixture
def checkpoint(written, tmp_path) -> pathlib.Path:
  return shutil.copytree(written, tmp_path / "checkpoints") / "1"


def forge(checkpoint, files):
  """Write a list of files, with the checksum that it should have."""
  listing = {"crc32": integrity._crc32_of(files), "files": files}
  (checkpoint / integrity.CHECKSUMS).write_text(json.dumps(listing))


def add(checkpoint, name, size=0):
  forge(
    checkpoint,
    {**integrity.listing(checkpoint), name: {"bytes": size, "crc32": 0}},
  )


def rewrite(checkpoint, text):
  """Replace the description, and its entry in the list."""
  (checkpoint / META).write_text(text)
  integrity.write(epath.Path(checkpoint), ("state", "meta"))


def plan(checkpoint):
  shapes = {"w": np.zeros((2, 3), np.float32)}
  sources = [init_from.Source(path=str(checkpoint), include=(".*",))]
  return init_from.plan(shapes, sources)


def test_an_unmodified_checkpoint_is_read(checkpoint):
  assert plan(checkpoint).scratch == []
  found = reader.read_info(checkpoint)
  assert found.iterators == (b"\1\2",) and np.isnan(found.metadata["loss"])


@pytest.mark.parametrize(
  "name, what",
  [
    (f"{UP}dev/zero", "without '..'"),
    ("/dev/zero", "relative name"),
    ("state/../../2", "without '..'"),
    ("state", "regular file"),
    ("", "relative name"),
    ("a\0b", "relative name"),
    ("\x1b[31mred", "missing"),
  ],
)
def test_a_list_names_files_of_its_directory_only(checkpoint, name, what):
  """`/dev/zero` has the size 0 and never ends."""
  add(checkpoint, name)
  with pytest.raises(ValueError, match=what) as caught:
    plan(checkpoint)
  assert "\n" not in str(caught.value)  # one problem, on a line
  assert "\0" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_link_to_a_file_outside_is_not_read(checkpoint):
  outside = checkpoint.parent / "secret"
  outside.write_bytes(b"")
  (checkpoint / "state/link").symlink_to(outside)
  add(checkpoint, "state/link")
  with pytest.raises(ValueError, match="state/link is no file .*leads outside"):
    plan(checkpoint)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "nothing"])
def test_unlisted_entries_must_be_regular_files(checkpoint, kind):
  """Orbax opens every file in the directory of the state."""
  path = checkpoint / "state/d/x"
  path.parent.mkdir(exist_ok=True)
  if kind == "pipe":
    os.mkfifo(path)
  else:
    targets = {"link": "/dev/zero", "folder": "/dev", "nothing": "nowhere"}
    path.symlink_to(targets[kind])
  with pytest.raises(ValueError, match="state/d/x is "):
    plan(checkpoint)


def test_a_symlinked_description_is_refused(checkpoint):
  outside = checkpoint.parent / "metadata"
  (checkpoint / META).rename(outside)
  (checkpoint / META).symlink_to(outside)
  with pytest.raises(ValueError, match="meta/metadata is no file of the check"):
    reader.read_info(checkpoint)


def test_a_directory_that_is_itself_a_link_is_read(checkpoint, tmp_path):
  (tmp_path / "7").symlink_to(checkpoint)
  assert plan(tmp_path / "7").scratch == []


@pytest.mark.parametrize(
  "text", ["[]", "{}", '{"tree_metadata": 1}', "[" * 100_000, "\x1b[31m"]
)
def test_metadata_of_another_structure_ends_in_one_line(checkpoint, text):
  (checkpoint / "state/_METADATA").write_text(text)
  integrity.write(epath.Path(checkpoint), ("state", "meta"))
  targets = {"trained_params/w": np.zeros((2, 3), np.float64)}
  with pytest.raises(ValueError, match="the arrays cannot be read") as error:
    reader.read(reader.read_info(checkpoint), targets)
  assert str(error.value).isprintable() and len(str(error.value)) < 1000


DEEP = "[" * 100_000
BAD = [
  DEEP,
  '{"a":' * 50_000,
  "[]",
  "null",
  '{"crc32": ' + "1" * 400 + "}",
  '{"files": [], "crc32": 0}',
  '{"files": {"a": 1}, "crc32": 0}',
  '{"files": {"a": {"bytes": "1", "crc32": 0}}, "crc32": 0}',
  '{"files": {}, "files": {}}',
  '{"files": {"\\ud800": {}}}',
  "\xff",
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:30])
def test_a_damaged_file_list_is_named_in_one_line(checkpoint, text):
  (checkpoint / integrity.CHECKSUMS).write_text(text, encoding="latin-1")
  with pytest.raises(ValueError, match=r"checksums.json is damaged") as caught:
    reader.read_info(checkpoint)
  assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def described(checkpoint, **fields):
  return json.dumps(json.loads((checkpoint / META).read_text()) | fields)


@pytest.mark.parametrize(
  "fields",
  [
    {"step": "1"},
    {"step": True},
    {"step": -1},
    {"leaves": []},
    {"leaves": {"w": ["float32", [2, 3]]}},
    {"leaves": {"w": ["float32", [2, -3], False]}},
    {"leaves": {"w": ["float32", [1] * 99, False]}},
    {"leaves": {"w": [["float32"], [2, 3], False]}},
    {"leaves": {"w": "float32"}},
    {"iterators": []},
    {"iterators": [5]},
    {"iterators": [{}]},
    {"iterators": [{"bytes": 5}]},
    {"iterators": [{"bytes": "?"}]},
    {"metadata": 5},
  ],
  ids=str,
)
def test_a_description_of_wrong_types_is_refused_in_one_line(
  checkpoint, fields
):
  rewrite(checkpoint, described(checkpoint, **fields))
  with pytest.raises(ValueError, match="meta/metadata: ") as caught:
    reader.read_info(checkpoint)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", BAD[:5], ids=lambda text: text[:30])
def test_a_description_that_is_not_an_object_is_refused(checkpoint, text):
  rewrite(checkpoint, text)
  with pytest.raises(ValueError, match="meta/metadata: "):
    reader.read_info(checkpoint)


def test_another_format_is_named(checkpoint):
  rewrite(checkpoint, described(checkpoint, format=[DEEP]))
  with pytest.raises(ValueError, match="expected format 1, found") as caught:
    reader.read_info(checkpoint)
  assert len(str(caught.value)) < 500


def test_a_damaged_checkpoint_is_skipped(checkpoint, caplog):
  """A run that is started again meets the same checks."""
  shutil.copytree(checkpoint, checkpoint.with_name("2"))
  rewrite(checkpoint.with_name("2"), described(checkpoint, step=2, leaves=5))
  with manager.Manager(checkpoint.parent) as opened:
    target = {"trained_params": {"w": np.zeros((2, 3))}}
    restored = opened.restore_newest(target)
  assert restored is not None and restored.step == 1


def test_orbax_metadata_is_not_trusted(checkpoint):
  """What it names is not imported; what it claims is no allocation."""
  for file in checkpoint.rglob("_METADATA"):
    text = file.read_text().replace("np.ndarray", "evil.module.Array")
    file.write_text(text)
  integrity.write(epath.Path(checkpoint), ("state", "meta"))
  found = reader.read_info(checkpoint)
  reader.verify(found)
  target = {"trained_params/w": np.zeros((2, 3))}
  try:
    np.testing.assert_array_equal(
      reader.read(found, target)["trained_params/w"],
      np.arange(6.0).reshape(2, 3),
    )
  except ValueError as error:
    assert "evil" in str(error)


@pytest.mark.parametrize("text", BAD[:5], ids=lambda text: text[:30])
def test_a_runs_config_is_read_within_limits(tmp_path, text):
  (tmp_path / workdir.CONFIG).write_text(text)
  with pytest.raises(ValueError, match=r"config.json is damaged|lacks|another"):
    workdir.check_config(tmp_path, {"steps": 1, "seed": 0}, ())


def test_a_step_has_at_most_eighteen_digits(tmp_path):
  for name in ("9" * 200, "7"):
    (tmp_path / name).mkdir()
  assert reader.steps(tmp_path) == [7]
