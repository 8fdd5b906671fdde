"""Paths of this machine and of object stores."""

import pathlib

import pytest

from ovi_jax import storage
from ovi_jax.convert import command as convert_command


@pytest.mark.parametrize("name", ["runs/one", "/a:b/c", "a:b", "x"])
def test_local_paths_stay_as_they_are(name):
  assert str(storage.path(name)) == name
  assert not storage.is_remote(storage.path(pathlib.Path(name)))


@pytest.mark.parametrize(
  ("name", "what"),
  [
    ("htp://bucket/run", "unknown scheme htp:; expected a local path, gs://"),
    ("GS://bucket/run", "unknown scheme GS:"),
    ("file:///home/run", "unknown scheme file:"),
    ("gs:/bucket/run", "expected gs://BUCKET/…, check the slashes"),
    ("gs:bucket/run", "check the slashes"),
    ("gs:///bucket/run", "check the slashes"),
    ("gs://", "check the slashes"),
    (pathlib.Path("s3://bucket/run"), "check the slashes"),
    ("htp://\x1b[31m", r"htp://\\x1b\[31m: unknown"),
  ],
)
def test_a_wrong_url_is_one_line(name, what):
  with pytest.raises(ValueError, match=what) as caught:
    storage.path(name)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "use",
  [
    lambda name: convert_command.run(out=name, download="weights"),
    lambda name: convert_command.run(out="x", export=True, weights=name),
    storage.local,
  ],
)
@pytest.mark.usefixtures("bucket_endpoint")
def test_a_bucket_where_files_must_be_local_is_refused(use):
  with pytest.raises(ValueError, match="gs://bucket/x: expected a local path"):
    use("gs://bucket/x")


def test_a_bucket_is_read_and_written(bucket, bucket_endpoint):
  folder = storage.path(f"{bucket}/run")
  assert storage.is_remote(folder)
  storage.check_access(folder)
  assert bucket_endpoint.store.names(bucket.removeprefix("gs://")) == []
  # A driver must not remember this.
  assert not folder.exists() and not storage.exists(folder)
  storage.write_text(folder / "a.json", "[1]")
  assert folder.is_dir() and storage.read_json(folder / "a.json") == [1]
  assert storage.exists(folder) and storage.exists(folder / "a.json")


def test_access_that_ends_while_a_file_is_read_is_one_line(
  bucket, bucket_endpoint
):
  name = storage.path(f"{bucket}/a")
  storage.write_text(name, "text")
  with (
    pytest.raises(OSError, match="cannot use gs://"),
    storage.open_file(name) as file,
  ):
    bucket_endpoint.store.forbidden.add(name.parts[2])
    file.read()
  with pytest.raises(OSError, match="cannot use gs://"):
    storage.exists(name)


def test_access_is_checked_by_reading_what_was_written(bucket, monkeypatch):
  folder = storage.path(f"{bucket}/run")
  monkeypatch.setattr(type(folder), "read_text", lambda path: "another")
  with pytest.raises(OSError, match="run/.access-.* got another"):
    storage.check_access(folder)
  monkeypatch.undo()

  def refuse(path):
    raise OSError("no permission")

  monkeypatch.setattr(type(folder), "unlink", refuse)
  with pytest.raises(OSError, match="run/.access-.*: cannot use .*permission"):
    storage.check_access(folder)
