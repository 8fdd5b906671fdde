"""Converted weights: written in slices, loaded per device."""

import collections
import errno
import os
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
from jax.sharding import PartitionSpec as P

from ovi_jax.convert import mapping
from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights

LEAVES = {
  "blocks/video/ffn/kernel": np.arange(48, dtype=np.float32).reshape(3, 8, 2),
  "blocks/audio/norm/scale": np.arange(6, dtype=np.float32).reshape(3, 2),
  "head/bias": np.arange(3, dtype=ml_dtypes.bfloat16),
  "step": np.int32(7),
  "none": np.zeros((0, 2), np.float32),
}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "stores" / "fusion.safetensors"


@pytest.fixture
def store(path):
  """A finished store of `LEAVES`."""
  with weights.Writer(path, LEAVES, {"variant": "mini"}) as writer:
    fill(writer)
  return path


def fill(writer):
  """Write every leaf, those of blocks by slices in no order."""
  for leaf, array in LEAVES.items():
    if leaf.startswith("blocks"):
      for index in (2, 0, 1):
        writer.write(leaf, index, array[index])
    elif array.size:
      writer.write(leaf, None, array)


def assert_is_whole(tree):
  flat = mapping.flatten(tree)
  assert set(flat) == set(LEAVES)
  for leaf, expected in LEAVES.items():
    assert isinstance(flat[leaf], jax.Array)
    assert flat[leaf].dtype == expected.dtype
    assert np.asarray(flat[leaf]).tobytes() == expected.tobytes(), leaf


def test_written_tensors_are_loaded(store):
  assert_is_whole(weights.load(store))
  assert weights.metadata(store) == {"variant": "mini"}
  assert [p.name for p in store.parent.iterdir()] == [store.name]


def test_the_file_is_safetensors(store):
  with safetensors.safe_open(store, "numpy") as file:
    assert file.metadata() == {"variant": "mini"}
    assert set(file.keys()) == set(LEAVES)
    for leaf in ("blocks/video/ffn/kernel", "step"):
      np.testing.assert_array_equal(file.get_tensor(leaf), LEAVES[leaf])


def test_leaves_start_at_multiples_of_their_width(store):
  for span in tensor_file.open_safetensors(store).spans.values():
    assert span.start % span.dtype.itemsize == 0


def test_the_file_is_renamed_only_when_complete(path):
  with weights.Writer(path, LEAVES) as writer:
    fill(writer)
    assert not path.exists()
  assert path.exists()


def test_disk_space_is_allocated_before_anything_is_written(path):
  leaves = {"w": jax.ShapeDtypeStruct((2**20,), jnp.float32)}
  writer = weights.Writer(path, leaves)
  (partial,) = path.parent.iterdir()
  assert partial.stat().st_blocks * 512 >= 2**22
  writer.abort()
  assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
  ("writes", "message"),
  [
    ([("blocks/video/norm", None)], "'blocks/video/norm' is not one of its 5"),
    ([("head/bias", None)] * 2, "head/bias is written twice"),
    (
      [("blocks/audio/norm/scale", 1)] * 2,
      r"scale\[1\] is written twice",
    ),
    (
      [("blocks/audio/norm/scale", 1), ("blocks/audio/norm/scale", None)],
      "scale is written twice",
    ),
    (
      [("blocks/audio/norm/scale", None), ("blocks/audio/norm/scale", 1)],
      r"scale\[1\] is written twice",
    ),
    ([("blocks/audio/norm/scale", 3)], "has no slice 3"),
    ([("blocks/audio/norm/scale", -1)], "has no slice -1"),
    ([("step", 0)], r"step of shape \(\) has no slice 0"),
  ],
)
def test_unknown_and_double_writes_are_refused(path, writes, message):
  with (
    pytest.raises(ValueError, match=message),
    weights.Writer(path, LEAVES) as writer,
  ):
    for leaf, index in writes:
      array = LEAVES.get(leaf, LEAVES["head/bias"])
      one = array if index is None or not array.ndim else array[0]
      writer.write(leaf, index, one)
  assert not list(path.parent.iterdir())


def test_missing_writes_are_listed(path):
  message = r"4 parts were never written: .*scale\[0\], .*scale\[2\], blocks/vi"
  with (
    pytest.raises(ValueError, match=message),
    weights.Writer(path, LEAVES) as writer,
  ):
    writer.write("blocks/audio/norm/scale", 1, np.zeros(2, np.float32))
    writer.write("head/bias", None, LEAVES["head/bias"])
  assert not list(path.parent.iterdir())


def test_shapes_and_dtypes_must_match(path):
  writer = weights.Writer(path, LEAVES)
  with pytest.raises(ValueError, match=r"\[0\]: expected float32 \(2,\), got"):
    writer.write("blocks/audio/norm/scale", 0, np.zeros((1, 2), np.float32))
  with pytest.raises(ValueError, match=r"expected int32 .* got float32"):
    writer.write("step", None, np.float32(1))
  writer.abort()
  with pytest.raises(ValueError, match="w is complex128, expected one of"):
    weights.Writer(path, {"w": np.zeros(2, np.complex128)})
  for leaves, message in (
    ({"a": LEAVES["step"], "a/b": LEAVES["step"]}, "'a' is a leaf and holds"),
    ({"a//b": LEAVES["step"]}, "'a//b' is not a path"),
    ({"__metadata__": LEAVES["step"]}, "__metadata__"),
  ):
    with pytest.raises(ValueError, match=message):
      weights.Writer(path, leaves)


def test_transposed_arrays_are_written_in_pieces_and_converted(
  path, monkeypatch
):
  monkeypatch.setattr(weights, "_PIECE", 16)
  array = np.arange(60, dtype=np.float64).reshape(3, 20).T
  leaf = jax.ShapeDtypeStruct((20, 3), jnp.bfloat16)
  with weights.Writer(path, {"w": leaf}) as writer:
    writer.write("w", None, array)
  loaded = weights.load(path)["w"]
  assert loaded.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(loaded, np.float64), array)


def test_an_error_while_writing_leaves_nothing(path):
  with pytest.raises(KeyError), weights.Writer(path, LEAVES) as writer:
    fill(writer)
    raise KeyError
  assert not list(path.parent.iterdir())


def test_metadata_may_be_set_late_and_has_a_size_limit(path):
  with weights.Writer(path, LEAVES) as writer:
    fill(writer)
    writer.metadata["content"] = "x" * 4000
  assert weights.metadata(path) == {"content": "x" * 4000}
  path.unlink()
  for late, message in (("x" * 9000, "metadata that fits"), (3, "of text")):
    with (
      pytest.raises(ValueError, match=message),
      weights.Writer(path, LEAVES) as writer,
    ):
      fill(writer)
      writer.metadata["content"] = late
    assert not list(path.parent.iterdir())


def test_a_full_disk_is_reported(path, monkeypatch):
  usage = collections.namedtuple("usage", "free")
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "disk_usage", lambda path: usage(99))
    with pytest.raises(OSError, match=r"GiB free, found 0.0; make") as error:
      weights.Writer(path, LEAVES)
  assert error.value.errno == errno.ENOSPC
  assert not list(path.parent.iterdir())

  def full(*_):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")

  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(OSError, match=r"GiB .Disk quota exceeded.; make room"):
    weights.Writer(path, LEAVES)
  assert not list(path.parent.iterdir())


@pytest.mark.parametrize("refused", [None, errno.EOPNOTSUPP])
def test_a_file_system_without_fallocate_is_supported(
  path, monkeypatch, refused
):
  if refused is None:  # macOS
    monkeypatch.delattr(os, "posix_fallocate")
  else:

    def cannot(*_):
      raise OSError(refused, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
  with weights.Writer(path, LEAVES) as writer:
    for leaf, array in LEAVES.items():
      writer.write(leaf, None, array)
  assert_is_whole(weights.load(path))


def test_only_floating_leaves_are_cast(store):
  tree = weights.load(store, dtype=jnp.bfloat16)
  assert tree["step"].dtype == jnp.int32 and tree["step"] == 7
  kernel = tree["blocks"]["video"]["ffn"]["kernel"]
  assert kernel.dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    np.asarray(kernel, np.float32), LEAVES["blocks/video/ffn/kernel"]
  )


def test_a_prefix_matches_whole_names(store):
  tree = weights.load(store, prefix="blocks/audio")
  assert set(mapping.flatten(tree)) == {"blocks/audio/norm/scale"}
  tree = weights.load(store, prefix=("step", "head"))
  assert set(tree) == {"head", "step"}
  with pytest.raises(ValueError, match="'blocks/aud', found only blocks, head"):
    weights.load(store, prefix="blocks/aud")


def test_each_device_reads_only_its_shard(store):
  mesh = jax.make_mesh((8,), ("tensor",))
  split = jax.sharding.NamedSharding(mesh, P(None, "tensor"))
  whole = jax.sharding.NamedSharding(mesh, P())
  name = "blocks/video/ffn/kernel"
  tree = weights.load(store, lambda leaf, s: split if leaf == name else whole)
  assert_is_whole(tree)
  kernel = tree["blocks"]["video"]["ffn"]["kernel"]
  assert kernel.sharding == split
  for shard in kernel.addressable_shards:
    np.testing.assert_array_equal(shard.data, LEAVES[name][shard.index])
    assert shard.data.shape == (3, 1, 2)
  assert_is_whole(weights.load(store, whole))


def test_shardings_may_be_a_tree(store):
  one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
  tree = mapping.nest({leaf: one for leaf in LEAVES})
  loaded = weights.load(store, tree)
  assert_is_whole(loaded)
  assert loaded["head"]["bias"].devices() == {jax.devices()[3]}
  del tree["blocks"]["audio"]
  with pytest.raises(ValueError, match="1 have none: blocks/audio/norm/scale"):
    weights.load(store, tree)
  assert "head" in weights.load(store, tree, prefix="head")


@pytest.mark.parametrize("devices", [1, 8])
def test_loaded_arrays_outlive_the_file(store, devices):
  sharding = None
  if devices == 8:
    mesh = jax.make_mesh((8,), ("all",))
    sharding = jax.sharding.NamedSharding(mesh, P())
  tree = weights.load(store, sharding)
  size = store.stat().st_size
  with store.open("r+b") as file:  # a page still shared would now change
    file.write(b"\xff" * size)
  store.unlink()
  assert_is_whole(tree)


def test_shapes_are_known_without_reading(store):
  shapes = weights.shapes(store)
  assert {p: (s.shape, s.dtype) for p, s in shapes.items()} == {
    p: (a.shape, a.dtype) for p, a in LEAVES.items()
  }


def test_layers_are_read_as_slices_of_stacked_tensors(store):
  read = weights.slices(store)
  for leaf, array in LEAVES.items():
    np.testing.assert_array_equal(read(leaf, None), array)
  leaf = "blocks/video/ffn/kernel"
  for index in range(3):
    np.testing.assert_array_equal(read(leaf, index), LEAVES[leaf][index])
  with pytest.raises(ValueError, match="no slice 3"):
    read(leaf, 3)
  with pytest.raises(ValueError, match="no tensor 'other'"):
    read("other", 0)


def test_missing_and_damaged_files_are_named(store):
  with pytest.raises(ValueError, match=r"convert_torch_weights.py"):
    weights.load(store.with_name("none.safetensors"))
  raw = store.read_bytes()
  store.write_bytes(raw[:-1])
  message = f"expected {len(raw)} bytes, .* found {len(raw) - 1}"
  with pytest.raises(ValueError, match=message):
    weights.load(store)
  both = {
    name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    for name in ("a", "a/b")
  }
  header = str(both).replace("'", '"').encode()
  store.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(ValueError, match="'a' is a leaf and holds 'a/b'"):
    weights.shapes(store)
