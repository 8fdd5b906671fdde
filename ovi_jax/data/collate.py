"""Assembles records into batches: crop, pad, choose a caption.

Random choices are functions of the seed, the source, the record and the epoch:
the same in every process and worker. Cached latents and embeddings keep the
16-bit dtype that they are stored in; `loader` makes them float32.
"""

import functools
import itertools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import index_sampler
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.modality import AV

PADDING = record_ids.NONE

_DECODE = {"video": clips.frames, "audio": clips.wave}


def blank(
  settings: settings_lib.LoaderConfig,
  bucket: settings_lib.Bucket,
  count: int,
  dtype: np.dtype,
) -> schema.Batch:
  """A batch of padding rows.

  Args:
    settings: of the loader.
    bucket: sizes of the arrays.
    count: B.
    dtype: of cached latents and embeddings.

  Returns:
    Zeros, lengths of 0 and ids of `PADDING`.
  """
  sizes, video, audio = settings.geometry, None, None
  if bucket.video is not None:
    T, H, W = bucket.video
    time, row, column = sizes.video_strides
    frames = 1 + time * (T - 1), row * H, column * W
    video = (
      np.zeros((count, *frames, 3), np.uint8)
      if settings.encode_on_the_fly
      else np.zeros((count, T, H, W, sizes.video_channels), dtype)
    )
  if bucket.audio is not None:
    each = sizes.samples_per_audio_latent
    audio = (
      np.zeros((count, bucket.audio * each), np.float32)
      if settings.encode_on_the_fly
      else np.zeros((count, bucket.audio, sizes.audio_channels), dtype)
    )
  latents = AV(video=video, audio=audio)
  if settings.tokenizer:
    pad = _tokenizer(settings.tokenizer).pad
    text = np.full((count, settings.max_text_len), pad, np.int32)
  else:
    text = np.zeros((count, settings.max_text_len, sizes.text_dim), dtype)
  return schema.Batch(
    latents=latents,
    lengths=AV(
      *(None if a is None else np.zeros(count, np.int32) for a in latents)
    ),
    text=AV(*(None if a is None else text for a in latents)),
    ids=np.full(count, PADDING, np.int64),
  )


def collate(
  settings: settings_lib.LoaderConfig,
  splits: Sequence[builder.Split],
  bucket: settings_lib.Bucket,
  indices: index_sampler.RecordIndices,
  seed: int,
  count: int | None = None,
  substitutes: Callable[[int, int], Iterable[int]] | None = None,
  leave_out: Callable[[int, ValueError], None] | None = None,
) -> schema.Batch:
  """Read the chosen records into a batch.

  Args:
    settings: of the loader.
    splits: the sources.
    bucket: sizes of the arrays.
    indices: the records.
    seed: of random choices.
    count: B, where it is more than the records; the other rows have lengths of
      0 and ids of `PADDING`.
    substitutes: returns the records that may replace a damaged one, given its
      source and number; the first that can be read is used, and `damaged` of
      the batch names the damaged one. `None` for no substitutes.
    leave_out: called with the id of a damaged record that has no substitute,
      and the problem; its row is like those beyond the records. `None` raises
      it.

  Returns:
    The batch, on the host. Cached latents and embeddings have the dtype of the
    sources, or float32 if the sources have several.

  Raises:
    ValueError: a record is damaged, or lacks latents or text, and has no
      substitute and may not be left out; names it.
  """
  dtypes = {split.dtype for split in splits}
  dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
  batch = blank(settings, bucket, count or len(indices.record), dtype)
  damaged = []
  for row, (source, record, epoch) in enumerate(zip(*indices, strict=True)):
    split, error = splits[source], None
    bad = (int(source) << schema.INDEX_BITS) | int(record)
    others = substitutes(int(source), int(record)) if substitutes else ()
    for number in itertools.chain((record,), others):
      choose = np.random.default_rng([seed, source, number, epoch])
      try:
        _fill(batch, row, split[number], settings, choose, split.path)
      except ValueError as problem:
        error = error or problem
        for array in (*batch.latents.present().values(), *_lengths(batch)):
          array[row] = 0
        continue
      batch.ids[row] = (int(source) << schema.INDEX_BITS) | int(number)
      if error is not None:
        damaged.append(
          schema.DamagedRecord(bad, int(batch.ids[row]), str(error))
        )
      break
    else:
      assert error is not None
      if leave_out is None:
        raise error
      leave_out(bad, error)
  return batch._replace(damaged=tuple(damaged)) if substitutes else batch


def _lengths(batch: schema.Batch) -> list[np.ndarray]:
  return list(batch.lengths.present().values())


def _fill(
  batch: schema.Batch,
  row: int,
  record: schema.Record,
  settings: settings_lib.LoaderConfig,
  choose: np.random.Generator,
  path: str,
) -> None:
  """Write a record into a row of the batch."""
  where = f"{path}, record {record.id!r}"
  present = batch.latents.present()
  if "video" in present and record.sizes.video[0]:
    part = _part(record, "video", settings.encode_on_the_fly, where)
    _copy(present["video"][row], part, where)
    batch.lengths.video[row] = record.sizes.video[0]
  if "audio" in present and record.sizes.audio:
    part = _part(record, "audio", settings.encode_on_the_fly, where)
    each = (
      settings.geometry.samples_per_audio_latent
      if settings.encode_on_the_fly
      else 1
    )
    room, begin = present["audio"].shape[1] // each, 0
    spare = record.sizes.audio - room
    alone = "video" not in present or not record.sizes.video[0]
    if spare > 0 and alone and settings.crop == "random":
      begin = int(choose.integers(spare + 1))
    length = min(room, record.sizes.audio)
    kept = part[begin * each : (begin + length) * each]
    _copy(present["audio"][row], kept, where)
    batch.lengths.audio[row] = length
  found = _text(record, settings, choose, where)
  _copy(text(batch)[row], found, where)


def _copy(row: np.ndarray, part: np.ndarray, where: str) -> None:
  """Write an array at the beginning of a row; ValueError if it is rounded."""
  if row.itemsize == 2 and part.dtype != row.dtype:
    raise ValueError(
      f"{where}: is stored as {part.dtype}, expected {row.dtype} as the first"
      " record; write the dataset again with one dtype"
    )
  row[: len(part)] = part


def _text(
  record: schema.Record,
  settings: settings_lib.LoaderConfig,
  choose: np.random.Generator,
  where: str,
) -> np.ndarray:
  """A caption's token ids [S] with padding, or its embedding [S, E]."""
  number = 0
  if settings.caption_sampling == "random":
    number = int(choose.integers(len(record.captions)))
  if settings.tokenizer:
    caption = record.captions[number]
    tokenizer = _tokenizer(settings.tokenizer)
    return tokenizer.encode([caption], settings.max_text_len)[0][0]
  if not record.text:
    raise ValueError(
      f"{where}: has no text embedding; encode the dataset first"
    )
  text_SE = record.text[number]
  if len(text_SE) > settings.max_text_len:
    raise ValueError(
      f"{where}: caption {number} has {len(text_SE)} rows of text, expected at"
      f" most {settings.max_text_len}; raise max_text_len of the model, or"
      " shorten the caption"
    )
  return text_SE


@functools.cache
def _tokenizer(path: str) -> tokenizer_lib.Tokenizer:
  """A tokenizer, once a process."""
  return tokenizer_lib.Tokenizer.load(path)


def _part(
  record: schema.Record, name: str, media: bool, where: str
) -> np.ndarray:
  """A modality decoded from its media, or its latents; ValueError if absent."""
  held = getattr(record if media else record.latents, name)
  if held is None:
    raise ValueError(_lacking(name, media, where))
  return _DECODE[name](record) if media else held


def _lacking(name: str, media: bool, where: str) -> str:
  """The error for a record that lacks the form of a modality that is read."""
  if media:
    return (
      f"{where}: has its {name} as latents only, expected media; set"
      " data.encode_on_the_fly to False, or write the dataset with its media"
    )
  return (
    f"{where}: has its {name} as media only, expected cached latents; encode"
    " the dataset first, or set data.encode_on_the_fly to True"
  )


def text(batch: schema.Batch) -> np.ndarray:
  """The embeddings or token ids of a batch, one array for both towers."""
  return next(iter(batch.text.present().values()))
