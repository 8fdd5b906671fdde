"""Batches of crops for the training of codecs, endless and in one order.

Row r of batch n is a function of the seed, n and r alone: one of the sources, a
clip of it, and a place in the clip, all drawn at random, all alike; where the
clip lacks what is wanted, drawn again. So nothing depends on workers or
processes, and the place that a checkpoint keeps is one number.
"""

import dataclasses
import functools
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import numpy as np

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import loader
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training.codecs import clips

_TRIES = 1000  # clips in a row without what is wanted, before giving up


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecInputConfig:
  """What is read.

  Attributes:
    sources: see `clips.opened`.
    split: of those that are datasets.
    num_frames: of a crop of the video, 1 + 4·k; 0 for none.
    num_audio_samples: of a crop of the sound, at 16 kHz; 0 for none.
    tokenizer: a `tokenizer.json`, to read captions; empty for none.
    max_text_len: tokens that a caption is cut and padded to.
    num_workers: processes that draw and decode; 0 reads in this one.
    prefetch_batches: batches that each worker (or this process) keeps ready.
  """

  sources: tuple[str, ...]
  split: str = "train"
  num_frames: int = 0
  num_audio_samples: int = 0
  tokenizer: str = ""
  max_text_len: int = 64
  num_workers: int = 0
  prefetch_batches: int = 2

  def __post_init__(self):
    if not self.sources:
      raise ValueError("data.sources: expected at least one, got none")
    if (
      self.num_workers < 0 or min(self.max_text_len, self.prefetch_batches) < 1
    ):
      raise ValueError(
        "data: workers must be 0 or more, text_rows and prefetch 1 or more, got"
        f" {self.num_workers}, {self.max_text_len} and {self.prefetch_batches}"
      )
    _ = self.wanted

  @property
  def wanted(self) -> clips.ClipSpec:
    """What is taken of a clip."""
    return clips.ClipSpec(
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
    first: number of the first one, for who begins later.
  """

  settings: CodecInputConfig
  sources: tuple[clips.Source, ...]
  batch: int
  rows: range
  seed: int
  first: int = 0

  def __len__(self) -> int:
    return loader.ENDLESS

  def __getitem__(self, index: int) -> schema.Batch:
    """A batch.

    Frames uint8 [B, frames, H, W, 3] and samples float32 [B, samples] take the
    place of latents, token ids int32 [B, text_rows] that of text; `lengths`
    count frames and samples.

    Raises:
      ValueError: clips are damaged, of different sizes, or all without what is
        wanted.
    """
    start = (index + self.first) * self.batch
    found, ids = zip(*(self._crop(start + row) for row in self.rows))
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
    )

  def _crop(self, place: int) -> tuple[clips.Crop, int]:
    """The crop of a row of all rows of all batches, and its id."""
    random = np.random.default_rng((self.seed, place))
    for _ in range(_TRIES):
      which = int(random.integers(len(self.sources)))
      source = self.sources[which]
      number = int(random.integers(len(source)))
      where = clips.CropPosition(*random.random(3))
      crop = source.crop(number, self.settings.wanted, where)
      if crop is not None:
        return crop, which << schema.INDEX_BITS | number
    raise ValueError(
      f"none of {_TRIES} clips of {[s.identity for s in self.sources]} has all"
      f" of {self.settings.wanted}; ask for shorter crops, or name a source"
      " with pictures or sound"
    )


class Input(Iterator[schema.Batch]):
  """An endless iterator whose place can be kept, see `loop.Input`."""

  def __init__(self, batches: Batches):
    self._batches = batches
    self._step, self._running = 0, None

  def __next__(self) -> schema.Batch:
    if self._running is None:
      settings = self._batches.settings
      rest = dataclasses.replace(self._batches, first=self._step)
      self._running = loader.in_order(
        rest, settings.num_workers, settings.prefetch_batches
      )
    batch = next(self._running)
    self._step += 1
    # From a worker, arrays are views of memory that is shared.
    return schema.Batch(*(_plain(part) for part in batch))

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
    ValueError: a source cannot be opened, or the processes do not divide.
  """
  if batch < 1 or batch % process_count:
    raise ValueError(
      f"a batch of {batch} must divide by the {process_count} processes"
    )
  if settings.tokenizer:
    _tokenizer(settings.tokenizer)
  each = batch // process_count
  made = Batches(
    settings=settings,
    sources=tuple(clips.opened(n, settings.split) for n in settings.sources),
    batch=batch,
    rows=range(process_index * each, (process_index + 1) * each),
    seed=seed,
  )
  return Input(made)


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
  if isinstance(part, AV):
    return AV(*(None if a is None else np.asarray(a) for a in part))
  return np.asarray(part)
