"""Shared memory of worker processes: the estimate and its check."""

import os
import socket
import types

import jax
import numpy as np
import pytest

from configs import fusion
from ovi_jax.data import loader
from ovi_jax.data import settings as settings_lib
from ovi_jax.data import shared_memory
from ovi_jax.sharding import distributed
from ovi_jax.training import settings as training_settings
from tests.lib import record_loader

GiB = 2**30


@pytest.fixture
def free(monkeypatch):
  """Set the free bytes of /dev/shm."""

  def set_to(size):
    found = types.SimpleNamespace(f_bavail=size, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda path: found)

  return set_to


def test_bytes_of_a_row_of_cached_latents():
  bucket = settings_lib.Bucket(video=(31, 44, 46), audio=157)
  settings = settings_lib.LoaderConfig(
    sources=(settings_lib.Source(path="a"),), buckets=(bucket,)
  )
  video, audio, text = 31 * 44 * 46 * 48, 157 * 20, 512 * 4096
  assert shared_memory.batch_bytes(settings, bucket, 3) == 3 * 2 * (
    video + audio + text
  )


def test_bytes_of_a_row_of_media_and_tokens():
  bucket = settings_lib.Bucket(video=(31, 44, 46), audio=157)
  settings = settings_lib.LoaderConfig(
    sources=(settings_lib.Source(path="a"),),
    buckets=(bucket,),
    encode_on_the_fly=True,
    tokenizer="tokenizer.json",
  )
  frames, samples, tokens = 121 * 704 * 736 * 3, 157 * 512 * 4, 512 * 4
  assert shared_memory.batch_bytes(settings, bucket, 1) == (
    frames + samples + tokens
  )


def test_the_paper_needs_12_GiB_on_each_of_32_hosts():
  values = fusion.get_config()
  values.data.sources = ("a",)
  values.init_from.video = values.init_from.audio = "b"
  data = training_settings.from_config(values).data
  each = values.batch_size // 32
  batch = shared_memory.batch_bytes(data, data.buckets[0], each)
  needed = shared_memory.required_bytes(
    batch, data.num_workers, data.prefetch_batches
  )
  assert 11 * GiB < needed < 12 * GiB


def test_too_little_is_one_line_that_names_both_sizes_and_remedies(free):
  free(64 * 2**20)
  with pytest.raises(ValueError) as error:
    shared_memory.check(GiB, num_workers=2, prefetch_batches=1)
  said = str(error.value)
  assert "\n" not in said
  for part in (
    "2 data workers need up to 9.0 GiB",
    "/dev/shm has 0.1 GiB free",
    "--shm-size=9g",
    "medium Memory",
    "--config.data.num_workers",
  ):
    assert part in said, said
  free(9 * GiB)
  shared_memory.check(GiB, num_workers=2, prefetch_batches=1)


def test_no_workers_need_nothing(free, tmp_path):
  free(0)
  shared_memory.check(GiB, num_workers=0, prefetch_batches=2)
  shared_memory.check(GiB, 1, 2, folder=tmp_path / "absent")


def test_processes_of_a_host_share_it(free, monkeypatch):
  here = socket.gethostname()
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(distributed, "gather", lambda name: [here, "b", here])
  free(17 * GiB)
  with pytest.raises(ValueError, match="in each of 2 processes need up to 18"):
    shared_memory.check(GiB, num_workers=2, prefetch_batches=1)


def test_a_loader_is_not_opened_without_the_memory(free, tmp_path, sounds):
  free(100)
  chosen = record_loader.settings(sounds, num_workers=1)
  with pytest.raises(ValueError, match="shared memory, but /dev/shm has 0.0"):
    loader.load(chosen, batch=2, seed=0)


def test_only_arrays_of_workers_are_copied():
  class Shared(np.ndarray):
    pass

  mine = np.ones(3, np.float16)
  theirs = mine.view(Shared)
  assert shared_memory.copied(mine) is mine
  assert type(shared_memory.copied(theirs)) is np.ndarray
  assert not np.may_share_memory(shared_memory.copied(theirs), theirs)
  assert shared_memory.copied(theirs, np.dtype("f4")).dtype == np.float32
