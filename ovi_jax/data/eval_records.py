"""Records that are kept from training: once over, in a fixed order."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from ovi_jax.data import builder
from ovi_jax.data import collate
from ovi_jax.data import index_sampler
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRecords:
  """A split of the sources that have it, opened.

  Attributes:
    settings: of reading it: first caption, no crop by chance, no workers.
    splits: of the sources.
    buckets: the bucket of each record of each, -1 for none.
  """

  settings: settings_lib.LoaderConfig
  splits: tuple[builder.Split, ...]
  buckets: tuple[np.ndarray, ...]

  def records(self) -> Iterator[schema.Record]:
    """Every record, source after source."""
    for split in self.splits:
      for number in range(len(split)):
        yield split[number]

  def batches(
    self, batch: int, process_index: int = 0, process_count: int = 1
  ) -> Iterator[schema.Batch]:
    """This process' rows of each batch, bucket after bucket.

    The last batch of a bucket is filled up with rows of lengths 0 and id -1.

    Raises:
      ValueError: the processes do not divide the batch.
    """
    if batch < 1 or batch % process_count:
      raise ValueError(
        f"a batch of {batch} must divide by the {process_count} processes"
      )
    found = self.buckets
    source = np.repeat(np.arange(len(found)), [len(f) for f in found])
    record = np.concatenate([np.arange(len(f)) for f in found])
    bucket_of, each = np.concatenate(found), batch // process_count
    for number, bucket in enumerate(self.settings.buckets):
      mine = np.flatnonzero(bucket_of == number)
      for start in range(0, len(mine), batch):
        share = mine[start : start + batch][process_index * each :][:each]
        drawn = index_sampler.Draw(
          source[share], record[share], np.zeros_like(share)
        )
        yield collate.collate(
          self.settings, self.splits, bucket, drawn, 0, each
        )


def opened(
  settings: settings_lib.LoaderConfig, split: str = "test"
) -> EvalRecords:
  """Open a split of the sources that have it.

  Raises:
    ValueError: no source has it, records fit no bucket, or as `loader.load`.
  """
  sources = tuple(
    dataclasses.replace(source, split=split)
    for source in settings.sources
    if split in builder.splits(source.path)
  )
  if not sources:
    raise ValueError(
      f"no source has a split {split!r} to be held out:"
      f" {[source.path for source in settings.sources]}; write one, name"
      " another, or ask for no held-out loss and no samples"
    )
  crop = "start" if settings.crop == "random" else settings.crop
  settings = dataclasses.replace(
    settings, sources=sources, caption_sampling="first", crop=crop
  )
  splits = loader.open_sources(settings)
  buckets = tuple(settings_lib.assign(settings, split) for split in splits)
  return EvalRecords(settings=settings, splits=splits, buckets=buckets)
