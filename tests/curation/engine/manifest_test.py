"""Inputs are numbered once; others are an error or appended."""

import pathlib

import pytest

from ovi_jax.curation.engine import manifest
from ovi_jax.curation.engine import shard_store
from tests.lib.curation import harness


def names(out: pathlib.Path) -> list[list[str]]:
  """The names of the files of each shard."""
  return [
    [
      pathlib.Path(clip.path).name
      for clip in shard_store.read_clips(
        shard_store.ShardFiles(folder=str(out / "inputs"), shard=shard)
      )
    ]
    for shard in range(len(list(out.glob("inputs/*.done"))))
  ]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  made = tmp_path / "in"
  for name in ("b.mp4", "a.mp4", "deep/c.mp4", "deep/[x] #%.mp4"):
    (made / name).parent.mkdir(parents=True, exist_ok=True)
    (made / name).write_bytes(b"x")
  return made


def test_files_are_numbered_in_order_of_their_names(folder, tmp_path):
  out = tmp_path / "out"
  strange = folder / b"n\xff\n.mp4".decode(errors="surrogateescape")
  strange.write_bytes(b"x")
  assert manifest.load_or_create(harness.chosen(out, [folder])) == 3
  assert names(out) == [
    ["a.mp4", "b.mp4"],
    ["[x] #%.mp4", "c.mp4"],
    [strange.name],
  ]
  before = harness.contents(out)
  assert manifest.load_or_create(harness.chosen(out)) == 3
  assert (
    manifest.load_or_create(harness.chosen(out, [folder / "*", folder])) == 3
  )
  assert harness.contents(out) == before


def test_files_globs_and_lists_give_each_file_once(
  folder, tmp_path, monkeypatch
):
  listed = tmp_path / "list.txt"
  listed.write_text(f"{folder}/a.mp4\n\n{folder}/b.mp4\n")
  assert [pathlib.Path(p).name for p in manifest.expand([f"@{listed}"])] == [
    "a.mp4",
    "b.mp4",
  ]
  for data in (
    f"\ufeff{folder}/a.mp4\r\n\r\n{folder}/b.mp4\r\n".encode(),
    f"{folder}/a.mp4\r\n{folder}/b.mp4".encode("utf-16"),
  ):
    listed.write_bytes(data)
    assert manifest.expand([f"@{listed}"]) == [
      f"{folder}/a.mp4",
      f"{folder}/b.mp4",
    ]
  with monkeypatch.context() as patch:
    patch.setenv("HOME", str(folder))
    listed.write_text("~/a.mp4\n")
    assert manifest.expand([f"@{listed}"]) == [f"{folder}/a.mp4"]
    assert manifest.expand(["~/a.mp4"]) == [f"{folder}/a.mp4"]
  every = manifest.expand([f"{folder}/**/*.mp4", str(folder / "a.mp4")])
  assert len(every) == 4
  # Brackets in a name are no pattern where the file is there.
  (one,) = manifest.expand([str(folder / "deep" / "[x] #%.mp4")])
  assert one.endswith("[x] #%.mp4")
  with pytest.raises(ValueError, match="matches no file"):
    manifest.expand([str(folder / "*.mkv")])
  with pytest.raises(ValueError, match="inputs: @/no/list"):
    manifest.expand(["@/no/list"])


def test_other_files_are_an_error_unless_appended(folder, tmp_path):
  out = tmp_path / "out"
  assert manifest.load_or_create(harness.chosen(out, [folder])) == 2
  before = harness.contents(out)
  (folder / "0.mp4").write_bytes(b"x")
  with pytest.raises(ValueError, match=r"1 files are not in .*'.*/0.mp4'"):
    manifest.load_or_create(harness.chosen(out, [folder]))
  with pytest.raises(ValueError, match="was created with 2, got 3"):
    manifest.load_or_create(harness.chosen(out, [folder], shard_size=3))
  assert harness.contents(out) == before
  appended = harness.chosen(out, [folder], append=True)
  assert (
    manifest.load_or_create(appended) == manifest.load_or_create(appended) == 3
  )
  assert names(out)[2] == ["0.mp4"]
  after = harness.contents(out)
  del after["inputs.json"], before["inputs.json"]
  assert before.items() < after.items()
  # Not needed any more, once they are there.
  assert manifest.load_or_create(harness.chosen(out, [folder])) == 3
  (folder / "a.mp4").unlink()
  with pytest.raises(
    ValueError, match="1 files of .* are not among the inputs"
  ):
    manifest.load_or_create(harness.chosen(out, [folder]))


def test_a_run_needs_inputs(tmp_path):
  with pytest.raises(ValueError, match="give --config.inputs"):
    manifest.load_or_create(harness.chosen(tmp_path / "out"))
