"""Loaders over random records, in small buckets."""

from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.modality import AV
from tests.lib import random_records

LENGTHS = [5, 9, 12, 20, 33, 40, 7, 8, 31, 16, 3, 28]
BUCKETS = (settings_lib.Bucket(audio=10), settings_lib.Bucket(audio=40))


def settings(*paths, **changes):
  """Settings for the sounds, changed."""
  return settings_lib.LoaderConfig(
    **{
      "sources": tuple(settings_lib.Source(path=str(p)) for p in paths),
      "buckets": BUCKETS,
      "geometry": random_records.GEOMETRY,
      "max_text_len": 4,
      **changes,
    }
  )


def take(batches, count):
  return [next(batches) for _ in range(count)]


def batch(ids, damaged):
  """A batch of nothing but ids."""
  return schema.Batch(AV(), AV(), AV(), ids, damaged)
