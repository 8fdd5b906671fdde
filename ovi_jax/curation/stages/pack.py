"""Records of what is left: the dataset that training reads.

In: the clips of all shards in order, with captions, and what `cut` kept of
them: mp4 and PCM, or PCM alone. Out: a dataset (`data/builder.py`) of media and
captions, whole or absent, the same bytes for the same clips. Latents are added
by `data/encode.py`. Files go to "train" or "test" by a hash of their content,
so that no file has clips in both.
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
from ovi_jax.data import splits

NAME = "pack"
VERSION = 1
KIND = "sink"
TRAIN, TEST = "train", "test"
_MAX_CLIPS_NAMED = 20  # clips that are named for each reason
Pairs = Iterator[tuple[clips.Clip, stage.Media]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How clips are laid out.

  Attributes:
    eval_fraction: share of the files whose clips go to "test".
    seed: of that choice.
    records_per_shard: in a file of the dataset.
    max_audio_seconds: seconds of a sound without a video; longer ones are dropped.
  """

  eval_fraction: float = 0.005
  seed: int = 0
  records_per_shard: int = builder.RECORDS_PER_SHARD
  max_audio_seconds: float = 12.0

  def __post_init__(self):
    if not 0 <= self.eval_fraction < 1:
      raise ValueError(
        f"pack.eval_fraction: expected a share in [0, 1), got {self.eval_fraction}"
      )
    if self.records_per_shard < 1 or not self.max_audio_seconds > 0:
      raise ValueError(
        "pack: expected records_per_shard of at least 1 and max_audio_seconds above"
        f" 0, got {self.records_per_shard} and {self.max_audio_seconds}"
      )


def load(config: Config) -> Callable[[Pairs, pathlib.Path], dict[str, Any]]:
  """The stage; see `stage` for its form."""

  def pack(every: Pairs, path: pathlib.Path) -> dict[str, Any]:
    packing = _Progress(config=config)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the dataset, where there is room for it.
    with tempfile.TemporaryFile(dir=path.parent) as later:
      splits = {
        TRAIN: _train_records(packing, every, later),
        TEST: _read_back(later),
      }
      with _explain_empty(path, packing):
        builder.write(
          path,
          splits,
          geometry=schema.Geometry(),
          records_per_shard=config.records_per_shard,
          may_be_empty=(TEST,),
        )
    return packing.summary()

  return pack


@dataclasses.dataclass(kw_only=True)
class _Progress:
  """What has become of clips so far.

  Attributes:
    config: of the stage.
    seen: ids of the clips that came.
    records: split -> how many.
    seconds: split -> of sound or video.
    dropped: reason -> the first clips, and how many there are in `counts`.
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
    """Note a clip that is left out, and why."""
    self.counts[reason] += 1
    named = self.dropped.setdefault(reason, [])
    if len(named) < _MAX_CLIPS_NAMED:
      named.append(f"{clip.id}: {detail}" if detail else clip.id)

  def summary(self) -> dict[str, Any]:
    """All of it as JSON."""
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
    clip: with captions.
    media: what was kept of it.
    max_audio_seconds: seconds, of a sound without a video.

  Raises:
    ValueError: it has no captions, the sound is too long, or the record breaks
      the contract or differs from its mp4.
    KeyError: something was not kept.
    OSError: the file of a sound cannot be read.
  """
  captions = tuple(clip.facts.get("captions", {}).get("prompts", ()))
  video, pcm = artifacts.video(clip, media), artifacts.audio(clip, media)
  if video is None and len(pcm) / 2 > max_audio_seconds * geometry.SAMPLE_RATE:
    raise ValueError(
      f"expected a sound of at most {max_audio_seconds:g} s, got"
      f" {len(pcm) / 2 / geometry.SAMPLE_RATE:.3f} s"
    )
  cut = clip.facts.get(artifacts.ENCODE, {}) if video is not None else {}
  made = schema.Record(
    id=clip.id,
    source=_source(clip),
    captions=captions,
    video=video,
    audio=pcm or None,
    scores=dict(clip.scores),
    frames=cut.get("frames", 0),
    height=cut.get("height", 0),
    width=cut.get("width", 0),
  )
  schema.check(made, schema.Geometry())
  samples.check(made)
  return made


def split_of(clip: clips.Clip, config: Config) -> str:
  """The split of a clip: that of its file."""
  content = clip.facts.get("probe", {}).get("sha256") or clip.path
  chance = splits.chance(content, config.seed)
  return TEST if chance < config.eval_fraction else TRAIN


def _source(clip: clips.Clip) -> str:
  """Where a clip is from, for people; names of files may be no text."""
  path = clip.path.encode(errors="backslashreplace").decode()
  return f"{path} {clip.start:.3f}+{clip.seconds:.3f}"


def _train_records(
  packing: _Progress, every: Pairs, later: BinaryIO
) -> Iterator[schema.Record]:
  """The records to train on; those held out are put aside.

  A clip that is no record is dropped; what cannot be read (OSError) may be
  there tomorrow, and the end is not written without it.
  """
  for clip, media in every:
    if clip.id in packing.seen:
      packing.drop("a copy of another", clip)
      continue
    packing.seen.add(clip.id)
    try:
      made = record(clip, media, packing.config.max_audio_seconds)
    except (KeyError, ValueError) as error:
      packing.drop("no record", clip, f"{type(error).__name__}: {error}")
      continue
    split = split_of(clip, packing.config)
    packing.records[split] += 1
    packing.seconds[split] += _seconds(made)
    if split == TEST:
      pickle.dump(made, later)
    else:
      yield made


def _seconds(made: schema.Record) -> float:
  """Length of a record."""
  return made.frames / made.fps if made.frames else made.seconds


def _read_back(later: BinaryIO) -> Iterator[schema.Record]:
  """What was put aside; called when all of it has been."""
  later.seek(0)
  with contextlib.suppress(EOFError):
    while True:
      yield pickle.load(later)


@contextlib.contextmanager
def _explain_empty(path: pathlib.Path, packing: _Progress) -> Iterator[None]:
  """Say what became of the clips, where none is left to train on."""
  try:
    yield
  except ValueError as error:
    if packing.records[TRAIN]:
      raise
    held_out = packing.records[TEST]
    raise ValueError(
      f"{path}: no clip is left to train on ({packing.summary()});"
      + (
        " all are held out: lower eval_fraction, or choose another seed"
        if held_out
        else " see the report for what refused them"
      )
    ) from error
