"""A run's directory belongs to one configuration."""

import errno
import json
import os
import pathlib

import pytest
from google.api_core import exceptions
from google.cloud import storage as cloud_storage

from ovi_jax import storage
from ovi_jax.checkpoint import workdir

CONFIG = {
  "steps": 10,
  "optimizer": {"rate": 1e-4, "betas": (0.9, 0.99)},
  "log": {"every": 5},
  "init": {},
  "nothing": float("nan"),
}


FREE = ("steps", "log")


def changed(**fields):
  return CONFIG | fields


def test_the_first_start_writes_the_config_and_later_ones_compare(tmp_path):
  for _ in range(2):
    workdir.check_config(tmp_path / "run", CONFIG, FREE)
  (file,) = (tmp_path / "run").iterdir()
  stored = json.loads(file.read_text())
  assert stored["optimizer"] == {"rate": 1e-4, "betas": [0.9, 0.99]}


def test_some_fields_may_change_and_are_followed(tmp_path):
  assert workdir.check_config(tmp_path, CONFIG, FREE) == {}
  other = changed(steps=20, log={"every": 1, "to": "x"})
  changes = workdir.check_config(tmp_path, other, FREE)
  assert changes == {
    "log.every": (5, 1),
    "log.to": (None, "x"),
    "steps": (10, 20),
  }
  # Nothing is written before the run resumes.
  assert json.loads((tmp_path / "config.json").read_text())["steps"] == 10
  said = workdir.change_lines(changes, 7)
  workdir.record_changes(tmp_path, other, changes, 7)
  assert said[-1] == "steps: 10 before, 20 from step 8 on"
  assert json.loads((tmp_path / "config.json").read_text())["steps"] == 20
  assert workdir.check_config(tmp_path, other, FREE) == {}
  workdir.check_config(tmp_path, other | {"seed": 3}, (*FREE, "seed"))
  workdir.add_config_change(tmp_path, {"step": 4, "rolled_back": ["8"]})
  first, second = json.loads((tmp_path / workdir.CHANGES).read_text())
  assert first["step"] == 7 and first["changes"]["log.every"] == [5, 1]
  assert second == {"step": 4, "rolled_back": ["8"]}


def test_every_difference_is_named_with_both_values(tmp_path):
  workdir.check_config(tmp_path, CONFIG, FREE)
  other = changed(
    optimizer={"rate": 2e-4, "betas": [0.9, 0.99], "clip": 1},
    init={"video": "wan"},
    steps=3,
    logs=True,
  )
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(ValueError, match="run of another config") as caught:
    workdir.check_config(tmp_path, other, FREE)
  assert str(caught.value).split("\n  ")[1:] == [
    "init: {} in the run, absent now",
    'init.video: absent in the run, "wan" now',
    "logs: absent in the run, true now",
    "optimizer.clip: absent in the run, 1 now",
    "optimizer.rate: 0.0001 in the run, 0.0002 now"
    " (--config.optimizer.rate=0.0001 sets it back)",
  ]
  assert (tmp_path / "config.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_config_file_is_named(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(ValueError, match=r"config.json is damaged .*expect|Exp"):
    workdir.check_config(tmp_path, CONFIG, FREE)


def test_a_config_that_is_not_json_is_refused(tmp_path):
  with pytest.raises(ValueError, match="a config that is JSON"):
    workdir.check_config(tmp_path, {"a": object()}, FREE)
  assert not list(tmp_path.iterdir())


def test_a_store_that_checkpoints_cannot_be_written_to_is_refused():
  with pytest.raises(ValueError, match="s3://b/run: expected a folder or gs:"):
    workdir.read_config("s3://b/run")


def test_a_directory_may_be_in_a_bucket(bucket, bucket_endpoint):
  run = workdir.locate(f"{bucket}/run")
  names = bucket_endpoint.store.names
  assert names(run.parts[2]) == []
  for _ in range(2):
    workdir.check_config(run, CONFIG, FREE)
  assert names(run.parts[2]) == ["run/config.json"]
  assert workdir.read_config(run)["steps"] == 10
  with pytest.raises(ValueError, match="run of another config"):
    workdir.check_config(run, changed(nothing=1), FREE)


# Credentials of a person, which name no project.
PERSON = {
  "type": "authorized_user",
  "client_id": "a",
  "client_secret": "b",
  "refresh_token": "c",
}


@pytest.mark.parametrize(
  ("credentials", "said"),
  [(None, "DefaultCredentialsError: "), (PERSON, "OSError: Project was not ")],
)
def test_credentials_that_orbax_cannot_use_are_refused(
  bucket, tmp_path, monkeypatch, credentials, said
):
  """gcsfs finds others, so that a run would end when it is started again."""
  for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
  monkeypatch.setenv("NO_GCE_CHECK", "true")
  monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
  if credentials is not None:
    file = tmp_path / "application_default_credentials.json"
    file.write_text(json.dumps(credentials))
  with pytest.raises(OSError, match=rf"cannot use {bucket} \({said}") as e:
    storage.check_described(storage.path(f"{bucket}/run"))
  assert "\n" not in str(e.value)
  assert "gcloud auth application-default login" in str(e.value)
  assert "storage.buckets.get" not in str(e.value)


def test_a_store_that_does_not_answer_is_not_called_a_lack_of_permission(
  bucket, monkeypatch
):
  def ends(client, name):
    raise exceptions.ServiceUnavailable("try again")

  monkeypatch.setattr(cloud_storage.Client, "get_bucket", ends)
  with pytest.raises(OSError, match=r"503 try again\); .* connection") as e:
    workdir.locate(f"{bucket}/run")
  assert "storage.buckets.get" not in str(e.value)


def test_a_read_only_disk_is_one_line(tmp_path, monkeypatch):
  def refuse(path, *_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

  assert workdir.locate(tmp_path / "runs/one") and not list(tmp_path.iterdir())
  monkeypatch.setattr(pathlib.Path, "touch", refuse)
  message = rf"workdir: cannot write to {tmp_path} \(Read-only file system\)"
  for path in (tmp_path, tmp_path / "runs/one"):
    with pytest.raises(ValueError, match=message) as error:
      workdir.locate(path)
    assert "\n" not in str(error.value)
