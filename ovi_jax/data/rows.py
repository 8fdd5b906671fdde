"""Records into the rows of a batch: crop, pad, choose a caption.

A choice by chance is a function of the seed, the source, the record and the
epoch: the same in every process and worker.
"""

from collections.abc import Sequence

import numpy as np

from ovi_jax.data import builder
from ovi_jax.data import plan
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.modality import AV

PADDING = -1  # the id of a row that stands for no record


def blank(
  settings: settings_lib.LoaderSettings, bucket: settings_lib.Bucket, count: int
) -> schema.Batch:
  """A batch of `count` rows that stand for no record."""
  sizes = settings.geometry
  video = audio = None
  if bucket.video is not None:
    shape = (count, *bucket.video, sizes.video_channels)
    video = np.zeros(shape, np.float32)
  if bucket.audio is not None:
    shape = (count, bucket.audio, sizes.audio_channels)
    audio = np.zeros(shape, np.float32)
  latents = AV(video=video, audio=audio)
  text_BSE = np.zeros((count, settings.text_rows, sizes.text_width), np.float32)
  return schema.Batch(
    latents=latents,
    lengths=AV(
      *(None if a is None else np.zeros(count, np.int32) for a in latents)
    ),
    text=AV(*(None if a is None else text_BSE for a in latents)),
    ids=np.full(count, PADDING, np.int64),
  )


def read(
  settings: settings_lib.LoaderSettings,
  splits: Sequence[builder.Split],
  bucket: settings_lib.Bucket,
  drawn: plan.Draw,
  seed: int,
  count: int | None = None,
) -> schema.Batch:
  """Read the drawn records into a batch.

  Args:
    settings: what a batch is.
    splits: the sources.
    bucket: the sizes of the batch.
    drawn: its records.
    seed: of choices by chance.
    count: rows, where more than are drawn; the rest has lengths 0 and id -1.

  Raises:
    ValueError: a record is damaged, or lacks latents or text; names it.
  """
  batch = blank(settings, bucket, count or len(drawn.record))
  for row, (source, record, epoch) in enumerate(zip(*drawn, strict=True)):
    choose = np.random.default_rng([seed, source, record, epoch])
    split = splits[source]
    _fill(batch, row, split[record], settings, choose, split.path)
    batch.ids[row] = (int(source) << schema.INDEX_BITS) | int(record)
  return batch


def _fill(
  batch: schema.Batch,
  row: int,
  record: schema.Record,
  settings: settings_lib.LoaderSettings,
  choose: np.random.Generator,
  path: str,
) -> None:
  """Write a record into a row of the batch."""
  where = f"{path}, record {record.id!r}"
  for name in batch.latents.present():
    media, cached = getattr(record, name), getattr(record.latents, name)
    if cached is None:
      if media is not None:
        raise ValueError(
          f"{where}: has its {name} as media only, expected cached latents;"
          " encode the dataset first"
        )
      continue
    out = getattr(batch.latents, name)
    begin, spare = 0, cached.shape[0] - out.shape[1]
    alone = batch.latents.video is None or record.latents.video is None
    if spare > 0 and alone and settings.crop == "random":
      begin = int(choose.integers(spare + 1))
    kept = cached[begin : begin + out.shape[1]]
    out[row, : len(kept)] = kept
    getattr(batch.lengths, name)[row] = len(kept)
  if not record.text:
    raise ValueError(
      f"{where}: has no text embedding; encode the dataset first"
    )
  number = 0
  if settings.caption == "random":
    number = int(choose.integers(len(record.text)))
  text_SE = record.text[number]
  if len(text_SE) > settings.text_rows:
    raise ValueError(
      f"{where}: caption {number} has {len(text_SE)} rows of text, expected at"
      f" most {settings.text_rows}; raise text_rows or shorten the caption"
    )
  text(batch)[row, : len(text_SE)] = text_SE


def text(batch: schema.Batch) -> np.ndarray:
  """text_BSE, the one array that the towers share."""
  return next(iter(batch.text.present().values()))
