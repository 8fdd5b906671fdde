"""What may be in `s3://`: weights, samples, tables, pictures and caches."""

import itertools
import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from ovi_jax import files
from ovi_jax import storage
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import requests
from tests.lib import s3_server

s3fs = pytest.importorskip("s3fs", reason="needs ovi_jax[s3]")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server():
  with s3_server.serve() as found, pytest.MonkeyPatch.context() as patch:
    for name, value in found.environment.items():
      patch.setenv(name, value)
    # Earlier tests may have made one that has no credentials.
    s3fs.S3FileSystem.clear_instance_cache()
    yield found
  s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server) -> str:
  """The URL of a new, empty bucket."""
  name = f"test-{next(_numbers)}"
  server.objects[name] = {}
  return f"s3://{name}"


def test_a_file_is_written_listed_read_and_removed(s3, server):
  folder = storage.path(f"{s3}/run")
  storage.check_access(folder)
  assert server.objects[s3[5:]] == {}
  assert not storage.exists(folder)
  storage.write_text(folder / "a.json", "[1]")
  assert storage.exists(folder) and storage.exists(folder / "a.json")
  storage.write_text(folder / "b & ü" / "c", "")
  assert storage.sizes(folder / "b & ü") == {"c": 0}
  assert storage.read_json(folder / "a.json") == [1]
  assert storage.sizes(folder) == {"a.json": 3}
  assert storage.size(folder / "a.json") == 3
  assert storage.create(folder / "d") and not storage.create(folder / "d")
  assert not storage.create(folder / "a.json")
  seen = storage.version(folder / "d")
  storage.write_text(folder / "d", "a")
  assert storage.version(folder / "d") != seen
  assert storage.version(folder / "none") is None
  with storage.local_copy(folder / "a.json") as copy:
    assert json.loads(copy.read_text()) == [1]
  with pytest.raises(KeyError), files.atomic_path(folder / "a.json") as path:
    path.write_text("new")
    raise KeyError
  assert storage.read_bytes(folder / "a.json", 10) == b"[1]"


def test_weights_are_equal_in_s3_and_only_a_part_is_read(
  s3, server, monkeypatch
):
  monkeypatch.setattr(weights, "_MAX_GAP", 0)
  arrays = {"a": np.arange(2 * 64 * 256, dtype="f4").reshape(2, 64, 256)}
  url = f"{s3}/a.safetensors"
  with weights.Writer(url, arrays) as writer:
    writer.write("a", None, arrays["a"])
  loaded = weights.load(url)
  jax.tree.map(np.testing.assert_array_equal, loaded, arrays)
  span = weights._open(url).spans["a"]
  before = server.bytes_read
  index = (slice(None), slice(32, 64), slice(None))
  np.testing.assert_array_equal(
    weights._reader(span)(index), arrays["a"][index]
  )
  assert server.bytes_read - before == arrays["a"].nbytes // 2


def test_a_folder_of_weights_is_read_from_s3(s3, server, weights):
  storage.upload_folder(weights, f"{s3}/weights")
  assert weights_dir.read(f"{s3}/weights") == weights_dir.read(weights)
  del server.objects[s3[5:]]["weights/vocoder.safetensors"]
  with pytest.raises(ValueError, match="missing s3://.*vocoder.safetensors"):
    weights_dir.read(f"{s3}/weights")


def test_prompts_and_images_are_read_from_s3(s3, tmp_path):
  Image.new("RGB", (96, 64)).save(tmp_path / "first.png")
  (tmp_path / "prompts.csv").write_text("text_prompt,image_path\none,first.png")
  storage.upload_folder(tmp_path, f"{s3}/in")
  (found,) = requests.from_file(f"{s3}/in/prompts.csv")
  assert str(found.image) == f"{s3}/in/first.png"
  (expanded,) = requests.expand([found], 1, 0, height=64, width=96, area=6144)
  assert expanded.size == (64, 96)


def test_the_compilation_cache_may_be_in_s3(s3, server):
  """JAX uses etils for it."""
  entry = epath.Path(f"{s3}/cache") / "jit_step-0"
  entry.parent.mkdir(parents=True, exist_ok=True)
  entry.write_bytes(b"program")
  assert entry.exists() and entry.read_bytes() == b"program"
  assert server.objects[s3[5:]] == {"cache/jit_step-0": b"program"}


@pytest.mark.parametrize("is_there", [True, False])
def test_a_bucket_that_cannot_be_used_is_one_line(s3, server, is_there):
  if is_there:
    server.forbidden.add(s3[5:])
  else:
    del server.objects[s3[5:]]
  for use in (
    lambda: storage.check_access(storage.path(f"{s3}/out")),
    lambda: weights_dir.read(f"{s3}/weights"),
    lambda: requests.from_file(f"{s3}/prompts.csv"),
  ):
    with pytest.raises((OSError, ValueError), match=s3) as caught:
      use()
    assert "\n" not in str(caught.value)
