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
_TOLD = 20  # clips that are named for each reason
Pairs = Iterator[tuple[clips.Clip, stage.Media]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """How clips are laid out.

  Attributes:
    held_out: share of the files whose clips go to "test".
    seed: of that choice.
    records_per_shard: in a file of the dataset.
    longest_sound: seconds of a sound without a video; longer ones are dropped.
  """

  held_out: float = 0.005
  seed: int = 0
  records_per_shard: int = builder.RECORDS_PER_SHARD
  longest_sound: float = 12.0

  def __post_init__(self):
    if not 0 <= self.held_out < 1:
      raise ValueError(
        f"pack.held_out: expected a share in [0, 1), got {self.held_out}"
      )
    if self.records_per_shard < 1 or not self.longest_sound > 0:
      raise ValueError(
        "pack: expected records_per_shard of at least 1 and longest_sound above"
        f" 0, got {self.records_per_shard} and {self.longest_sound}"
      )


def load(config: Config) -> Callable[[Pairs, pathlib.Path], dict[str, Any]]:
  """The stage; see `stage` for its form."""

  def pack(every: Pairs, path: pathlib.Path) -> dict[str, Any]:
    packing = _Packing(config=config)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the dataset, where there is room for it.
    with tempfile.TemporaryFile(dir=path.parent) as later:
      splits = {TRAIN: _now(packing, every, later), TEST: _then(later)}
      with _none_left(path, packing):
        builder.write(
          path,
          splits,
          geometry=schema.Geometry(),
          records_per_shard=config.records_per_shard,
          may_be_empty=(TEST,),
        )
    return packing.made()

  return pack


@dataclasses.dataclass(kw_only=True)
class _Packing:
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
    if len(named) < _TOLD:
      named.append(f"{clip.id}: {detail}" if detail else clip.id)

  def made(self) -> dict[str, Any]:
    """All of it as JSON."""
    return {
      "records": dict(self.records),
      "hours": {n: round(s / 3600, 6) for n, s in self.seconds.items()},
      "dropped": dict(self.counts),
      "dropped_clips": self.dropped,
    }


def record(
  clip: clips.Clip, media: stage.Media, longest_sound: float = 12.0
) -> schema.Record:
  """A clip as the trainer's record.

  Args:
    clip: with captions.
    media: what was kept of it.
    longest_sound: seconds, of a sound without a video.

  Raises:
    ValueError: it has no captions, the sound is too long, or the record breaks
      the contract or differs from its mp4.
    KeyError: something was not kept.
    OSError: the file of a sound cannot be read.
  """
  captions = tuple(clip.facts.get("captions", {}).get("prompts", ()))
  video, pcm = artifacts.video(clip, media), artifacts.sound(clip, media)
  if video is None and len(pcm) / 2 > longest_sound * geometry.SAMPLE_RATE:
    raise ValueError(
      f"expected a sound of at most {longest_sound:g} s, got"
      f" {len(pcm) / 2 / geometry.SAMPLE_RATE:.3f} s"
    )
  cut = clip.facts.get(artifacts.CUT, {}) if video is not None else {}
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
  content = clip.facts.get("probe", {}).get("content") or clip.path
  chance = splits.chance(content, config.seed)
  return TEST if chance < config.held_out else TRAIN


def _source(clip: clips.Clip) -> str:
  """Where a clip is from, for people; names of files may be no text."""
  path = clip.path.encode(errors="backslashreplace").decode()
  return f"{path} {clip.start:.3f}+{clip.seconds:.3f}"


def _now(
  packing: _Packing, every: Pairs, later: BinaryIO
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
      made = record(clip, media, packing.config.longest_sound)
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


def _then(later: BinaryIO) -> Iterator[schema.Record]:
  """What was put aside; called when all of it has been."""
  later.seek(0)
  with contextlib.suppress(EOFError):
    while True:
      yield pickle.load(later)


@contextlib.contextmanager
def _none_left(path: pathlib.Path, packing: _Packing) -> Iterator[None]:
  """Say what became of the clips, where none is left to train on."""
  try:
    yield
  except ValueError as error:
    if packing.records[TRAIN]:
      raise
    held_out = packing.records[TEST]
    raise ValueError(
      f"{path}: no clip is left to train on ({packing.made()});"
      + (
        " all are held out: lower held_out, or choose another seed"
        if held_out
        else " see the report for what refused them"
      )
    ) from error
