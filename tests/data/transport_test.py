"""Batches from workers are sent without padding."""

import dataclasses

import numpy as np
import pytest

from ovi_jax.data import builder
from ovi_jax.data import loader
from ovi_jax.data import settings as settings_lib
from tests.lib import random_records


@pytest.mark.parametrize(("longest", "travels"), [(33, 64), (32, 32), (96, 96)])
def test_padding_is_not_sent(longest, travels):
  text_BSE = np.zeros((2, 96, 3), np.float32)
  text_BSE[1, longest - 1, 2] = -1
  cut_BSE = loader._cut(text_BSE)
  assert cut_BSE.shape == (2, travels, 3)
  assert cut_BSE.flags.c_contiguous  # grain pickles what is not
  np.testing.assert_array_equal(cut_BSE, text_BSE[:, :travels])


def test_values_are_sent_bit_for_bit():
  text_BSE = np.zeros((1, 80, 2), np.float32)
  assert loader._cut(text_BSE).shape == (1, 0, 2)
  text_BSE[0, 70, 0] = -0.0
  assert loader._cut(text_BSE).shape == (1, 80, 2)


def test_a_worker_returns_the_same_bytes(tmp_path):
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
  chosen = settings_lib.LoaderConfig(
    sources=(settings_lib.Source(path=str(tmp_path / "a")),),
    buckets=(settings_lib.Bucket(audio=12),),
    geometry=random_records.GEOMETRY,
    max_text_len=100,
  )
  here = loader.load(chosen, batch=2, seed=0)
  there = loader.load(
    dataclasses.replace(chosen, num_workers=1), batch=2, seed=0
  )
  lengths = set()
  for _ in range(6):
    ours, theirs = next(here), next(there)
    assert theirs.text.audio.shape == (2, 100, 5)
    assert ours.text.audio.dtype == theirs.text.audio.dtype
    assert ours.text.audio.tobytes() == theirs.text.audio.tobytes()
    lengths.add(loader._cut(ours.text.audio).shape[1])
  there.close()
  assert lengths == {4, 68}  # 32 rows at a time from the end
