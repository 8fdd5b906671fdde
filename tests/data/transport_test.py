"""Batches from workers are sent without padding, in 16 bits."""

import contextlib
import dataclasses
import pathlib
import time

import ml_dtypes
import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import collate
from ovi_jax.data import loader
from ovi_jax.data import settings as settings_lib
from tests.lib import random_records
from tests.lib import record_loader


@pytest.mark.parametrize(("longest", "travels"), [(33, 64), (32, 32), (96, 96)])
def test_padding_is_not_sent(longest, travels):
  text_BSE = np.zeros((2, 96, 3), np.float32)
  text_BSE[1, longest - 1, 2] = -1
  cut_BSE = loader._cut(text_BSE)
  assert cut_BSE.shape == (2, travels, 3)
  assert cut_BSE.flags.c_contiguous  # grain pickles what is not
  np.testing.assert_array_equal(cut_BSE, text_BSE[:, :travels])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_sent_bit_for_bit(dtype):
  text_BSE = np.zeros((1, 80, 2), dtype)
  assert loader._cut(text_BSE).shape == (1, 0, 2)
  text_BSE[0, 70, 0] = -0.0
  assert loader._cut(text_BSE).shape == (1, 80, 2)


def shared_files(size: int) -> int:
  """The number of files of a size in shared memory, of any process."""
  count = 0
  for path in pathlib.Path("/dev/shm").glob("psm_*"):
    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
      count += path.stat().st_size == size
  return count


def test_a_worker_returns_the_same_bytes_and_leaves_no_shared_memory(tmp_path):
  long = dataclasses.replace(
    random_records.record(0, video=None, captions=1),
    text=(np.full((40, 5), -0.5, np.float16),),
  )
  others = [random_records.record(i, video=None) for i in range(1, 6)]
  builder.write(
    tmp_path / "a",
    {"train": [long, *others]},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
  )
  # A size that no other program is likely to use: 2 rows of 16-bit numbers.
  length = 4099
  size = 2 * length * random_records.GEOMETRY.audio_channels * 2
  chosen = settings_lib.LoaderConfig(
    sources=(settings_lib.Source(path=str(tmp_path / "a")),),
    buckets=(settings_lib.Bucket(audio=length),),
    geometry=random_records.GEOMETRY,
    max_text_len=100,
  )
  here = loader.load(chosen, batch=2, seed=0)
  there = loader.load(
    dataclasses.replace(chosen, num_workers=1), batch=2, seed=0
  )
  held, lengths = [], set()
  for _ in range(6):
    ours, theirs = next(here), next(there)
    assert theirs.text.audio.shape == (2, 100, 5)
    for mine, sent in (
      (ours.text.audio, theirs.text.audio),
      (ours.latents.audio, theirs.latents.audio),
      (ours.lengths.audio, theirs.lengths.audio),
      (ours.ids, theirs.ids),
    ):
      assert mine.dtype == sent.dtype and mine.tobytes() == sent.tobytes()
    lengths.add(loader._cut(ours.text.audio).shape[1])
    held.append(theirs)
  assert ours.latents.audio.dtype == np.float32
  assert lengths == {4, 68}  # 32 rows at a time from the end
  # What `shared_memory.required_bytes` counts, but for the batch in use.
  ready = 2 * (chosen.prefetch_batches + 1)
  deadline = time.monotonic() + 300
  while shared_files(size) < ready and time.monotonic() < deadline:
    time.sleep(0.01)
  assert shared_files(size) == ready
  there.close()
  assert len(held) == 6
  assert "psm_" not in pathlib.Path("/proc/self/maps").read_text()
  assert shared_files(size) == 0


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_rows_keep_their_16_bits_until_they_are_received(stored, tmp_path):
  builder.write(
    tmp_path / "a",
    {"train": random_records.sounds([5, 6])},
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
    dtype=stored,
  )
  chosen = record_loader.settings(tmp_path / "a", max_text_len=40)
  chosen = dataclasses.replace(chosen, num_workers=1)
  batches = loader.load(chosen, batch=2, seed=0)
  numbered = batches._plan
  sent = numbered[0]
  assert sent.latents.audio.dtype == np.dtype(stored)
  assert sent.text.audio.dtype == np.dtype(stored)
  assert sent.text.audio.shape[1] == 8
  received = loader._received(sent, 40)
  assert received.latents.audio.dtype == np.float32
  assert received.text.audio.dtype == np.float32
  np.testing.assert_array_equal(
    received.latents.audio, sent.latents.audio.astype(np.float32)
  )


def test_sources_of_two_dtypes_are_read_as_float32(tmp_path):
  for name in ("float16", "bfloat16"):
    builder.write(
      tmp_path / name,
      {"train": random_records.sounds([5, 6])},
      geometry=random_records.GEOMETRY,
      null_text=random_records.null_text(),
      dtype=name,
    )
  chosen = record_loader.settings(tmp_path / "float16", tmp_path / "bfloat16")
  sent = loader.load(chosen, batch=4, seed=0)._plan[0]
  assert sent.latents.audio.dtype == np.float32


def test_a_record_of_another_dtype_than_the_first_is_refused():
  row = np.zeros((4, 3), np.float16)
  with pytest.raises(ValueError, match="clip: is stored as bfloat16, expected"):
    collate._copy(row, np.ones((2, 3), ml_dtypes.bfloat16), "clip")
  collate._copy(row, np.ones((2, 3), np.float16), "clip")
  assert row.sum() == 6
