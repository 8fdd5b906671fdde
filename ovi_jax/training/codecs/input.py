"""Input of codec training: endless batches of random crops of clips.

A source (a synthetic world, or a dataset with media) returns a crop of a clip
by number, or nothing if the clip lacks what is wanted. Row r of batch n is a
function of the seed, n and r alone: a source, one of its clips and a position
in the clip, all uniform at random; drawn again where the clip lacks what is
wanted. So batches depend neither on workers nor on processes, and a checkpoint
stores one number as the position.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import loader
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.data import settings as settings_lib
from ovi_jax.data import shared_memory
from ovi_jax.modality import AV
from ovi_jax.synthetic import world as worlds

WORLD = "world"
NUMBERS = 2**30  # clips of a world that take part: more than are ever drawn
_FORM = f"{WORLD}:SEED, {WORLD}:SEED:WHAT or the folder of a dataset"
_TRIES = 1000  # clips in a row without what is wanted, before giving up


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """What is taken of each clip; 0 and `False` are nothing.

  Attributes:
    frames: of the video, 1 + 4·k.
    samples: of the sound.
    caption: one of them.
  """

  frames: int = 0
  samples: int = 0
  caption: bool = False

  def __post_init__(self):
    odd = self.frames and self.frames % 4 != 1
    if min(self.frames, self.samples) < 0 or odd:
      raise ValueError(
        "data: num_frames must be 0 or 1 + a multiple of 4 and"
        " num_audio_samples 0 or more,"
        f" got {self.frames} and {self.samples}"
      )
    if not (self.frames or self.samples or self.caption):
      raise ValueError(
        "data: nothing is read of the clips; set num_frames, num_audio_samples"
        " or tokenizer"
      )


class Crop(NamedTuple):
  """What was taken of a clip; `None` for what was not wanted.

  Attributes:
    frames_THWC: uint8.
    wave_A: float32 in [-1, 1] at 16 kHz.
    caption: one of the clip's.
  """

  frames_THWC: np.ndarray | None
  wave_A: np.ndarray | None
  caption: str | None


class CropPosition(NamedTuple):
  """Where a crop is taken, each in [0, 1): drawn at random."""

  video: float
  audio: float
  caption: float


class Source(Protocol):
  """Clips by number."""

  @property
  def identity(self) -> str:
    """The same for the same clips, wherever they lie."""
    ...

  @property
  def frame_area(self) -> int:
    """Pixels of the largest frame."""
    ...

  def __len__(self) -> int: ...

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    """A crop, or `None` of a clip that lacks what is wanted or is shorter."""
    ...


@dataclasses.dataclass(frozen=True)
class World:
  """Clips of a world, drawn when they are asked for; only the frames wanted."""

  world: worlds.World

  @property
  def identity(self) -> str:
    return f"{WORLD}:{self.world.seed}:{self.world.what}"

  @property
  def frame_area(self) -> int:
    return self.world.size**2

  def __len__(self) -> int:
    return NUMBERS

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    part = _part(place.video, self.world.frames, wanted.frames or 1)
    made = self.world.clip(number, part, sound=bool(wanted.samples))
    return _crop(
      wanted, place, made.frames_THWC, made.wave_A, tuple(made.captions)
    )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Records with mp4 and PCM."""

  split: builder.Split

  @property
  def identity(self) -> str:
    return self.split.identity

  @property
  def frame_area(self) -> int:
    _, row, column = self.split.geometry.video_strides
    _, H, W, _ = self.split.index.T.astype(np.int64)
    return int((H * row * W * column).max(initial=0))

  def __len__(self) -> int:
    return len(self.split)

  def crop(
    self, number: int, wanted: ClipSpec, place: CropPosition
  ) -> Crop | None:
    record = self.split[number]
    frames_THWC, wave_A = None, None
    if wanted.frames and record.video is not None:
      part = _part(place.video, record.frames, wanted.frames)
      frames_THWC = clips.frames(record)[part]
    if wanted.samples and record.audio is not None:
      wave_A = clips.wave(record)
    return _crop(wanted, place, frames_THWC, wave_A, record.captions)


def open_source(name: str, split: str) -> Source:
  """The source that a config names.

  Args:
    name: `world:SEED` (`world:SEED:WHAT` for what else it has), or a folder.
    split: of a dataset; a world has none.

  Raises:
    ValueError: there is no such world or dataset.
  """
  kind, *rest = name.split(":")
  if kind != WORLD:
    if not name:
      raise ValueError(f"data.sources: expected {_FORM}, got an empty name")
    return Dataset(builder.read(name, split))
  try:
    seed, what = (*rest, worlds.World.what)[:2]
    return World(worlds.World(seed=int(seed), what=what))
  except ValueError as error:
    raise ValueError(
      f"data.sources: expected {_FORM}, got {name!r} ({error})"
    ) from error


def _part(share: float, have: int, want: int) -> slice:
  """`want` of `have` in a row; all, where that is fewer."""
  start = int(share * max(1, have - want + 1))
  return slice(start, start + want)


def _crop(
  wanted: ClipSpec,
  place: CropPosition,
  frames_THWC: np.ndarray | None,
  wave_A: np.ndarray | None,
  captions: Sequence[str],
) -> Crop | None:
  """What is wanted, of frames that are cut and a wave that is not."""
  video, audio, caption = None, None, None
  if wanted.frames:
    if frames_THWC is None or len(frames_THWC) < wanted.frames:
      return None
    video = frames_THWC
  if wanted.samples:
    if wave_A is None or len(wave_A) < wanted.samples:
      return None
    audio = wave_A[_part(place.audio, len(wave_A), wanted.samples)]
  if wanted.caption:
    caption = captions[int(place.caption * len(captions))]
  return Crop(video, audio, caption)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecInputConfig:
  """Training data of a codec.

  Attributes:
    sources: datasets, or `world:SEED` for clips of the synthetic world that are
      rendered on the fly.
    split: split of the datasets.
    num_frames: frames of a video crop, 1 + 4·k; 0 for no video.
    num_audio_samples: samples of an audio crop at 16 kHz; 0 for no audio.
    tokenizer: path of a `tokenizer.json` to read captions; empty for none.
    max_text_len: tokens that captions are truncated and padded to.
    num_workers: processes that render and decode; 0 reads in the main process.
    prefetch_batches: batches that each worker, or the main process, prefetches.
    exclude_records: records that are not used: ids SOURCE:INDEX separated by
      commas, as log lines name them, or the path of a file with one a line.
      Another one is drawn for each; all other rows stay the same.
    max_damaged_records: number of damaged records, in each process and start of
      the run, that are logged and replaced in the same way; the next one ends
      the run.
  """

  sources: tuple[str, ...]
  split: str = "train"
  num_frames: int = 0
  num_audio_samples: int = 0
  tokenizer: str = ""
  max_text_len: int = 64
  num_workers: int = 0
  prefetch_batches: int = 2
  exclude_records: str = ""
  max_damaged_records: int = 0

  def __post_init__(self):
    if not self.sources:
      raise ValueError(settings_lib.NO_SOURCES)
    if self.max_damaged_records < 0:
      raise ValueError(
        "data.max_damaged_records must not be negative, got"
        f" {self.max_damaged_records}"
      )
    record_ids.parse(self.exclude_records)
    if (
      self.num_workers < 0 or min(self.max_text_len, self.prefetch_batches) < 1
    ):
      raise ValueError(
        "data: num_workers must be 0 or more, max_text_len and"
        " prefetch_batches 1 or more, got"
        f" {self.num_workers}, {self.max_text_len} and {self.prefetch_batches}"
      )
    _ = self.wanted

  @property
  def wanted(self) -> ClipSpec:
    """What is taken of a clip."""
    return ClipSpec(
      frames=self.num_frames,
      samples=self.num_audio_samples,
      caption=bool(self.tokenizer),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
  """Batches by number.

  Attributes:
    settings: what is read.
    sources: opened.
    batch: rows over all processes.
    rows: those of this process.
    seed: of everything drawn.
    excluded: ids of records that are not used.
    first: number of the first one, for who begins later.
  """

  settings: CodecInputConfig
  sources: tuple[Source, ...]
  batch: int
  rows: range
  seed: int
  excluded: frozenset[int] = frozenset()
  first: int = 0

  def __len__(self) -> int:
    return loader.ENDLESS

  def __getitem__(self, index: int) -> schema.Batch:
    """A batch.

    Frames uint8 [B, frames, H, W, 3] and samples float32 [B, samples] take the
    place of latents, token ids int32 [B, max_text_len] that of text; `lengths`
    count frames and samples.

    Raises:
      ValueError: clips are damaged, of different sizes, or all without what is
        wanted.
    """
    start = (index + self.first) * self.batch
    found, ids, damaged = zip(*(self._crop(start + row) for row in self.rows))
    count, latents, lengths = len(ids), {}, {}
    for name, field in (("video", "frames_THWC"), ("audio", "wave_A")):
      parts = [getattr(crop, field) for crop in found]
      if parts[0] is not None:
        _check_alike(parts, name)
        latents[name] = np.stack(parts)
        lengths[name] = np.full(count, len(parts[0]), np.int32)
    text = None
    if self.settings.tokenizer:
      captions = [str(crop.caption) for crop in found]
      tokenizer = _tokenizer(self.settings.tokenizer)
      text, _ = tokenizer.encode(captions, self.settings.max_text_len)
    return schema.Batch(
      latents=AV(**latents),
      lengths=AV(**lengths),
      text=AV(text, text),
      ids=np.array(ids, np.int64),
      damaged=tuple(itertools.chain.from_iterable(damaged)),
    )

  def _crop(self, place: int) -> tuple[Crop, int, list[schema.DamagedRecord]]:
    """The crop of a row of all rows of all batches, its id, and damaged ones.

    The third are the damaged records that were drawn before.
    """
    random = np.random.default_rng((self.seed, place))
    damaged: dict[int, ValueError] = {}
    for _ in range(_TRIES):
      which = int(random.integers(len(self.sources)))
      source = self.sources[which]
      number = int(random.integers(len(source)))
      where = CropPosition(*random.random(3))
      identity = which << schema.INDEX_BITS | number
      if identity in self.excluded:
        continue
      try:
        crop = source.crop(number, self.settings.wanted, where)
      except ValueError as error:
        if not self.settings.max_damaged_records:
          raise
        damaged[identity] = error
        continue
      if crop is not None:
        replaced = [
          schema.DamagedRecord(bad, identity, str(error))
          for bad, error in damaged.items()
        ]
        return crop, identity, replaced
    last = list(damaged.values())[-1] if damaged else None
    cause = f"; {len(damaged)} are damaged: {last}" if damaged else ""
    raise ValueError(
      f"none of {_TRIES} clips of {[s.identity for s in self.sources]} has all"
      f" of {self.settings.wanted}; ask for shorter crops, or name a source"
      f" with pictures or sound{cause}"
    ) from last


class Input(Iterator[schema.Batch]):
  """An endless iterator whose place can be kept, see `loop.Input`."""

  def __init__(self, batches: Batches):
    self._batches = batches
    self._step, self._running = 0, None
    self._damaged = loader.DamagedRecords(batches.settings.max_damaged_records)

  def __next__(self) -> schema.Batch:
    if self._running is None:
      settings = self._batches.settings
      rest = dataclasses.replace(self._batches, first=self._step)
      self._running = loader.in_order(
        rest, settings.num_workers, settings.prefetch_batches
      )
    batch = self._damaged.check(next(self._running))
    self._step += 1
    parts = {n: _plain(part) for n, part in batch._asdict().items()}
    return schema.Batch(**parts)

  def get_state(self) -> dict[str, Any]:
    """The number of the next batch, and what the order depends on."""
    return {"step": self._step, "order": self._order()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Go to where `get_state` was called.

    Raises:
      ValueError: the state is of other settings, seed, batch or sources.
    """
    if not (
      isinstance(state, dict)
      and isinstance(state.get("order"), dict)
      and type(state.get("step")) is int
      and 0 <= state["step"] < loader.ENDLESS
    ):
      raise ValueError(f"the state of the data is damaged: {state!r:.100}")
    loader.check_order(self._order(), state["order"])
    self.close()
    self._step = state["step"]

  def close(self) -> None:
    """End the workers; the next `next` starts them again where it stands."""
    if self._running is not None:
      self._running.close()
      self._running = None

  def _order(self) -> dict[str, Any]:
    batches = self._batches
    return {
      "seed": batches.seed,
      "batch": batches.batch,
      "sources": [source.identity for source in batches.sources],
      "crop": [batches.settings.num_frames, batches.settings.num_audio_samples],
      "captions": bool(batches.settings.tokenizer),
    }


def load(
  settings: CodecInputConfig,
  *,
  batch: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Input:
  """Open the sources and iterate over their crops without end.

  Args:
    settings: what to read.
    batch: rows over all processes, which must divide it.
    seed: of clips and crops.
    process_index: number of this process.
    process_count: processes that share each batch.

  Raises:
    ValueError: a source cannot be opened, the processes do not divide, or
      /dev/shm is too small.
  """
  if batch < 1 or batch % process_count:
    raise ValueError(
      f"a batch of {batch} must divide by the {process_count} processes"
    )
  if settings.tokenizer:
    _tokenizer(settings.tokenizer)
  each = batch // process_count
  sources = tuple(open_source(n, settings.split) for n in settings.sources)
  excluded = record_ids.parse(settings.exclude_records)
  record_ids.by_source(excluded, [len(source) for source in sources])
  made = Batches(
    settings=settings,
    sources=sources,
    excluded=frozenset(excluded),
    batch=batch,
    rows=range(process_index * each, (process_index + 1) * each),
    seed=seed,
  )
  shared_memory.check(
    each * _row_bytes(made), settings.num_workers, settings.prefetch_batches
  )
  return Input(made)


def _row_bytes(batches: Batches) -> int:
  """The largest size of a row."""
  settings = batches.settings
  area = max(source.frame_area for source in batches.sources)
  return (
    settings.num_frames * area * shared_memory.PIXEL
    + settings.num_audio_samples * shared_memory.SAMPLE
    + bool(settings.tokenizer) * settings.max_text_len * shared_memory.TOKEN
  )


@functools.cache
def _tokenizer(path: str) -> tokenizer_lib.Tokenizer:
  return tokenizer_lib.Tokenizer.load(path)


def _check_alike(parts: list[np.ndarray], name: str) -> None:
  shapes = {part.shape for part in parts}
  if len(shapes) > 1:
    raise ValueError(
      f"{name}: clips of one size are needed, got crops of {sorted(shapes)};"
      " train on one source at a time"
    )


def _plain(part: Any) -> Any:
  """Numpy arrays of this process."""
  if part is None:
    return None
  if isinstance(part, AV):
    return AV(*(None if a is None else shared_memory.copied(a) for a in part))
  return shared_memory.copied(part)
