"""Stage outputs: atomic, deterministic and validated."""

import hashlib
import json
import zipfile

import pytest

from ovi_jax.curation import clip as clips
from ovi_jax.curation.engine import shard
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage

NAME = "a\udcff\n'\"<b>.mp4"  # bytes that are no text, and worse
CLIP = clips.Clip(id="c1", path=NAME, start=1.5, seconds=121 / 24)
FOUND = CLIP.with_facts(
  "quality", {"sharpness": 0.1}, boxes=[[1, 2]], kind="single"
)
REJECT = clips.Reject(
  clip=FOUND, stage="quality", reason="blurred", score=0.1, failed=False
)


def write(
  files: shard_store.ShardFiles, source: str = "s"
) -> shard_store.DoneMarker:
  with shard_store.open_output(files) as opened:
    opened.writer.add(CLIP, [FOUND], {"b": b"two", "a": b"one"})
    # A copy of it in the same shard, and one that goes no further.
    opened.writer.add(CLIP, [FOUND], {"b": b"two", "a": b"one"})
    other = clips.Clip(id="c2", path="x")
    opened.writer.add(other, [REJECT], {"a": b"lost"})
    return opened.commit(source)


@pytest.fixture
def files(tmp_path) -> shard_store.ShardFiles:
  return shard_store.ShardFiles(folder=str(tmp_path / "quality-123"), shard=12)


def test_lines_round_trip(files):
  made = write(files)
  assert list(shard_store.read(files)) == [FOUND, FOUND, REJECT]
  assert list(shard_store.read_clips(files)) == [FOUND, FOUND]
  assert (made.clips, made.rejects, made.failed) == (2, 1, 0)
  assert shard_store.read_marker(files) == made and made.input_hash == "s"
  text = storage.read(files.lines)
  assert made.digest == hashlib.sha256(text).hexdigest()
  assert json.loads(text.splitlines()[0])["clip"]["scores"] == {
    "sharpness": 0.1
  }


def test_files_are_deterministic(files, tmp_path):
  write(files)
  again = shard_store.ShardFiles(folder=str(tmp_path / "again"), shard=12)
  write(again)
  for name in ("lines", "artifacts", "done"):
    one, other = getattr(files, name), getattr(again, name)
    assert storage.read(one) == storage.read(other)
  with zipfile.ZipFile(files.artifacts) as archive:
    assert archive.namelist() == ["c1/a", "c1/b"]
    info = archive.getinfo("c1/a")
    assert info.date_time == (1980, 1, 1, 0, 0, 0)
    assert info.compress_type == zipfile.ZIP_STORED


def test_the_last_artifact_of_a_name_wins(files, tmp_path):
  write(files)
  later = shard_store.ShardFiles(folder=str(tmp_path / "later"), shard=12)
  with shard_store.open_output(later) as opened:
    opened.writer.add(FOUND, [FOUND], {"a": b"new"})
    opened.commit("s")
  folders = [files.folder, str(tmp_path / "none"), later.folder]
  with shard_store.open_artifacts(folders, 12) as kept:
    assert kept(CLIP, "a") == b"new" and kept(CLIP, "b") == b"two"
    with pytest.raises(KeyError, match="no stage stored 'smell' of clip c1"):
      kept(CLIP, "smell")


def test_a_damaged_archive_is_named(files):
  write(files)
  value = storage.read(files.artifacts)
  storage.write(files.artifacts, value.replace(b"two", b"owt"))
  with shard_store.open_artifacts([files.folder], 12) as kept:
    assert kept(CLIP, "a") == b"one"
    with pytest.raises(OSError, match="damaged.*shard-00012.artifacts.zip"):
      kept(CLIP, "b")
  storage.write(files.artifacts, value[:-9])
  with (
    pytest.raises(OSError, match="damaged.*shard-00012.artifacts.zip"),
    shard_store.open_artifacts([files.folder], 12),
  ):
    pass


def test_uncommitted_output_leaves_no_files(files):
  with shard_store.open_output(files) as opened:
    opened.writer.add(CLIP, [FOUND], {"a": b"one"})
  with (
    pytest.raises(KeyboardInterrupt),
    shard_store.open_output(files) as opened,
  ):
    opened.writer.add(CLIP, [FOUND], {"a": b"one"})
    raise KeyboardInterrupt
  assert shard_store.read_marker(files) is None
  assert not list((storage.pathlib.Path(files.folder)).iterdir())
  with pytest.raises(ValueError, match="is not complete; run its pass first"):
    list(shard_store.read(files))


def test_a_stage_without_artifacts_has_no_archive(files):
  write(files)
  with shard_store.open_output(files) as opened:
    opened.writer.add(CLIP, [FOUND], {})
    opened.commit("s")
  assert storage.file_size(files.artifacts) is None
  assert shard_store.read_marker(files).clips == 1


def test_missing_or_damaged_files_do_not_count_as_done(files):
  write(files)
  value = storage.read(files.lines)
  storage.write(files.lines, value.replace(b"single", b"singly"))
  with pytest.raises(ValueError, match="is damaged: its sha256"):
    list(shard_store.read(files))
  storage.write(files.lines, value[:-1])
  assert shard_store.read_marker(files) is None
  storage.write(files.lines, value)
  assert shard_store.read_marker(files) is not None
  storage.remove(files.artifacts)
  assert shard_store.read_marker(files) is None
  storage.write(files.done, b"{")
  with pytest.raises(ValueError, match="done is damaged"):
    shard_store.read_marker(files)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x"])
def test_values_that_are_not_json_are_refused(value):
  with pytest.raises((TypeError, ValueError)):
    shard_store.encode(CLIP.with_facts("quality", value=value))
  # Tuples are what a stage sees as lists after a restart, and so at once.
  line = shard_store.encode(CLIP.with_facts("quality", value=(1, (2,))))
  assert shard_store.decode(line).facts["quality"]["value"] == [1, [2]]


def test_a_bucket_holds_the_same_files(files):
  bucket = shard_store.ShardFiles(
    folder="memory:///bucket/run/quality-123", shard=12
  )
  assert write(bucket) == write(files)
  assert list(shard_store.read(bucket)) == [FOUND, FOUND, REJECT]
  with shard_store.open_artifacts([bucket.folder], 12) as kept:
    assert kept(CLIP, "a") == b"one"
  assert storage.list_files("memory:///bucket/run/**/*.done") == [bucket.done]
  found = storage.list_files("memory:///bucket/run")
  assert found == [bucket.artifacts, bucket.done, bucket.lines]
  with storage.local_copy(bucket.artifacts) as path:
    assert path.suffix == ".zip" and zipfile.is_zipfile(path)
  assert not storage.os.path.exists(path)
  storage.remove(bucket.artifacts)
  assert shard_store.read_marker(bucket) is None


DEEP = "[" * 100_000
BAD = [
  DEEP,
  '{"clips":' * 50_000,
  "[]",
  '{"clips": ' + "1" * 400 + "}",
  "{}",
  '{"a": 1, "a": 1}',
]


def forged(files, /, **changes):
  """Change fields of a marker."""
  marker = json.loads(storage.read(files.done)) | changes
  storage.write(files.done, json.dumps(marker).encode())


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
@pytest.mark.parametrize("ending", ["done", "excluded"])
def test_stored_json_is_read_within_limits(files, ending, text):
  write(files)
  storage.write(files.path(ending), text.encode())
  with pytest.raises(ValueError, match=f"{ending} is damaged: ") as caught:
    shard_store.read_marker(
      files
    ) if ending == "done" else shard.ExcludedClips.read(files)
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
  "changes",
  [
    {"clips": "1"},
    {"clips": True},
    {"failed": -1},
    {"input_hash": 1},
    {"extra": 1},
    {"files": []},
    {"files": {"jsonl": [1]}},
    {"files": {"jsonl": [1, 2]}},
    {"files": {"jsonl": [1, "a"], "/../../x": [1, "a"]}},
  ],
  ids=str,
)
def test_a_marker_of_wrong_types_is_refused(files, changes):
  write(files)
  forged(files, **changes)
  with pytest.raises(ValueError, match="done is damaged: "):
    shard_store.read_marker(files)


@pytest.mark.parametrize(
  "clips_",
  [
    {"a": "b"},
    {"a": ["b"]},
    {"a": [1, 2]},
    [],
  ],
  ids=str,
)
def test_excluded_clips_of_wrong_types_are_refused(files, clips_):
  text = json.dumps({"clips": clips_, "one_by_one": False})
  storage.write(files.excluded, text.encode())
  with pytest.raises(ValueError, match="excluded is damaged: clips: invalid"):
    shard.ExcludedClips.read(files)


@pytest.mark.parametrize(
  "line",
  [
    DEEP,
    "[]",
    "{}",
    '{"clip": {}}',
    '{"clip": 1, "reject": 2}',
    '{"clip": {"id": "a", "path": "b"}}',
    json.dumps({"clip": {**vars(CLIP), "start": "1"}}),
    json.dumps({"clip": {**vars(CLIP), "facts": {"a": 1}}}),
    json.dumps({"clip": {**vars(CLIP), "scores": {"a": None}}}),
    json.dumps({"clip": {**vars(CLIP), "start": 10**400}}),
    json.dumps({"reject": {"clip": vars(CLIP), "stage": "a"}}),
  ],
  ids=lambda line: line[:40],
)
def test_a_line_that_is_not_a_clip_is_named(files, line):
  write(files)
  value = storage.read(files.lines).splitlines()[0] + b"\n" + line.encode()
  storage.write(files.lines, value)
  digest = hashlib.sha256(value).hexdigest()
  listed = json.loads(storage.read(files.done))["files"]
  forged(files, files={**listed, "jsonl": [len(value), digest]})
  with pytest.raises(ValueError, match=r"jsonl, line 2: ") as caught:
    list(shard_store.read(files))
  assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_compressed_archive_members_are_refused(files):
  """A few bytes could become gigabytes."""
  write(files)
  with zipfile.ZipFile(files.artifacts, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("c1/a", bytes(1 << 20))
  with (
    shard_store.open_artifacts([files.folder], files.shard) as kept,
    pytest.raises(OSError, match="expected a stored entry"),
  ):
    kept(CLIP, "a")
