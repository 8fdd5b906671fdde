"""Training checkpoints: bit-exact restore, verification, fallback."""

import dataclasses
import errno
import functools
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import tree_spec

P = jax.sharding.PartitionSpec


class State(NamedTuple):
  params: dict
  optimizer: tuple
  key: jax.Array
  step: jax.Array
  epoch: int
  host: np.ndarray
  absent: None = None


def sharding(*sizes):
  """A sharding of rows over a mesh of some of the devices."""
  devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
  names = ("data", "fsdp")[: len(sizes)]
  mesh = jax.sharding.Mesh(devices, names)
  return jax.sharding.NamedSharding(mesh, P(names))


def state(seed=0, rows=None):
  """A training state such as a loop has."""
  rows = rows or sharding(8)
  whole = jax.sharding.NamedSharding(rows.mesh, P())
  random = np.random.default_rng(seed)
  params = {
    "blocks": {"kernel": random.normal(size=(16, 4)).astype(np.float32)},
    "head": random.normal(size=(8,)).astype(jnp.bfloat16),
  }
  params = jax.device_put(params, rows)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.masked(optax.adam(1e-3), {"blocks": True, "head": False}),
  ).init(params)
  return State(
    params=params,
    optimizer=jax.device_put(optimizer, whole),
    key=jax.device_put(jax.random.key(seed), whole),
    step=jax.device_put(np.int32(seed), whole),
    epoch=seed,
    host=random.normal(size=(3, 2)),
  )


def shapes(tree):
  """The tree as shapes with shardings; numbers and numpy stay."""

  def one(x):
    if not isinstance(x, jax.Array):
      return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

  return jax.tree.map(one, tree)


def assert_same(ours, expected):
  assert jax.tree.structure(ours) == jax.tree.structure(expected)
  flat = tree_spec.flatten(expected)
  for path, leaf in tree_spec.flatten(ours).items():
    assert type(leaf) is type(flat[path]), path
    assert tree_spec.leaf_spec(leaf) == tree_spec.leaf_spec(flat[path])
    a, b = (np.asarray(tree_spec.to_stored(x)) for x in (leaf, flat[path]))
    assert a.tobytes() == b.tobytes(), path


@pytest.fixture(autouse=True)
def lines(log_lines):
  """What was logged; a test that expects lines takes them out."""
  yield log_lines
  assert log_lines == []


@pytest.fixture
def two(tmp_path):
  """A directory with checkpoints of steps 1 and 2."""
  with manager.Manager(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state(step), b"records %d" % step, {"note": step})
  return tmp_path


def test_a_state_is_restored_bit_exactly(two):
  with manager.Manager(two) as checkpoints:
    restored = checkpoints.restore_newest(shapes(state(3)))
    assert_same(restored.state, state(2))
    assert restored.step == 2
    assert restored.iterator == b"records 2"
    assert restored.metadata == {"note": 2}
    # Arrays may be the target too.
    assert_same(checkpoints.restore_newest(state(3)).state, state(2))


@pytest.mark.parametrize("sizes", [(1,), (2,), (4, 2)])
def test_a_state_is_restored_on_other_devices(two, sizes):
  target = state(5, sharding(*sizes))
  with manager.Manager(two) as checkpoints:
    restored = checkpoints.restore_newest(shapes(target)).state
  assert_same(restored, state(2))
  for path, leaf in tree_spec.flatten(restored).items():
    if isinstance(leaf, jax.Array):
      assert leaf.sharding == tree_spec.flatten(target)[path].sharding, path


def test_a_target_without_shardings_goes_to_the_first_device(tmp_path):
  tree = {"key": jax.random.key(1), "a": jnp.arange(4)}
  with manager.Manager(tmp_path) as checkpoints:
    checkpoints.save(0, tree)
    restored = checkpoints.restore_newest(jax.eval_shape(lambda: tree)).state
  assert_same(restored, tree)
  assert restored["a"].devices() == {jax.devices()[0]}


def test_an_empty_directory_restores_nothing(tmp_path):
  with manager.Manager(tmp_path / "new") as checkpoints:
    assert checkpoints.restore_newest(state()) is None


def test_empty_leaves_and_flat_names(tmp_path):
  tree = {"a/b": jnp.zeros((0, 3)), "a": {"c": np.zeros((2, 0))}, "n": True}
  with manager.Manager(tmp_path) as checkpoints:
    checkpoints.save(0, tree)
    restored = checkpoints.restore_newest(shapes(tree)).state
  assert_same(restored, tree)


def test_names_must_be_distinct(tmp_path):
  with manager.Manager(tmp_path) as checkpoints:
    for tree in ({"a/b": 1, "a": {"b": 2}}, 3, {"": 3}):
      with pytest.raises(ValueError, match="a name for every leaf"):
        checkpoints.save(0, tree)
    with pytest.raises(ValueError, match="expected an array or a number"):
      checkpoints.save(0, {"a": "text"})
    with pytest.raises(ValueError, match="that are JSON"):
      checkpoints.save(0, {"a": 1}, metadata={"a": b"bytes"})
    with pytest.raises(ValueError, match="that are JSON"):
      checkpoints.save(0, {"a": 1}, {"a": b"bytes"})


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
  @functools.partial(jax.jit, donate_argnums=0)
  def step(tree):
    return jax.tree.map(lambda x: x * 2 + 1, tree)

  tree = {
    str(n): jax.device_put(np.full((2**17,), n, np.float32), sharding(8))
    for n in range(8)
  }
  with manager.Manager(tmp_path) as checkpoints:
    checkpoints.save(0, tree)
    target = shapes(tree)
    for _ in range(5):
      tree = step(tree)
    jax.block_until_ready(tree)
    restored = checkpoints.restore_newest(target).state
  for name, leaf in restored.items():
    assert np.all(np.asarray(leaf) == int(name))


def test_retention_follows_the_policy(tmp_path):
  with manager.Manager(tmp_path, max_to_keep=2, keep_period=4) as checkpoints:
    for step in range(1, 8):
      checkpoints.save(step, {"a": jnp.ones(2)})
    assert not checkpoints.save(7, {"a": jnp.ones(2)})
    checkpoints.wait()
    assert checkpoints.steps() == [7, 6, 4]
  with manager.Manager(tmp_path, max_to_keep=1) as checkpoints:
    checkpoints.save(9, {"a": jnp.ones(2)})
    checkpoints.wait()
    assert checkpoints.steps() == [9]


@pytest.mark.parametrize("options", [{"max_to_keep": 0}, {"keep_period": -1}])
def test_invalid_options_are_refused(options, tmp_path):
  with pytest.raises(ValueError, match="expected max_to_keep"):
    manager.Manager(tmp_path / "x", **options)
  assert not (tmp_path / "x").exists()


def test_a_target_of_another_structure_is_refused_and_nothing_is_renamed(two):
  base = state(1)
  other = base._replace(
    params={"blocks": {"kernel": jnp.ones((16, 5))}, "tail": jnp.ones(2)},
    step=jnp.float32(1),
    epoch=1.0,
    key=jax.random.key(0, impl="rbg"),
  )
  with manager.Manager(two) as checkpoints:
    with pytest.raises(ValueError, match="holds another state") as caught:
      checkpoints.restore_newest(other)
    lines = str(caught.value).split("\n  ")[1:]
    assert sorted(lines) == [
      "epoch: saved Python int, expected Python float",
      "key: saved key<fry>[], expected key<rbg>[]",
      "params/blocks/kernel: saved float32[16, 4], expected float32[16, 5]",
      "params/head: saved as bfloat16[8], the target has none",
      "params/tail: the target has float32[2], none was saved",
      "step: saved int32[], expected float32[]",
    ]
    assert checkpoints.steps() == [2, 1]


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 1
  path.write_bytes(raw)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Orbax's own notes, which nothing reads.
HARMLESS = ("_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()])
def test_damage_of_any_file_is_detected(two, tmp_path_factory, damage):
  newest = two / "2"
  names = sorted(
    p.relative_to(newest)
    for p in newest.rglob("*")
    if p.is_file()
    and p.parent.joinpath(p.name) not in [newest / name for name in HARMLESS]
  )
  assert len(names) > 8
  whole = tmp_path_factory.mktemp("whole") / "2"
  shutil.copytree(newest, whole)
  for name in names:
    damage(newest / name)
    with pytest.raises(ValueError, match=r"is missing|damaged|bytes|checksum"):
      reader.verify(reader.read_info(newest))
    shutil.copyfile(whole / name, newest / name)
  reader.verify(reader.read_info(newest))
  for name in HARMLESS[:1]:
    damage(newest / name)
  with manager.Manager(two) as checkpoints:
    assert checkpoints.restore_newest(state(7)).step == 2


def largest(path):
  return max(path.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


@pytest.mark.parametrize("name", ["checksums.json", "meta/metadata", None])
def test_the_older_one_is_used_when_the_newest_is_damaged(two, name, lines):
  cut(two / "2" / name if name else largest(two / "2" / "state"))
  with manager.Manager(two) as checkpoints:
    restored = checkpoints.restore_newest(shapes(state(3)))
    assert (restored.step, restored.iterator) == (1, b"records 1")
    assert_same(restored.state, state(1))
    assert f"{two}/2 is damaged: " in lines[0]
    assert name == "checksums.json" or "bytes, expected" in lines[0]
    assert f"older checkpoint {two}/1" in lines[1]
    assert f"set aside as {two}/2.damaged" in lines[2]
    lines.clear()
    # The run comes to that step again.
    assert checkpoints.save(2, state(4))
    assert_same(checkpoints.restore_newest(state(0)).state, state(4))
  assert (two / "2.damaged").is_dir()


def test_an_error_is_raised_when_no_checkpoint_is_readable(two, lines):
  flip(largest(two / "1"))
  (two / "2" / "checksums.json").unlink()
  with manager.Manager(two) as checkpoints:
    with pytest.raises(ValueError, match="none of the 2 checkpoints") as caught:
      checkpoints.restore_newest(state())
    assert checkpoints.steps() == [2, 1]
  for text in (f"{two}/2: ", "checksums.json is missing", f"{two}/1: "):
    assert text in str(caught.value)
  assert len(lines) == 2
  lines.clear()


def test_leftovers_of_killed_runs_are_removed(two):
  shutil.copytree(two / "2", two / "3.orbax-checkpoint-tmp")
  # A deletion that was cut short.
  shutil.copytree(two / "1", two / "0")
  largest(two / "0").unlink()
  with manager.Manager(two) as checkpoints:
    assert checkpoints.restore_newest(state()).step == 2
    assert checkpoints.save(3, state(3))
    checkpoints.wait()
    assert checkpoints.steps() == [3, 2]
  assert sorted(p.name for p in two.iterdir()) == ["2", "3"]


def test_a_killed_first_save_is_ignored(tmp_path):
  (tmp_path / "0.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
  with manager.Manager(tmp_path) as checkpoints:
    assert checkpoints.restore_newest(state()) is None
    assert checkpoints.save(0, state())
    assert checkpoints.restore_newest(state(1)).step == 0


def test_a_full_disk_is_reported_before_anything_is_written(two, monkeypatch):
  usage = shutil.disk_usage(two)._replace(free=100)
  with manager.Manager(two) as checkpoints:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="no space left: .* GiB") as caught:
      checkpoints.save(3, state())
    assert caught.value.errno == errno.ENOSPC
    assert checkpoints.steps() == [2, 1]
  assert sorted(p.name for p in two.iterdir()) == ["1", "2"]


def test_a_disk_that_fills_up_during_a_save_leaves_earlier_checkpoints(two):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with manager.Manager(two) as checkpoints:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
      with pytest.raises(OSError, match="step 3 was not saved") as caught:
        checkpoints.save(3, {"a": jnp.ones(2**20)})
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.ENOSPC
    assert sorted(p.name for p in two.iterdir()) == ["1", "2"]
    # With free space again, saving continues.
    assert checkpoints.save(3, state(3))
    assert checkpoints.restore_newest(state()).step == 3


@pytest.mark.parametrize(
  ("number", "kind", "message"),
  [
    (errno.EIO, ValueError, r"step 3 was not .*strange"),
    (errno.ENOSPC, OSError, r"no space left: .* step 3 was not"),
    (errno.EDQUOT, OSError, r"no space left: .* step 3 was not"),
  ],
)
def test_an_error_while_finalizing_leaves_earlier_checkpoints(
  two, monkeypatch, number, kind, message
):
  def fail(*_):
    raise OSError(number, "strange")

  with manager.Manager(two) as checkpoints:
    monkeypatch.setattr(integrity, "write", fail)
    checkpoints.save(3, state(3))
    with pytest.raises(kind, match=message):
      checkpoints.wait()
    assert checkpoints.steps() == [2, 1]
    assert checkpoints.restore_newest(state()).step == 2


def test_input_states_are_stored_per_process(tmp_path, monkeypatch):
  with manager.Manager(tmp_path) as checkpoints:
    for step, value in enumerate([{"next": [1, 2]}, None, b"\x00\xff"]):
      checkpoints.save(step, {"a": 1}, value)
      restored = checkpoints.restore_newest({"a": 1})
      assert restored.iterator == value
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert restored.iterator == value  # what all have, others may have
  two = dataclasses.replace(restored, iterators=(1, 2))
  monkeypatch.setattr(jax, "process_count", lambda: 3)
  with pytest.raises(ValueError, match=r"2 processes \(now 3\)"):
    _ = two.iterator


def test_each_process_sums_only_the_files_that_it_wrote(two, monkeypatch):
  """Of files that another process wrote, process 0 takes its checksums."""
  read = []
  original = integrity._checksum

  def record(path, flush=False):
    read.append(path)
    return original(path, flush)

  with manager.Manager(two) as checkpoints:
    monkeypatch.setattr(integrity, "_checksum", record)
    checkpoints.save(3, state(3))
    checkpoints.wait()
  mine = [p for p in read if "ocdbt.process_0" in p.parts]
  assert len(read) == len(set(read))  # none is read twice
  assert mine and mine[-1].name == integrity.CHECKSUMS
  folder = two / "3" / "state" / "ocdbt.process_0"
  own, everything = integrity.listing(folder), integrity.listing(two / "3")
  assert own
  for name, entry in own.items():
    assert everything[f"state/ocdbt.process_0/{name}"] == entry
