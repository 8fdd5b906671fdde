"""Bad places of data, weights and results: one line before the first step.

One table for training and sampling. Each row has what is wrong, what is named
so, and the line that is expected; `FAULTS` makes what is wrong.
"""

import importlib.util
import shutil
import types

import gcsfs.credentials
import gcsfs.retry
import google.auth.exceptions
import jax
import pytest

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.data import builder
from ovi_jax.sampling import generate
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings as sample_settings
from ovi_jax.training import loop
from ovi_jax.training import settings
from ovi_jax.training import trainer
from tests.lib import bucket as buckets
from tests.lib import config_values
from tests.lib import random_records
from tests.lib import small_training
from tests.lib import train_runs

WRONG_CLOCK = (
  "invalid_grant: Invalid JWT: Token must be a short-lived token.\nCheck your"
  " iat and exp values in the JWT claim."
)
SLASHES = "expected gs://BUCKET/…, check the slashes"
NO_DRIVER = r"gs:// needs the package gcsfs; .*pip install -e '\.\[gcs\]'"
NO_S3_DRIVER = r"s3:// needs the package s3fs; .*pip install -e '\.\[s3\]'"
S3_DATA = r"expected a dataset on a disk or in gs://"
S3_RUN = r"expected a folder or gs://BUCKET/…; Orbax"
ABSENT = "nothing in the store has this name; check it, and that the bucket"
NO_DATASET = "is not a dataset of records, or was not written to the end"
NO_WEIGHTS = "is no directory; make it with `ovi-convert "
NO_INIT = r"expected converted weights \(ovi_jax.json\) or training checkpoints"
NO_BUCKET = "cannot use gs://absent .*check that the bucket exists"
DENIED = (
  r"cannot use gs://forbidden .*does not have storage.objects access.*"
  "these credentials may list, read, write and delete"
)
CLOCK = "cannot use gs://.*; the clock of this machine differs from the store"
# The sizes of the uploaded weights.
AUDIO = {
  f"model.audio.{name}": size
  for name, size in (
    ("num_layers", 3),
    ("hidden_dim", 64),
    ("mlp_dim", 128),
    ("freq_dim", 32),
  )
}
# Directory of a run, dataset and initial weights of a run; weights, table of
# prompts and results of sampling; a new dataset; the compilation cache.
PLACES = ("run", "data", "init", "weights", "prompts", "clips", "new", "cache")
# What is wrong, what it is wrong with, and the line.
TABLE = [
  *(
    ("unknown scheme", what, r"htp://bucket/x\S*: unknown scheme htp:")
    for what in PLACES
  ),
  *(("slash missing", what, rf"gs:/bucket/x\S*: {SLASHES}") for what in PLACES),
  ("no bucket named", "run", SLASHES),
  *(("no driver", what, NO_DRIVER) for what in PLACES),
  *(
    ("no driver of s3", what, NO_S3_DRIVER)
    for what in ("init", "weights", "prompts", "clips", "cache")
  ),
  ("scheme not for this", "data", S3_DATA),
  ("scheme not for this", "new", S3_DATA),
  ("scheme not for this", "run", S3_RUN),
  ("bucket missing", "run", NO_BUCKET),
  ("bucket missing", "clips", NO_BUCKET),
  ("bucket missing", "cache", NO_BUCKET),
  ("bucket missing", "new", NO_BUCKET),
  ("bucket missing", "data", f"gs://absent/x {NO_DATASET}"),
  ("bucket missing", "init", f"gs://absent/x: {NO_INIT}"),
  ("bucket missing", "weights", f"gs://absent/x {NO_WEIGHTS}"),
  ("bucket missing", "prompts", ABSENT),
  *(("no permission", what, DENIED) for what in PLACES),
  (
    "bucket not described",
    "run",
    r"^gs://(\S+)/x: cannot use gs://\1 \(.* need the permission"
    r" storage\.buckets\.get, which roles/storage\.legacyBucketReader has$",
  ),
  ("account unknown", "run", "cannot use gs://.*check that the bucket exists"),
  *(("clock skew", what, CLOCK) for what in PLACES),
  (
    "weights without a file",
    "weights",
    r"missing gs://.*/vocoder\.safetensors",
  ),
  ("weights without a file", "init", r"missing gs://.*/fusion\.safetensors"),
  ("weights cut", "weights", r"fusion\.safetensors: expected \d+ "),
  ("weights cut", "init", r"fusion\.safetensors: expected \d+ "),
  (
    "weights without a manifest",
    "weights",
    r"gs://.*/ovi_jax\.json is missing",
  ),
  ("weights without a manifest", "init", f"gs://.*: {NO_INIT}, found neither"),
  ("checkpoint without its marker", "init", f"{NO_INIT}, found neither"),
  ("dataset without a shard", "data", r"not whole: gs://.* is missing"),
  ("dataset without metadata", "data", rf"gs://.*/x {NO_DATASET}"),
  ("dataset vanished", "data", rf"gs://.*/x {NO_DATASET}"),
  ("dataset vanished from the disk", "data", rf"/x {NO_DATASET}"),
]


class Faults:
  """Makes what is wrong, each method the place that is then named."""

  def __init__(self, bucket, store, dataset, uploaded, patch, folder):
    self.bucket, self.store = bucket, store
    self.dataset, self.uploaded = dataset, uploaded
    self.patch, self.folder = patch, folder

  def unknown_scheme(self):
    return "htp://bucket/x"

  def slash_missing(self):
    return "gs:/bucket/x"

  def no_bucket_named(self):
    return "gs://"

  def no_driver(self):
    self._without("gcsfs")
    return "gs://bucket/x"

  def no_driver_of_s3(self):
    self._without("s3fs")
    return "s3://bucket/x"

  def scheme_not_for_this(self):
    return "s3://bucket/x"

  def _without(self, package):
    find = importlib.util.find_spec
    self.patch.setattr(
      importlib.util,
      "find_spec",
      lambda name, *more: None if name == package else find(name, *more),
    )

  def bucket_missing(self):
    return "gs://absent/x"

  def no_permission(self):
    return f"gs://{buckets.FORBIDDEN}/x"

  def bucket_not_described(self):
    self.store.undescribed.add(self.bucket.removeprefix("gs://"))
    return f"{self.bucket}/x"

  def clock_skew(self):
    """Google refuses a token that is signed with another time."""
    return self._refused(WRONG_CLOCK)

  def account_unknown(self):
    return self._refused("invalid_grant: account not found")

  def _refused(self, said):
    def refuse(*_):
      raise google.auth.exceptions.RefreshError(said, {"error": said[:13]})

    async def at_once(_):
      pass

    credentials = gcsfs.credentials.GoogleCredentials
    self.patch.setattr(credentials, "apply", refuse)
    # The driver tries six times, and waits in between.
    self.patch.setattr(
      gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=at_once)
    )
    return f"{self.bucket}/x"

  def _without_file(self, name):
    place, objects = self.uploaded
    self.patch.delitem(objects, f"x/{name}")
    return place

  def weights_without_a_file(self):
    self._without_file("fusion.safetensors")
    return self._without_file("vocoder.safetensors")

  def weights_cut(self):
    place, objects = self.uploaded
    whole = objects["x/fusion.safetensors"]
    cut = whole | {"size": str(int(whole["size"]) - 1)}
    self.patch.setitem(objects, "x/fusion.safetensors", cut)
    return place

  def weights_without_a_manifest(self):
    return self._without_file("ovi_jax.json")

  def checkpoint_without_its_marker(self):
    place = storage.path(f"{self.bucket}/x")
    (place / "checkpoints/4/state/_METADATA").write_text("{}")
    return str(place)

  def _dataset_without(self, pattern):
    copy = shutil.copytree(self.dataset, self.folder / "part")
    for path in copy.glob(pattern):
      path.unlink()
    storage.upload_folder(copy, f"{self.bucket}/x")
    return f"{self.bucket}/x"

  def dataset_without_a_shard(self):
    return self._dataset_without("*array_record*")

  def dataset_without_metadata(self):
    """They are uploaded last."""
    return self._dataset_without("metadata.json")

  def dataset_vanished(self):
    return f"{self.bucket}/x"

  def dataset_vanished_from_the_disk(self):
    return str(self.folder / "x")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  return train_runs.dataset(tmp_path_factory.mktemp("data") / "clips", 4)


@pytest.fixture(scope="module")
def uploaded(weights, bucket_endpoint):
  """Whole weights in a store: the place, and the objects to spoil."""
  place = bucket_endpoint.store.create("test-weights")
  storage.upload_folder(weights, f"{place}/x")
  objects = bucket_endpoint.store.storage.objects["test-weights"]
  return f"{place}/x", objects


def train(folder, source, workdir="", changes=()):
  on_all_devices = {"mesh.fsdp": 8, "batch_size": 8}
  config = small_training.config(
    "audio_pretrain", str(source), **on_all_devices, **dict(changes)
  )
  chosen = settings.from_config(config)
  trainer.train(chosen, config.to_dict(), workdir or folder / "run")


def sample(folder, weights, out=""):
  config = config_values.sample_config(num_steps=1)
  generate.run(
    requests=requests.from_prompt(config_values.PROMPTS[0]),
    settings=sample_settings.Settings.from_config(config),
    weights=weights,
    out=out or folder / "clips",
  )


def write_dataset(place):
  builder.write(
    place,
    {"train": map(random_records.record, range(3))},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )


def compile_into(place):
  name = "jax_compilation_cache_dir"
  before = getattr(jax.config, name)
  jax.config.update(name, place)
  try:
    cli.setup_jax()
  finally:
    jax.config.update(name, before)


def contents(store, *folders):
  """Generation of each object in each bucket; size and time of each file."""
  objects = {
    (bucket, name): found["generation"]
    for bucket, names in store.storage.objects.items()
    for name, found in names.items()
  }
  files = {
    path: (status.st_size, status.st_mtime_ns)
    for folder in folders
    for path in folder.rglob("*")
    if path.is_file() and (status := path.stat())
  }
  return set(store.storage.buckets), objects, files


@pytest.mark.parametrize(
  ("fault", "what", "line"), TABLE, ids=[f"{f}-{w}" for f, w, _ in TABLE]
)
def test_bad_input_is_one_line_before_the_first_step(
  fault,
  what,
  line,
  bucket,
  bucket_endpoint,
  dataset,
  weights,
  uploaded,
  tmp_path,
  monkeypatch,
):
  def step(*_):
    raise AssertionError("a step was made")

  monkeypatch.setattr(loop, "run", step)
  monkeypatch.setattr(generate, "_make", step)
  folder = tmp_path / "here"
  folder.mkdir()
  monkeypatch.chdir(folder)
  faults = Faults(
    bucket, bucket_endpoint.store, dataset, uploaded, monkeypatch, tmp_path
  )
  place = getattr(faults, fault.replace(" ", "_"))()
  before = contents(bucket_endpoint.store, tmp_path, dataset, weights)
  use = {
    "run": lambda: train(folder, dataset, place),
    "data": lambda: train(folder, place),
    "init": lambda: train(
      folder, dataset, changes={"init_from.audio": place} | AUDIO
    ),
    "weights": lambda: sample(folder, place),
    "clips": lambda: sample(folder, weights, place),
    "prompts": lambda: requests.from_file(f"{place}/prompts.csv"),
    "new": lambda: write_dataset(place),
    "cache": lambda: compile_into(place),
  }[what]
  with pytest.raises((OSError, ValueError), match=line) as caught:
    use()
  assert "\n" not in str(caught.value), str(caught.value)
  if fault == "bucket not described":
    assert buckets.ACCOUNT in str(caught.value)
  assert not list(folder.rglob("*"))
  after = contents(bucket_endpoint.store, tmp_path, dataset, weights)
  assert after == before
