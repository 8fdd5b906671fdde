"""Whether the lips move with the sound, by SyncNet (Chung and Zisserman, 2016).

Reads what the stage `cut` kept of a clip:
  "faces.npz": the crops of its face tracks; `crops.of_tracks` and `crops.pack`
    make it, their module says what is in it. Wanted where `speech` found a
    speaking face; not read otherwise.
  "audio.pcm": the whole sound of the clip, int16 little-endian mono at 16 kHz,
    which begins when the clip does.

Of several faces the one that fits the sound best is taken for the speaker's.
Clips without a speaking face pass untested. Facts: tested; offset in frames at
25 a second, positive where the sound comes early; confidence; track, its number
in faces.npz.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from ovi_jax import runtime
from ovi_jax.curation import clip as clips
from ovi_jax.curation import stage
from ovi_jax.curation.faces import crops
from ovi_jax.curation.media import artifacts
from ovi_jax.curation.models import syncnet
from ovi_jax.curation.models import syncnet_weights
from ovi_jax.curation.sync import lip_sync
from ovi_jax.media import container as containers

VERSION = 1
KIND = "batch"
NAME = "av_sync"
OUT_OF_SYNC, LOW_CONFIDENCE = (
  "lips and sound apart",
  "lips and sound do not match",
)
THRESHOLDS = {LOW_CONFIDENCE: ("sync_confidence", "min_confidence")}
CHUNK_WINDOWS = 20  # of a stretch, the unit of a batch
_DIGITS = 4  # of scores; what a machine rounds differently is beyond them
Pair = tuple[clips.Clip, stage.Media]
Embed = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Which network, and what it must say.

  Attributes:
    weights: the public torch file, or one of ours.
    if_missing: where `weights` is "": "error", or "pass" all untested.
    max_offset: frames at 25 a second, either way.
    min_confidence: kept are clips above it.
    min_windows: windows of a track that is tested; of fewer, nothing is known.
    batch_size: stretches of 20 windows that are computed at once; 8 need about 3
      GB of the accelerator's memory.
  """

  weights: str = ""
  if_missing: str = "error"
  max_offset: int = 3
  min_confidence: float = 1.5
  min_windows: int = 25
  batch_size: int = 8

  def __post_init__(self):
    if self.if_missing not in ("error", "pass"):
      raise ValueError(
        f"av_sync.if_missing: expected error or pass, got {self.if_missing!r}"
      )
    if not 0 <= self.max_offset <= lip_sync.MAX_OFFSET:
      raise ValueError(
        f"av_sync.max_offset: expected 0 to {lip_sync.MAX_OFFSET}, got"
        f" {self.max_offset}"
      )
    if self.min_windows < 1 or self.batch_size < 1:
      raise ValueError(
        "av_sync: expected shortest and batch of at least 1, got"
        f" {self.min_windows} and {self.batch_size}"
      )


class _Chunk(NamedTuple):
  """A part of a track that goes through the network as one.

  Attributes:
    clip: number of the clip.
    track: number of the track in it.
    count: windows; the rest, up to 20, is zeros.
    frames_THWC: uint8 BGR, 24 frames.
    sound_TKM: 20 windows.
  """

  clip: int
  track: int
  count: int
  frames_THWC: np.ndarray
  sound_TKM: np.ndarray


def fingerprint(config: Config) -> dict[str, Any]:
  """What an outcome depends on: the weights' content, not their place."""
  values = dataclasses.asdict(config)
  del values["batch_size"]
  if config.weights:
    values["weights"] = containers.digest(_weights_path(config))
  return values


def missing_requirements(config: Config) -> list[str]:
  """SyncNet's weights, if they are not there."""
  if config.weights:
    if os.path.isfile(config.weights):
      return []
    found = f"{config.weights} is not a file"
  elif config.if_missing == "error":
    found = "expected a path to SyncNet's weights, got none"
  else:
    return []
  return [
    f"av_sync.weights: {found}; give"
    " --config.stages.av_sync.weights=FILE (syncnet_v2.model, see"
    " docs/curation.md), test no clip with"
    " --config.stages.av_sync.if_missing=pass, or leave it out:"
    " --config.skip=\"('av_sync',)\""
  ]


def load(
  config: Config,
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage; the network is compiled for the first batch.

  Raises:
    ValueError: the weights are missing, or of another network.
  """
  embed = None
  if config.weights:
    embed = _network(str(_weights_path(config)))
  elif config.if_missing == "error":
    raise ValueError(
      "av_sync.weights: expected a path to SyncNet's weights"
      " (syncnet_v2.model of joonson/syncnet_python, or trained by python -m"
      " ovi_jax.curation.sync.train), got none; or set if_missing to"
      " pass, and no clip is tested"
    )

  def run(pairs: Sequence[Pair]) -> list[clips.Clip | clips.Reject]:
    scores = {} if embed is None else _scores(pairs, embed, config)
    return [
      _outcome(clip, scores.get(number, {}), config)
      for number, (clip, _) in enumerate(pairs)
    ]

  return run


def _weights_path(config: Config) -> pathlib.Path:
  return containers.given("av_sync.weights", config.weights)


def _network(path: str) -> Embed:
  """The network as a compiled function; its weights are on the device."""
  runtime.setup_jax()
  sizes, variables = syncnet_weights.load(path)
  apply = jax.jit(syncnet.SyncNet(sizes).apply)
  variables = jax.device_put(variables)
  return lambda frames_BTHWC, windows_BTKM: apply(
    variables, frames_BTHWC, windows_BTKM
  )


def _scores(
  pairs: Sequence[Pair], embed: Embed, config: Config
) -> dict[int, dict[int, lip_sync.Score]]:
  """Scores by number of clip and number of track."""
  lips, sound = collections.defaultdict(list), collections.defaultdict(list)
  for batch in _batches(_chunks(pairs, config), config.batch_size):
    for stretch, lips_TD, sound_TD in zip(batch, *_run(batch, embed, config)):
      at = stretch.clip, stretch.track
      lips[at].append(lips_TD[: stretch.count])
      sound[at].append(sound_TD[: stretch.count])
  scores: dict[int, dict[int, lip_sync.Score]] = {}
  for (clip, track), parts in lips.items():
    found = lip_sync.score(
      np.concatenate(parts), np.concatenate(sound[clip, track])
    )
    scores.setdefault(clip, {})[track] = found
  return scores


def _chunks(pairs: Sequence[Pair], config: Config) -> Iterator[_Chunk]:
  """All that is to be computed; one clip is in memory at a time."""
  for number, (clip, media) in enumerate(pairs):
    if not clip.facts.get("vad", {}).get("speaking"):
      continue
    samples_A = np.frombuffer(media.read_artifact(artifacts.AUDIO), "<i2")
    for track, cut in enumerate(
      crops.unpack(media.read_artifact(artifacts.FACES))
    ):
      windows = lip_sync.make_windows(cut, samples_A)
      if len(windows.sound_TKM) >= config.min_windows:
        yield from _split(number, track, windows)


def _split(
  clip: int, track: int, windows: lip_sync.Windows
) -> Iterator[_Chunk]:
  count = len(windows.sound_TKM)
  for start in range(0, count, CHUNK_WINDOWS):
    end = start + CHUNK_WINDOWS
    frames_THWC = windows.frames_THWC[start : end + syncnet.WINDOW - 1]
    yield _Chunk(
      clip=clip,
      track=track,
      count=min(CHUNK_WINDOWS, count - start),
      frames_THWC=_padded(frames_THWC, CHUNK_WINDOWS + syncnet.WINDOW - 1),
      sound_TKM=_padded(windows.sound_TKM[start:end], CHUNK_WINDOWS),
    )


def _padded(array: np.ndarray, length: int) -> np.ndarray:
  """The array with zeros after its end."""
  padding = [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, padding)


def _batches(stretches: Iterator[_Chunk], size: int) -> Iterator[list[_Chunk]]:
  batch: list[_Chunk] = []
  for stretch in stretches:
    batch.append(stretch)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def _run(
  batch: list[_Chunk], embed: Embed, config: Config
) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings of a batch, which is always of one shape."""
  frames_BTHWC = np.stack([s.frames_THWC for s in batch])
  windows_BTKM = np.stack([s.sound_TKM for s in batch])
  lips_BTD, sound_BTD = embed(
    _padded(frames_BTHWC, config.batch_size),
    _padded(windows_BTKM, config.batch_size),
  )
  return np.asarray(lips_BTD), np.asarray(sound_BTD)


def _outcome(
  clip: clips.Clip, scores: dict[int, lip_sync.Score], config: Config
) -> clips.Clip | clips.Reject:
  """Keep a clip that passes, or of which nothing is known."""
  if not scores:
    return clip.with_facts(NAME, tested=False)
  track = max(scores, key=lambda t: (scores[t].confidence, -t))
  offset, confidence = scores[track].offset, scores[track].confidence
  confidence = round(confidence, _DIGITS)
  found = f"offset {offset}, confidence {confidence}, track {track}"
  if confidence <= config.min_confidence:
    return clips.Reject(
      clip=clip,
      stage=NAME,
      reason=LOW_CONFIDENCE,
      score=confidence,
      detail=found,
    )
  if abs(offset) > config.max_offset:
    return clips.Reject(
      clip=clip,
      stage=NAME,
      reason=OUT_OF_SYNC,
      score=float(offset),
      detail=found,
    )
  return clip.with_facts(
    NAME,
    {"sync_offset": offset, "sync_confidence": confidence},
    tested=True,
    offset=offset,
    confidence=confidence,
    track=track,
  )
