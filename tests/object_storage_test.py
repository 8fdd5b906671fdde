"""Weights, datasets, samples and logs in an object store."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ovi_jax import files
from ovi_jax import storage
from ovi_jax.data import builder
from ovi_jax.data import shards
from ovi_jax.pretrained import weights
from ovi_jax.sampling import generate
from ovi_jax.sampling import requests
from ovi_jax.sampling import settings
from ovi_jax.training import logs
from tests.lib import config_values
from tests.lib import random_records


def upload(folder: pathlib.Path, url: str) -> str:
  storage.upload_folder(folder, url)
  return url


def write_leaves(path, **leaves) -> None:
  arrays = {name: np.asarray(value) for name, value in leaves.items()}
  with weights.Writer(path, arrays) as writer:
    for name, array in arrays.items():
      writer.write(name, None, array)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("data") / "clips"
  write_dataset(path)
  return path


def write_dataset(path, records_per_shard: int = 1) -> None:
  builder.write(
    path,
    {"train": map(random_records.record, range(3))},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
    records_per_shard=records_per_shard,
  )


def test_weights_are_equal_in_a_store_and_on_a_disk(bucket, tmp_path):
  leaves = {
    "a": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "b": np.float32(7),
    "c": np.zeros((0, 2), "f4"),
  }
  url = f"{bucket}/weights/a.safetensors"
  write_leaves(url, **leaves)
  write_leaves(tmp_path / "a.safetensors", **leaves)
  local = (tmp_path / "a.safetensors").read_bytes()
  assert storage.read_bytes(url, 1 << 20) == local
  for place in (url, tmp_path / "a.safetensors"):
    loaded = weights.load(place)
    jax.tree.map(np.testing.assert_array_equal, loaded, leaves)
  np.testing.assert_array_equal(weights.slices(url)("a", 1), leaves["a"][1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_device_gets_its_slices_of_weights_in_a_store(bucket, axis):
  array = np.arange(64, dtype="f4").reshape(4, 4, 4)
  url = f"{bucket}/a.safetensors"
  write_leaves(url, a=array)
  mesh = jax.make_mesh(
    (4,),
    ("x",),
    devices=jax.devices()[:4],
    axis_types=(jax.sharding.AxisType.Auto,),
  )
  parts: list[str | None] = [None] * 3
  parts[axis] = "x"
  spec = jax.sharding.PartitionSpec(*parts)
  loaded = weights.load(url, jax.sharding.NamedSharding(mesh, spec))["a"]
  np.testing.assert_array_equal(loaded, array)


def test_only_the_slices_of_a_device_are_read_from_a_store(
  bucket, bucket_endpoint, monkeypatch
):
  monkeypatch.setattr(weights, "_MAX_GAP", 0)
  array = np.arange(2 * 64 * 256, dtype="f4").reshape(2, 64, 256)
  url = f"{bucket}/a.safetensors"
  write_leaves(url, a=array)
  span = weights._open(url).spans["a"]
  read = bucket_endpoint.bytes_read_from
  name = bucket.removeprefix("gs://")
  before = read[name]
  index = (slice(None), slice(32, 64), slice(None))
  part = weights._reader(span)(index)
  np.testing.assert_array_equal(part, array[index])
  assert read[name] - before == array.nbytes // 2


@pytest.mark.parametrize(
  ("bounds", "count", "size"),
  [
    (((0, 30), (12, 24), (0, 3072)), 30, 30 * 12 * 3072 * 2),
    (((0, 30), (0, 3072), (0, 3072)), 1, 30 * 3072 * 3072 * 2),
    (((5, 10), (0, 3072), (0, 3072)), 1, 5 * 3072 * 3072 * 2),
    # Columns: the bytes between them take less time than a request for each.
    (((0, 30), (0, 3072), (0, 12)), 1, 30 * 3072 * 3072 * 2),
  ],
)
def test_ranges_of_a_large_leaf_are_few(bounds, count, size):
  ranges, _ = weights.ranges_of((30, 3072, 3072), 2, bounds)
  assert len(ranges) == count
  assert sum(end - start for start, end in ranges) == size


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n", b"\n--==0==", b""])
def test_any_bytes_are_stored(bucket, end):
  url = f"{bucket}/bytes"
  with storage.path(url).open("wb") as file:
    file.write(b"\x00\xff" + end)
  assert storage.read_bytes(url, 100) == b"\x00\xff" + end


def test_a_dataset_is_equal_in_a_store_and_on_a_disk(bucket, dataset):
  url = f"{bucket}/data/clips"
  write_dataset(url)
  local, remote = builder.read(dataset), builder.read(url)
  assert builder.splits(url) == ["train"]
  assert remote.identity == local.identity
  assert len(remote) == 3
  for number in range(3):
    np.testing.assert_array_equal(
      remote[number].latents.video, local[number].latents.video
    )
  with pytest.raises(ValueError, match="exists; choose another"):
    write_dataset(url)


def test_an_interrupted_upload_of_a_dataset_is_repeated(
  bucket, dataset, tmp_path, monkeypatch
):
  folder, url = shutil.copytree(dataset, tmp_path / "data"), f"{bucket}/data"
  (folder / ".notes").touch()

  def stops(source, name):
    if name.endswith(shards.METADATA):
      raise OSError("connection lost")
    upload_file(source, name)

  upload_file = storage.upload
  with monkeypatch.context() as patch:
    patch.setattr(storage, "upload", stops)
    with pytest.raises(OSError, match="connection lost"):
      shards.publish(folder, storage.locate(url))
  assert (folder / ".notes").exists()
  assert ".notes" not in storage.sizes(url)
  assert not shards.is_published(storage.locate(url))
  write_dataset(url)
  assert shards.is_published(storage.locate(url))
  assert len(builder.read(url)) == 3


def test_40_000_shards_of_a_dataset_are_listed_and_not_asked_for_one_by_one(
  bucket, bucket_endpoint, dataset, tmp_path
):
  folder = shutil.copytree(dataset, tmp_path / "many")
  metadata = json.loads((folder / shards.METADATA).read_text())
  info = json.loads((folder / "dataset_info.json").read_text())
  (train,) = info["splits"]
  # Those that have no bytes are never opened; each describes one record.
  count = len(train["shardLengths"]) + 40_000
  train["shardLengths"] = ["1"] * count
  (folder / "dataset_info.json").write_text(json.dumps(info))
  names = [shards.published_name("train", n, count) for n in range(count)]
  for number in range(3):
    old = shards.published_name("train", number, 3)
    (folder / old).rename(folder / names[number])
    metadata["files"][names[number]] = metadata["files"].pop(old)
  index = shards.index_path(folder, "train")
  rows = np.load(index)
  np.save(index, np.concatenate([rows, np.repeat(rows[-1:], 40_000, 0)]))
  empty = names[3:]
  metadata["files"] |= dict.fromkeys(empty, 0)
  for name in ("dataset_info.json", index.name):
    metadata["files"][name] = (folder / name).stat().st_size
    metadata["digests"][name] = shards.digest(folder / name)
  (folder / shards.METADATA).write_text(json.dumps(metadata))
  url = upload(folder, f"{bucket}/many")
  before = len(bucket_endpoint.requests)
  with bucket_endpoint.store.empty_objects(url, empty):
    split = builder.read(url)
    assert len(split) == count
    assert split[2].id == random_records.record(2).id
    assert split.data.place(count - 1) == (f"{url}/{names[-1]}", 0)
  name = bucket.removeprefix("gs://")  # earlier tests may still ask
  requests_made = [
    request
    for request in bucket_endpoint.requests[before:]
    if name in request[1]
  ]
  assert len(requests_made) < 40
  asked = [path for _, path in requests_made if f"-of-{count:05d}" in path]
  assert asked and all(names[2] in path for path in asked)


def test_a_store_that_cannot_be_read_is_no_damaged_record(
  bucket, bucket_endpoint, dataset
):
  split = builder.read(upload(dataset, f"{bucket}/data"))
  assert split[0].id == random_records.record(0).id
  forbidden = bucket_endpoint.store.forbidden
  forbidden.add(bucket.removeprefix("gs://"))
  for number in (0, 1):  # of an open shard, and of another
    with pytest.raises(OSError, match=f"cannot use {bucket}"):
      split[number]
  forbidden.discard(bucket.removeprefix("gs://"))
  assert split[1].id == random_records.record(1).id


def test_a_dataset_that_vanishes_during_a_run_is_named(bucket, dataset):
  split = builder.read(upload(dataset, f"{bucket}/data"))
  assert split[0].id == random_records.record(0).id
  name, _ = split.data.place(2)
  storage.path(name).unlink()
  with pytest.raises(FileNotFoundError, match="nothing in the store") as caught:
    split[2]
  assert caught.value.filename == name


def test_logs_in_a_store_are_uploaded_at_flushes_and_added_to(
  bucket, bucket_endpoint, log_lines
):
  forbidden = bucket_endpoint.store.forbidden
  run = f"{bucket}/run"
  with logs.Logs(run) as writer:
    assert logs.read(run) == []
    writer.scalars(1, {"loss": 2.0})
    writer.flush()
    assert [line["loss"] for line in logs.read(run)] == [2.0]
    writer.scalars(2, {"loss": 1.0})
    forbidden.add(bucket.removeprefix("gs://"))
    writer.flush()
    assert "logs are not uploaded, trying again later" in log_lines[-1]
    forbidden.discard(bucket.removeprefix("gs://"))
  with logs.Logs(run) as writer:
    writer.scalars(3, {"loss": 0.5})
  assert [line["loss"] for line in logs.read(run)] == [2.0, 1.0, 0.5]
  assert len(storage.sizes(f"{run}/{logs.EVENTS}")) == 2


def test_a_file_of_a_store_keeps_its_content_if_the_writer_fails(bucket):
  path = storage.locate(f"{bucket}/a")
  with files.atomic_path(path) as temporary:
    temporary.write_text("old")
  with pytest.raises(KeyError), files.atomic_path(path) as temporary:
    temporary.write_text("new")
    raise KeyError
  assert storage.read_bytes(path, 10) == b"old"
  assert list(storage.sizes(bucket)) == ["a"]


def test_prompts_and_images_are_read_from_a_store(bucket, tmp_path):
  Image.new("RGB", (96, 64)).save(tmp_path / "first.png")
  storage.upload(tmp_path / "first.png", f"{bucket}/in/first.png")
  table = f"text_prompt,image_path\none,{bucket}/in/first.png\ntwo,first.png\n"
  (tmp_path / "prompts.csv").write_text(table)
  storage.upload(tmp_path / "prompts.csv", f"{bucket}/in/prompts.csv")
  found = requests.from_file(f"{bucket}/in/prompts.csv")
  assert [str(r.image) for r in found] == [f"{bucket}/in/first.png"] * 2
  expanded = requests.expand(found, 1, 0, height=64, width=96, area=64 * 96)
  assert [r.size for r in expanded] == [(64, 96)] * 2
  with pytest.raises(ValueError, match="image is missing: gs://"):
    requests.from_prompt("one", f"{bucket}/in/none.png")


def prompts(url):
  return requests.from_file(f"{url}/prompts.csv")


@pytest.mark.slow
def test_a_run_between_stores_writes_the_same_bytes_as_a_local_one(
  bucket, weights, tmp_path
):
  url = upload(weights, f"{bucket}/weights")
  chosen = settings.Settings.from_config(
    config_values.sample_config(num_steps=1)
  )
  for source, out in ((weights, tmp_path / "out"), (url, f"{bucket}/out")):
    generate.run(
      requests=requests.from_prompt(config_values.PROMPTS[0]),
      settings=chosen,
      weights=source,
      out=out,
      save_latents=True,
    )
  local = {
    p.relative_to(tmp_path / "out").as_posix(): p.read_bytes()
    for p in (tmp_path / "out").rglob("*")
    if p.is_file()
  }
  store = bucket_names(bucket, "out/")
  assert store.keys() == local.keys() and len(local) == 3
  for name, content in local.items():
    assert store[name] == content, name


def bucket_names(url: str, prefix: str) -> dict[str, bytes]:
  """Contents of the objects below a prefix, by the rest of their names."""
  system, root = storage.file_system(f"{url}/{prefix}")
  return {
    name.partition(prefix)[2]: system.cat_file(name)
    for name in system.find(root)
  }
