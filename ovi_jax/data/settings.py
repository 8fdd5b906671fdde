"""What a stage reads: sources, buckets, and how records are fitted to them."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ovi_jax import geometry
from ovi_jax.data import builder
from ovi_jax.data import quality
from ovi_jax.data import schema

CAPTIONS = ("random", "first")
CROPS = ("random", "start", "refuse")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A dataset of the mixture.

  Attributes:
    path: folder that `builder.write` made.
    split: of it.
    weight: share of the draws; None for as many as it has records.
  """

  path: str
  split: str = "train"
  weight: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
  """The sizes of the arrays of a batch.

  Attributes:
    video: latent T, H, W; None where the stage has no video tower.
    audio: audio latents; None where the stage has no audio tower.
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
  """How records become batches.

  Attributes:
    sources: at least one.
    buckets: at least one; all with the same modalities, which are those the
      batches have. A record goes to the smallest that holds it.
    geometry: of the model; every source must have it.
    max_text_len: S of text_BSE.
    caption_sampling: "random" (by seed, epoch and record) or "first".
    crop: for sounds longer than every bucket: keep a stretch at "random", or
      from the "start", or "refuse". Sounds beside a video are never moved.
    skip_unfit: leave out records that no bucket holds, rather than refuse.
    token_balanced_batches: give shorter buckets more rows, for about equal
      tokens.
    batch_multiple: rows of a scaled batch are a multiple of it; 0 for the
      batch.
    encode_on_the_fly: read mp4 and PCM, not cached latents. `latents` of a
      batch then hold uint8 frames [B, 1 + 4·(T-1), 16·H, 16·W, 3] and float32
      samples [B, 512·T], and `lengths` still count latents.
    tokenizer: a `tokenizer.json`: read captions, not cached embeddings. `text`
      of a batch then holds its token ids int32 [B, S], cut and padded.
    num_workers: processes that read and decode; 0 reads in this one.
    prefetch_batches: batches that each worker (or this process) keeps ready.
    max_unknown_words: see `quality.Limits`, as are the following.
    min_codec_psnr: of media that are encoded during training.
    max_codec_mel_error: likewise.
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

  @property
  def limits(self) -> quality.Limits:
    """Of what tokenizer and codecs may lose."""
    return quality.Limits(
      max_unknown_words=self.max_unknown_words,
      min_codec_psnr=self.min_codec_psnr,
      max_codec_mel_error=self.max_codec_mel_error,
    )

  def wanted(self, found: schema.Geometry) -> schema.Geometry:
    """The geometry of a source, which need agree only in what is read."""
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
    if not self.sources or not self.buckets:
      raise ValueError(
        "expected at least one source and one bucket, got"
        f" {len(self.sources)} and {len(self.buckets)}"
      )
    kinds = {(b.video is None, b.audio is None) for b in self.buckets}
    if len(kinds) > 1 or len(set(self.buckets)) < len(self.buckets):
      raise ValueError(
        "buckets must differ and have the same modalities, got"
        f" {list(self.buckets)}"
      )
    given = {source.weight is None for source in self.sources}
    if len(given) > 1 or any((s.weight or 1) <= 0 for s in self.sources):
      raise ValueError(
        "give every source a positive weight, or none, got"
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
    if self.num_workers < 0 or self.batch_multiple < 0:
      raise ValueError("num_workers and batch_multiple must not be negative")
    _ = self.limits


def sound_buckets(seconds: Sequence[float]) -> tuple[Bucket, ...]:
  """Buckets of sounds of up to so many seconds each."""
  rate = geometry.AUDIO_LATENT_RATE
  return tuple(Bucket(audio=int(second * rate)) for second in seconds)


def rows(settings: LoaderConfig, batch: int) -> tuple[int, ...]:
  """Rows of a global batch of each bucket; `batch` for the largest.

  Raises:
    ValueError: rows are scaled to a multiple that does not divide the batch.
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
  """The number of the bucket of each record, int64 [records]; -1 for none.

  Raises:
    ValueError: a record fits no bucket and `skip_unfit` is off, or all are
      left out.
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
