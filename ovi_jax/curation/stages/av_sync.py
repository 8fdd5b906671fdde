"""Scores lip sync with SyncNet (Chung and Zisserman, 2016).

Reads the artifacts of `encode`:
  "faces.npz": face crops of the tracks, see `crops`; only read for clips in
    which `vad` found a speaking face.
  "audio.pcm": the clip's audio, int16 little-endian mono at 16 kHz.

Of several faces, the one with the highest confidence is taken as the speaker.
Clips without a speaking face pass untested. Facts: tested; offset in frames at
25 fps, positive if the audio is early; confidence; track, an index into
faces.npz.
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

from ovi_jax import cli
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
  "audio out of sync",
  "low sync confidence",
)
THRESHOLDS = {LOW_CONFIDENCE: ("sync_confidence", "min_confidence")}
CHUNK_WINDOWS = 20  # windows per chunk
_DIGITS = 4  # of scores; hides rounding differences between machines
Pair = tuple[clips.Clip, stage.Media]
Embed = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """Network and thresholds.

  Attributes:
    weights: SyncNet weights, the public torch file or a converted one.
    if_missing: without weights: "error", or "pass" all clips untested.
    max_offset: maximum offset either way, frames at 25 fps.
    min_confidence: clips above it pass.
    min_windows: minimum number of windows of a tested track.
    batch_size: chunks of 20 windows per batch; 8 need about 3 GB of memory.
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
        "av_sync: expected min_windows and batch_size of at least 1, got"
        f" {self.min_windows} and {self.batch_size}"
      )


class _Chunk(NamedTuple):
  """A part of a track, of fixed size.

  Attributes:
    clip: index of the clip.
    track: index of the track.
    count: number of windows; the rest, up to 20, is zero padding.
    frames_THWC: uint8 BGR, 24 frames.
    sound_TKM: 20 windows.
  """

  clip: int
  track: int
  count: int
  frames_THWC: np.ndarray
  sound_TKM: np.ndarray


def fingerprint(config: Config) -> dict[str, Any]:
  """The config, with the weights by content."""
  values = dataclasses.asdict(config)
  del values["batch_size"]
  if config.weights:
    values["weights"] = containers.digest(_weights_path(config))
  return values


def missing_requirements(config: Config) -> list[str]:
  """SyncNet weights, if missing."""
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
    " docs/how_to/curate.md), pass all clips untested with"
    " --config.stages.av_sync.if_missing=pass, or skip the stage:"
    " --config.skip=\"('av_sync',)\""
  ]


def load(
  config: Config,
) -> Callable[[Sequence[Pair]], list[clips.Clip | clips.Reject]]:
  """The stage function; the network is compiled for the first batch.

  Raises:
    ValueError: the weights are missing, or of another network.
  """
  embed = None
  if config.weights:
    embed = load_network(str(_weights_path(config)))
  elif config.if_missing == "error":
    raise ValueError(
      "av_sync.weights: expected a path to SyncNet's weights"
      " (syncnet_v2.model of joonson/syncnet_python, or trained by python -m"
      " ovi_jax.curation.sync.train), got none; or set if_missing to"
      " pass, to pass all clips untested"
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


def load_network(path: str) -> Embed:
  """The compiled network, with its weights on the device.

  Raises:
    ValueError: the weights are missing, or of another network.
  """
  cli.setup_jax()
  sizes, variables = syncnet_weights.load(path)
  apply = jax.jit(syncnet.SyncNet(sizes).apply)
  variables = jax.device_put(variables)
  return lambda frames_BTHWC, windows_BTKM: apply(
    variables, frames_BTHWC, windows_BTKM
  )


def _scores(
  pairs: Sequence[Pair], embed: Embed, config: Config
) -> dict[int, dict[int, lip_sync.Score]]:
  """Scores by clip index and track index."""
  lips, sound = collections.defaultdict(list), collections.defaultdict(list)
  chunks = _chunks(pairs, config)
  for chunk, lips_TD, sound_TD in _embedded(chunks, embed, config.batch_size):
    at = chunk.clip, chunk.track
    lips[at].append(lips_TD)
    sound[at].append(sound_TD)
  scores: dict[int, dict[int, lip_sync.Score]] = {}
  for (clip, track), parts in lips.items():
    found = lip_sync.score(
      np.concatenate(parts), np.concatenate(sound[clip, track])
    )
    scores.setdefault(clip, {})[track] = found
  return scores


def score_windows(
  windows: lip_sync.Windows, embed: Embed, batch_size: int
) -> lip_sync.Score:
  """Score one track of a face.

  Args:
    windows: of the track, one or more.
    embed: the network, see `load_network`.
    batch_size: chunks of windows that it is given at once.
  """
  chunks = _split(0, 0, windows)
  _, lips, sound = zip(*_embedded(chunks, embed, batch_size))
  return lip_sync.score(np.concatenate(lips), np.concatenate(sound))


def _embedded(
  chunks: Iterator[_Chunk], embed: Embed, size: int
) -> Iterator[tuple[_Chunk, np.ndarray, np.ndarray]]:
  """Each chunk with the embeddings of its windows, lips_TD and sound_TD."""
  for batch in _batches(chunks, size):
    for chunk, lips_TD, sound_TD in zip(batch, *_run(batch, embed, size)):
      yield chunk, lips_TD[: chunk.count], sound_TD[: chunk.count]


def _chunks(pairs: Sequence[Pair], config: Config) -> Iterator[_Chunk]:
  """All chunks; one clip is in memory at a time."""
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
      frames_THWC=_zero_pad(frames_THWC, CHUNK_WINDOWS + syncnet.WINDOW - 1),
      sound_TKM=_zero_pad(windows.sound_TKM[start:end], CHUNK_WINDOWS),
    )


def _zero_pad(array: np.ndarray, length: int) -> np.ndarray:
  """Zero-pad an array to a length."""
  padding = [(0, length - len(array))] + [(0, 0)] * (array.ndim - 1)
  return np.pad(array, padding)


def _batches(chunks: Iterator[_Chunk], size: int) -> Iterator[list[_Chunk]]:
  batch: list[_Chunk] = []
  for chunk in chunks:
    batch.append(chunk)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def _run(
  batch: list[_Chunk], embed: Embed, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings of a batch, zero-padded to a fixed shape."""
  frames_BTHWC = np.stack([s.frames_THWC for s in batch])
  windows_BTKM = np.stack([s.sound_TKM for s in batch])
  lips_BTD, sound_BTD = embed(
    _zero_pad(frames_BTHWC, size),
    _zero_pad(windows_BTKM, size),
  )
  return np.asarray(lips_BTD), np.asarray(sound_BTD)


def _outcome(
  clip: clips.Clip, scores: dict[int, lip_sync.Score], config: Config
) -> clips.Clip | clips.Reject:
  """Pass or reject a clip; untested clips pass."""
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
