"""Fixtures of the data tests."""

import dataclasses
import pathlib

import pytest

from ovi_jax.data import builder
from tests.lib import random_records
from tests.lib import raw_clips
from tests.lib import record_loader


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
  """Twelve sounds of several lengths, and five held out."""
  path = tmp_path_factory.mktemp("data") / "sounds"
  builder.write(
    path,
    {
      "train": random_records.sounds(record_loader.LENGTHS),
      "test": random_records.sounds([4, 30, 9, 6, 50]),
    },
    geometry=random_records.GEOMETRY,
    null_text=random_records.null_text(),
    records_per_shard=5,
  )
  return path


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> pathlib.Path:
  """Clips of two lengths and sounds, media only."""
  folder = tmp_path_factory.mktemp("media")
  records = [
    raw_clips.clip(i, f, folder) for i, f in enumerate((5, 9, 0, 5, 5))
  ]
  path = folder / "data"
  builder.write(
    path,
    {"train": records, "test": [raw_clips.clip(5, 5, folder)]},
    geometry=dataclasses.replace(raw_clips.SIZES, text_dim=4096),
  )
  return path
