"""Writes the dataset that training reads.

Reads the clips of all shards in order, with captions, and the artifacts of
`encode` (mp4 and PCM, or PCM alone). Writes a dataset (`data/builder.py`) of
media and captions atomically; the same clips give the same bytes. Latents are
added by `data/encode.py`. Source files are assigned to "train" or "test" by a
hash of their content, so no file has clips in both.
"""

import collections
import contextlib
import dataclasses
import pathlib
import pickle
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import BinaryIO

from ovi_jax import geometry
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.media import artifacts
from ovi_jax.data import builder
from ovi_jax.data import clips as samples
from ovi_jax.data import schema

NAME = "pack"
VERSION = 1
KIND = "sink"
TRAIN, TEST = "train", "test"
_MAX_CLIPS_NAMED = 20  # clips that are named for each reason
Pairs = Iterator[tuple[clips.Clip, stage.Media]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Layout of the dataset.

  Attributes:
    eval_fraction: fraction of source files whose clips go to the split "test".
    seed: seed of that assignment.
    records_per_shard: records per dataset file.
    max_audio_seconds: maximum length of audio-only clips.
  """

  eval_fraction: float = 0.005
  seed: int = 0
  records_per_shard: int = builder.RECORDS_PER_SHARD
  max_audio_seconds: float = 12.0

  def __post_init__(self):
    if not 0 <= self.eval_fraction < 1:
      raise ValueError(
        "pack.eval_fraction: expected a fraction in [0, 1), got"
        f" {self.eval_fraction}"
      )
    if self.records_per_shard < 1 or not self.max_audio_seconds > 0:
      raise ValueError(
        "pack: expected records_per_shard of at least 1 and max_audio_seconds"
        f" above 0, got {self.records_per_shard} and {self.max_audio_seconds}"
      )


def load(config: Config) -> Callable[[Pairs, pathlib.Path], dict[str, Any]]:
  """The stage function."""

  def pack(pairs: Pairs, path: pathlib.Path) -> dict[str, Any]:
    progress = _Progress(config=config)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Next to the dataset, on the same disk.
    with tempfile.TemporaryFile(dir=path.parent) as eval_file:
      splits = {
        TRAIN: _train_records(progress, pairs, eval_file),
        TEST: _read_back(eval_file),
      }
      with _explain_empty(path, progress):
        builder.write(
          path,
          splits,
          geometry=schema.Geometry(),
          records_per_shard=config.records_per_shard,
          may_be_empty=(TEST,),
        )
    return progress.summary()

  return pack


@dataclasses.dataclass(kw_only=True)
class _Progress:
  """Counts so far.

  Attributes:
    config: config of the stage.
    seen: ids of the clips received.
    records: split -> number of records.
    seconds: split -> total length.
    dropped: reason -> the first dropped clips; totals are in `counts`.
  """

  config: Config
  seen: set[str] = dataclasses.field(default_factory=set)
  records: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  seconds: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  dropped: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  counts: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  def drop(self, reason: str, clip: clips.Clip, detail: str = "") -> None:
    """Record a dropped clip."""
    self.counts[reason] += 1
    named = self.dropped.setdefault(reason, [])
    if len(named) < _MAX_CLIPS_NAMED:
      named.append(f"{clip.id}: {detail}" if detail else clip.id)

  def summary(self) -> dict[str, Any]:
    """The counts, as JSON."""
    return {
      "records": dict(self.records),
      "hours": {n: round(s / 3600, 6) for n, s in self.seconds.items()},
      "dropped": dict(self.counts),
      "dropped_clips": self.dropped,
    }


def record(
  clip: clips.Clip, media: stage.Media, max_audio_seconds: float = 12.0
) -> schema.Record:
  """A clip as the trainer's record.

  Args:
    clip: a clip with captions.
    media: its media and artifacts.
    max_audio_seconds: maximum length of an audio-only clip.

  Raises:
    ValueError: no captions, audio too long, or a record that violates the
      schema or differs from its mp4.
    KeyError: an artifact is missing.
    OSError: the audio file cannot be read.
  """
  captions = tuple(clip.facts.get("captions", {}).get("prompts", ()))
  video, pcm = artifacts.video(clip, media), artifacts.audio(clip, media)
  if video is None and len(pcm) / 2 > max_audio_seconds * geometry.SAMPLE_RATE:
    raise ValueError(
      f"expected audio of at most {max_audio_seconds:g} s, got"
      f" {len(pcm) / 2 / geometry.SAMPLE_RATE:.3f} s"
    )
  encoded = clip.facts.get(artifacts.ENCODE, {}) if video is not None else {}
  result = schema.Record(
    id=clip.id,
    source=_source(clip),
    captions=captions,
    video=video,
    audio=pcm or None,
    scores=dict(clip.scores),
    frames=encoded.get("frames", 0),
    height=encoded.get("height", 0),
    width=encoded.get("width", 0),
  )
  schema.check(result, schema.Geometry())
  samples.check(result)
  return result


def split_of(clip: clips.Clip, config: Config) -> str:
  """The split of a clip's source file."""
  content = clip.facts.get("probe", {}).get("sha256") or clip.path
  hash_fraction = builder.hash_fraction(content, config.seed)
  return TEST if hash_fraction < config.eval_fraction else TRAIN


def _source(clip: clips.Clip) -> str:
  """Path and time range of a clip; printable."""
  path = clip.path.encode(errors="backslashreplace").decode()
  return f"{path} {clip.start:.3f}+{clip.seconds:.3f}"


def _train_records(
  progress: _Progress, pairs: Pairs, eval_file: BinaryIO
) -> Iterator[schema.Record]:
  """The training records; eval records are written to a temporary file.

  Clips without a valid record are dropped. OSError aborts: storage may be
  available again eval_file.
  """
  for clip, media in pairs:
    if clip.id in progress.seen:
      progress.drop("duplicate", clip)
      continue
    progress.seen.add(clip.id)
    try:
      result = record(clip, media, progress.config.max_audio_seconds)
    except (KeyError, ValueError) as error:
      progress.drop("invalid record", clip, f"{type(error).__name__}: {error}")
      continue
    split = split_of(clip, progress.config)
    progress.records[split] += 1
    progress.seconds[split] += _seconds(result)
    if split == TEST:
      pickle.dump(result, eval_file)
    else:
      yield result


def _seconds(result: schema.Record) -> float:
  """Length of a record in seconds."""
  return result.frames / result.fps if result.frames else result.seconds


def _read_back(eval_file: BinaryIO) -> Iterator[schema.Record]:
  """The eval records from the temporary file."""
  eval_file.seek(0)
  with contextlib.suppress(EOFError):
    while True:
      yield pickle.load(eval_file)


@contextlib.contextmanager
def _explain_empty(path: pathlib.Path, progress: _Progress) -> Iterator[None]:
  """Explain the error if no training record is left."""
  try:
    yield
  except ValueError as error:
    if progress.records[TRAIN]:
      raise
    num_eval = progress.records[TEST]
    raise ValueError(
      f"{path}: no clip is left to train on ({progress.summary()});"
      + (
        " all are in the eval split: lower eval_fraction, or change the seed"
        if num_eval
        else " see the reject reasons in the report"
      )
    ) from error
