"""Checkpoints in an object store."""

import re

import jax
import numpy as np
import pytest

from ovi_jax import storage
from ovi_jax.checkpoint import integrity
from ovi_jax.checkpoint import manager
from ovi_jax.checkpoint import reader

SIZE = 2**16


def state(step):
  ramp = np.arange(SIZE, dtype=np.float32)
  return {"w": jax.device_put(ramp + step), "step": step}


def check(restored, step):
  assert restored is not None and restored.step == step
  np.testing.assert_array_equal(restored.state["w"], state(step)["w"])


@pytest.fixture
def two(bucket):
  """A directory with checkpoints of steps 1 and 2."""
  directory = storage.path(f"{bucket}/run/checkpoints")
  with manager.Manager(directory) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state(step))
  return directory


def test_a_state_is_saved_and_restored_without_being_read_back(
  bucket_endpoint, two
):
  with manager.Manager(two) as checkpoints:
    before = bucket_endpoint.bytes_read
    checkpoints.save(3, state(3))
    checkpoints.wait()
    assert bucket_endpoint.bytes_read - before < 4 * SIZE / 2
    assert checkpoints.steps() == [3, 2]
    before = bucket_endpoint.bytes_read
    check(checkpoints.restore_newest(state(0)), 3)
    # Once: the store knows the checksums.
    assert bucket_endpoint.bytes_read - before < 4 * SIZE * 1.5


def test_a_save_asks_for_no_marker_of_an_earlier_checkpoint(
  bucket_endpoint, two
):
  with manager.Manager(two, max_to_keep=3) as checkpoints:
    before = len(bucket_endpoint.requests)
    assert checkpoints.save(3, state(3))
    checkpoints.wait()
    assert not checkpoints.save(3, state(3))
  made = bucket_endpoint.requests[before:]
  asked = [
    path
    for method, path in made
    if method == "GET" and re.search(r"%2F[12]%2Fcommit_success", path)
  ]
  assert not asked


def test_a_half_uploaded_checkpoint_is_not_taken_for_a_complete_one(
  bucket_endpoint, two
):
  """All objects but the commit marker, which is written last."""
  marker = two / "2" / "commit_success.txt"
  objects, _ = bucket_endpoint.store.storage.get_file_list(two.parts[2])
  last = max(objects, key=lambda each: each["timeCreated"])
  assert two.parent.parent / last["name"] == marker
  marker.unlink()
  assert reader.steps(two) == [1]
  with manager.Manager(two) as checkpoints:
    check(checkpoints.restore_newest(state(0)), 1)
    assert checkpoints.save(2, state(2))
    check(checkpoints.restore_newest(state(0)), 2)


def test_a_store_that_cannot_be_used_is_not_a_damaged_or_missing_checkpoint(
  bucket, bucket_endpoint
):
  directory = storage.path(f"{bucket}/checkpoints")
  assert reader.steps(directory) == []
  (directory / "1" / "commit_success.txt").write_text("")
  assert reader.steps(directory) == [1]
  with pytest.raises(integrity.DamagedError, match="checksums.json is missing"):
    reader.read_info(directory / "1")
  bucket_endpoint.store.forbidden.add(directory.parts[2])
  for read in (reader.steps, reader.read_info):
    with pytest.raises(OSError, match="cannot use gs://") as caught:
      read(directory / "1")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["replaced", "cut", "missing"])
def test_a_damaged_checkpoint_is_set_aside(two, damage, log_lines):
  folder = two / "2" / "state" / "ocdbt.process_0" / "d"
  largest = max(folder.iterdir(), key=lambda p: p.stat().length)
  data = bytearray(largest.read_bytes())
  largest.unlink()
  if damage == "replaced":
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
  elif damage == "cut":
    largest.write_bytes(data[:-1])
  with manager.Manager(two) as checkpoints:
    check(checkpoints.restore_newest(state(0)), 1)
    assert checkpoints.steps() == [1]
    assert checkpoints.save(2, state(2))
    check(checkpoints.restore_newest(state(0)), 2)
  assert (two / "2.damaged" / "meta" / "metadata").exists()
  assert "2 is damaged: state/ocdbt.process_0/d/" in log_lines[0]


@pytest.mark.slow
def test_a_checkpoint_may_move_between_a_disk_and_a_bucket(two, tmp_path):
  system, root = storage.file_system(two)
  system.get(f"{root}/2", str(tmp_path / "2"), recursive=True)
  with manager.Manager(tmp_path) as checkpoints:
    check(checkpoints.restore_newest(state(0)), 2)
    checkpoints.save(3, state(3))
  system.put(str(tmp_path / "3"), f"{root}/3", recursive=True)
  with manager.Manager(two) as checkpoints:
    check(checkpoints.restore_newest(state(0)), 3)


@pytest.mark.slow
def test_a_save_that_fails_leaves_earlier_checkpoints(bucket_endpoint, two):
  store = bucket_endpoint.store
  with manager.Manager(two) as checkpoints:
    bucket_endpoint.hold_uploads("checkpoints%2F3%2Fstate")
    checkpoints.save(3, state(3))
    assert bucket_endpoint.waiting.wait(60)
    store.forbidden.add(two.parts[2])
    bucket_endpoint.release()
    with pytest.raises((OSError, ValueError), match="step 3 was not saved"):
      checkpoints.wait()
    store.forbidden.discard(two.parts[2])
    assert checkpoints.steps() == [2, 1]
    assert checkpoints.save(3, state(3))
  assert reader.steps(two) == [3, 2]
