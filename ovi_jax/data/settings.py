"""Settings of the training data: sources, buckets, and how records fit them."""

import dataclasses
from collections.abc import Iterable
from collections.abc import Sequence

import numpy as np

from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import quality
from ovi_jax.data import record_ids
from ovi_jax.data import schema

CAPTIONS = ("random", "first")
CROPS = ("random", "start", "refuse")
# Sizes of buckets as a flag sets them, by modality.
EXAMPLES = {"video": "((31, 4, 4),)", "audio": "(157,)"}
NO_SOURCES = (
  "data.sources is empty: name the folder of each dataset, as in"
  " --config.data.sources=\"('DIR',)\""
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A dataset of the mixture.

  Attributes:
    path: folder that `builder.write` made.
    split: name of the split.
    weight: sampling weight; `None` for the number of its records.
  """

  path: str
  split: str = "train"
  weight: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
  """The sizes of the arrays of a batch.

  Attributes:
    video: latent T, H, W; `None` without a video tower.
    audio: audio latents; `None` without an audio tower.
  """

  video: tuple[int, int, int] | None = None
  audio: int | None = None

  def __post_init__(self):
    sides = self.video or (1, 2, 2)
    if min(*sides, 1 if self.audio is None else self.audio) < 1:
      raise ValueError(f"bucket sizes must be at least 1, got {self}")
    if len(sides) != 3 or any(side % geometry.PATCH for side in sides[1:]):
      raise ValueError(f"video must be [T, even H, even W], got {self.video}")
    if self.video is None and self.audio is None:
      raise ValueError("a bucket needs the size of a video, a sound, or both")

  @property
  def tokens(self) -> int:
    """Tokens of both towers for one row."""
    T, H, W = self.video or (0, 0, 0)
    return T * H * W // geometry.PATCH**2 + (self.audio or 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig:
  """Settings of the loader.

  Attributes:
    sources: datasets, at least one.
    buckets: at least one; all with the same modalities, which are those of the
      batches. A record goes to the smallest bucket that holds it.
    geometry: geometry of the model; every source must have it.
    max_text_len: S of text_BSE.
    caption_sampling: "random" (by seed, epoch and record) or "first".
    crop: audio longer than every bucket is cropped at "random", from the
      "start", or an error ("refuse"). Audio with video is not cropped.
    skip_unfit: leave out records that fit no bucket, instead of an error.
    token_balanced_batches: give shorter buckets more rows, for about equal
      numbers of tokens per batch.
    batch_multiple: token-balanced batches have a multiple of this many rows; 0
      for `batch_size`.
    encode_on_the_fly: read mp4 and PCM instead of cached latents; they are
      encoded on the devices. `latents` of a batch then holds uint8 frames
      [B, 1 + 4·(T-1), 16·H, 16·W, 3] and float32 samples [B, 512·T]; `lengths`
      still counts latents.
    tokenizer: path of a `tokenizer.json` to read captions instead of cached
      embeddings; `text` of a batch then holds token ids int32 [B, S], truncated
      and padded. Empty for embeddings.
    num_workers: processes that read and decode; 0 reads in the main process.
    prefetch_batches: batches that each worker, or the main process, prefetches.
    max_unknown_words: maximum fraction of words of captions that the tokenizer
      does not know; 1.0 for no limit.
    min_codec_psnr: minimum mean PSNR of the video VAE on the data, dB; 0 for no
      limit.
    max_codec_mel_error: maximum mean log-mel error of audio VAE and vocoder on
      the data, dB; 0 for no limit.
    exclude_records: records that are not used: ids SOURCE:INDEX separated by
      commas, as log lines name them, or the path of a file with one a line.
      Each is replaced by the next record of its source and bucket; all others
      keep their order and noise.
    max_damaged_records: number of damaged records, per process and per restart
      of the run, that are logged and replaced in the same way, or left out of
      the held-out loss; the next one ends the run.
  """

  sources: tuple[Source, ...]
  buckets: tuple[Bucket, ...]
  geometry: schema.Geometry = dataclasses.field(default_factory=schema.Geometry)
  max_text_len: int = 512
  caption_sampling: str = "random"
  crop: str = "random"
  skip_unfit: bool = False
  token_balanced_batches: bool = False
  batch_multiple: int = 0
  encode_on_the_fly: bool = False
  tokenizer: str = ""
  num_workers: int = 0
  prefetch_batches: int = 2
  max_unknown_words: float = quality.Limits.max_unknown_words
  min_codec_psnr: float = quality.Limits.min_codec_psnr
  max_codec_mel_error: float = quality.Limits.max_codec_mel_error
  exclude_records: str = ""
  max_damaged_records: int = 0

  @property
  def limits(self) -> quality.Limits:
    """Limits of what tokenizer and codecs may lose."""
    return quality.Limits(
      max_unknown_words=self.max_unknown_words,
      min_codec_psnr=self.min_codec_psnr,
      max_codec_mel_error=self.max_codec_mel_error,
    )

  def wanted(self, found: schema.Geometry) -> schema.Geometry:
    """The geometry that a source must have; unread fields may differ.

    Args:
      found: geometry of the source.

    Returns:
      The geometry of the model, with the source's values of unread fields.
    """
    ignored = [
      f"{name}_channels"
      for name in ("video", "audio")
      if self.encode_on_the_fly or getattr(self.buckets[0], name) is None
    ]
    if self.tokenizer:
      ignored.append("text_dim")
    free = {name: getattr(found, name) for name in ignored}
    return dataclasses.replace(self.geometry, **free)

  def __post_init__(self):
    if not self.sources:
      raise ValueError(NO_SOURCES)
    if not self.buckets:
      raise ValueError(no_buckets(EXAMPLES))
    kinds = {(b.video is None, b.audio is None) for b in self.buckets}
    if len(kinds) > 1 or len(set(self.buckets)) < len(self.buckets):
      raise ValueError(
        "buckets must differ and have the same modalities, got"
        f" {list(self.buckets)}"
      )
    given = {source.weight is None for source in self.sources}
    if len(given) > 1 or any((s.weight or 1) <= 0 for s in self.sources):
      raise ValueError(
        "set a positive weight for every source, or for none, got"
        f" {[source.weight for source in self.sources]}"
      )
    for name, known in (("caption_sampling", CAPTIONS), ("crop", CROPS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}: expected one of {known}, got {getattr(self, name)!r}"
        )
    for name in ("max_text_len", "prefetch_batches"):
      if getattr(self, name) < 1:
        raise ValueError(
          f"{name} must be at least 1, got {getattr(self, name)}"
        )
    for name in ("num_workers", "batch_multiple", "max_damaged_records"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name} must not be negative, got {getattr(self, name)}"
        )
    record_ids.parse(self.exclude_records)
    _ = self.limits


def no_buckets(modalities: Iterable[str]) -> str:
  """What to do where no sizes are set.

  Args:
    modalities: of the model.
  """
  flags = [
    f'--config.data.{name}_buckets="{EXAMPLES[name]}"' for name in modalities
  ]
  names = [f"data.{name}_buckets" for name in modalities]
  verb = "are" if len(names) > 1 else "is"
  return (
    f"{' and '.join(names)} {verb} empty: set the latent sizes of batches, as"
    f" in {' '.join(flags)}"
  )


def sound_buckets(seconds: Sequence[float]) -> tuple[Bucket, ...]:
  """Audio buckets of some lengths in seconds."""
  rate = geometry.AUDIO_LATENT_RATE
  return tuple(Bucket(audio=int(second * rate)) for second in seconds)


def rows(settings: LoaderConfig, batch: int) -> tuple[int, ...]:
  """The number of rows of a global batch, for each bucket.

  Args:
    settings: of the loader.
    batch: rows of the largest bucket.

  Returns:
    Rows, in the order of the buckets.

  Raises:
    ValueError: `batch_multiple` does not divide the batch.
  """
  if not settings.token_balanced_batches:
    return (batch,) * len(settings.buckets)
  multiple = settings.batch_multiple or batch
  if batch % multiple:
    raise ValueError(
      f"batch_multiple: expected one that divides the batch of {batch}, got"
      f" {multiple}"
    )
  most = max(bucket.tokens for bucket in settings.buckets)
  return tuple(
    max(multiple, batch * most // bucket.tokens // multiple * multiple)
    for bucket in settings.buckets
  )


def assign(settings: LoaderConfig, split: builder.Split) -> np.ndarray:
  """Assign records to buckets.

  Args:
    settings: of the loader.
    split: the records.

  Returns:
    int64 [records], index of the bucket; -1 for records that fit none.

  Raises:
    ValueError: a record fits no bucket and `skip_unfit` is off, or no record
      fits one.
  """
  T, H, W, audio = split.index.T.astype(np.int64)
  order = sorted(
    range(len(settings.buckets)), key=lambda b: settings.buckets[b].tokens
  )
  found = np.full(len(split), -1, np.int64)
  for number in order:
    bucket, there = settings.buckets[number], np.zeros(len(split), bool)
    fits, slack = ~there, np.zeros(len(split), np.int64)
    if bucket.video is not None:
      t, h, w = bucket.video
      there |= T > 0
      fits &= (T == 0) | ((t >= T) & (h == H) & (w == W))
      slack[T > 0] = schema.AUDIO_SLACK
    if bucket.audio is not None:
      there |= audio > 0
      fits &= audio <= bucket.audio + slack
    found[(found < 0) & fits & there] = number
  longest = max(order, key=lambda b: settings.buckets[b].audio or 0)
  alone = (T == 0) | (settings.buckets[longest].video is None)
  if settings.crop != "refuse" and settings.buckets[longest].audio is not None:
    found[(found < 0) & alone & (audio > 0)] = longest
  unfit = np.flatnonzero(found < 0)
  if len(unfit) == len(split) or (unfit.size and not settings.skip_unfit):
    first = unfit[0]
    raise ValueError(
      f"{split.path}, split {split.name!r}: {len(unfit)} of {len(split)}"
      f" records fit no bucket; record {first} has video latents"
      f" {[int(n[first]) for n in (T, H, W)]} and {audio[first]} audio latents,"
      f" the buckets are {list(settings.buckets)}. Add a bucket, or set"
      " skip_unfit to leave them out"
    )
  return found
