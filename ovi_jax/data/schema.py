"""The training record: one clip with captions, and batches of them.

A clip has captions and video, audio, or both; each as media (mp4, PCM), as
cached latents, or as both. `features` serializes records, `loader` makes
batches. Sizes are computed in `geometry`.
"""

import dataclasses
import math
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from ovi_jax import geometry
from ovi_jax.modality import AV

VERSION = "1.0.0"  # of the record; another major number is not read
INDEX_BITS = 40  # of an id that count the record within its source
AUDIO_SLACK = 1  # audio latents a sound may differ from its video's length
# Share that a rate may differ from 24 frames a second; 23.976 does by 0.001.
FPS_TOLERANCE = 0.002
RESAMPLE = "resample it (python -m ovi_jax.data.from_files does)"


class DamagedRecord(NamedTuple):
  """A record that could not be read.

  Attributes:
    id: as in `Batch.ids`.
    substitute: id of the record that replaces it.
    problem: the error of reading it.
  """

  id: int
  substitute: int
  problem: str


class Batch(NamedTuple):
  """A batch of training examples; numpy on the host, jax.Array on devices.

  With `LoaderConfig.encode_on_the_fly`, `latents` holds frames and samples;
  with `LoaderConfig.tokenizer`, `text` holds token ids.

  Attributes:
    latents: video_BTHWC and audio_BTC float32; zeros where a record lacks the
      modality or is shorter than its bucket.
    lengths: int32 [B] for each modality; number of valid latent frames and
      audio latents, 0 for a record that lacks the modality.
    text: text_BSE float32 for each tower, zeros beyond each prompt's end; the
      same array for both.
    ids: int64 [B]; (index of the source << 40) | index of the record in it.
    damaged: between reading and the iterator only; the damaged records that
      others replace.
  """

  latents: AV
  lengths: AV
  text: AV
  ids: Any
  damaged: tuple[DamagedRecord, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
  """Shapes and units that all arrays of a dataset share.

  Attributes:
    video_channels: C of video latents.
    audio_channels: C of audio latents.
    text_dim: E of text embeddings.
    video_strides: frames, rows and columns per video latent.
    samples_per_audio_latent: samples per audio latent.
    sample_rate: Hz.
  """

  video_channels: int = 48
  audio_channels: int = 20
  text_dim: int = 4096
  video_strides: tuple[int, int, int] = geometry.VIDEO_STRIDES
  samples_per_audio_latent: int = geometry.SAMPLES_PER_AUDIO_LATENT
  sample_rate: int = geometry.SAMPLE_RATE

  @classmethod
  def from_metadata(cls, values: Mapping[str, Any]) -> "Geometry":
    """The geometry in a dataset's metadata.json.

    Args:
      values: fields by name.

    Returns:
      The geometry.

    Raises:
      ValueError: a field is missing, unknown or not a positive integer.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or set(values) != names:
      raise ValueError(
        f"geometry: expected {sorted(names)}, found {values!r:.200}"
      )
    strides = values["video_strides"]
    sizes = [values[name] for name in names - {"video_strides"}]
    if (
      not isinstance(strides, list | tuple)
      or len(strides) != 3
      or not all(type(n) is int and 0 < n < 2**31 for n in (*sizes, *strides))
    ):
      raise ValueError(
        f"geometry: expected positive whole numbers, found {values!r:.200}"
      )
    return cls(**{**values, "video_strides": tuple(strides)})

  def check_equal(self, found: "Geometry", where: str) -> None:
    """ValueError that names every field in which `found` differs."""
    wanted, got = dataclasses.asdict(self), dataclasses.asdict(found)
    different = [
      f"{name}: expected {wanted[name]}, got {got[name]}"
      for name in wanted
      if wanted[name] != got[name]
    ]
    if different:
      raise ValueError(
        f"{where} has another latent geometry: {'; '.join(different)}. Encode"
        " it again with the encoders of this model, or change the model's sizes"
      )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Record:
  """One clip.

  Attributes:
    id: identifier, unique within its split.
    source: free text on the origin of the clip.
    captions: at least one; training chooses among them.
    video: mp4 bytes, or `None`.
    audio: PCM, int16 little-endian mono at 16 kHz, or `None`.
    latents: cached video_THWC and audio_TC, or `None` for each.
    text: embedding text_SE of each caption, S the number of its tokens; empty
      before `data.encode` has run.
    scores: scores of curation, by name.
    fps: frames per second; 24, within `FPS_TOLERANCE`.
    frames: frames of the video, 1 + 4·k; 0 = computed from the latents.
    height: pixels, a multiple of 32; 0 = computed from the latents.
    width: likewise.
  """

  id: str
  source: str
  captions: tuple[str, ...]
  video: bytes | None = None
  audio: bytes | None = None
  latents: AV = dataclasses.field(default_factory=AV)
  text: tuple[np.ndarray, ...] = ()
  scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
  fps: float = float(geometry.FPS)
  frames: int = 0
  height: int = 0
  width: int = 0

  @property
  def seconds(self) -> float:
    """Length of the sound; 0 without one. Latents count where PCM is absent."""
    if self.audio is not None:
      return len(self.audio) / 2 / geometry.SAMPLE_RATE
    return self.sizes.audio / geometry.AUDIO_LATENT_RATE

  @property
  def sizes(self) -> AV:
    """video: latent (T, H, W), zeros without one; audio: latents, or 0.

    Of media without latents, the sizes that encoding would give.
    """
    video, audio = (0, 0, 0), 0
    if self.latents.video is not None:
      video = tuple(self.latents.video.shape[:3])
    elif self.video is not None:
      time, row, column = geometry.VIDEO_STRIDES
      frames = 1 + max(0, self.frames - 1) // time
      video = (frames, self.height // row, self.width // column)
    if self.latents.audio is not None:
      audio = self.latents.audio.shape[0]
    elif self.audio is not None:
      audio = len(self.audio) // 2 // geometry.SAMPLES_PER_AUDIO_LATENT
    return AV(video=video, audio=audio)


def check(record: Record, sizes: Geometry) -> None:
  """Hold a record to the contract.

  Raises:
    ValueError: names the record and everything that is wrong with it.
  """
  problems = [
    *_identity_problems(record),
    *_video_problems(record, sizes),
    *_audio_problems(record, sizes),
    *_text_problems(record, sizes),
  ]
  if problems:
    raise ValueError(f"record {record.id!r}: {'; '.join(problems)}")


def _identity_problems(record: Record) -> Iterator[str]:
  """Problems of names, captions and presence of modalities."""
  if not record.id:
    yield "id: expected a name, got an empty one"
  if not record.captions or not all(c.strip() for c in record.captions):
    yield (
      f"captions: expected one or more, none blank, got {record.captions!r};"
      " caption the clip or leave it out"
    )
  media = record.video, record.audio, *record.latents
  if all(part is None for part in media):
    yield "expected a video, a sound or both, got neither; leave it out"
  for name, value in record.scores.items():
    if not math.isfinite(value):
      yield f"scores: {name} is {value}, expected a finite number"


def _video_problems(record: Record, sizes: Geometry) -> Iterator[str]:
  """Problems of the video, and of its length relative to the audio's."""
  latents = record.latents.video
  if latents is not None:
    yield from _array_problems(latents, "video latents", "THWC")
    if latents.ndim != 4:
      return
    if latents.shape[-1] != sizes.video_channels:
      yield (
        f"video latents: expected {sizes.video_channels} channels, got"
        f" {latents.shape[-1]}; encode with this model's video VAE"
      )
  elif record.video is None:
    return
  elif not (record.frames and record.height and record.width):
    yield "mp4: expected frames, height and width beside it, got none"
    return
  T, H, W = record.sizes.video
  if H % geometry.PATCH or W % geometry.PATCH or not H * W:
    yield (
      f"video latents: expected even rows and columns, got {H}x{W}; crop the"
      f" video to multiples of {geometry.PIXEL_MULTIPLE} pixels"
    )
  frames = 1 + geometry.VIDEO_STRIDES[0] * (T - 1)
  if record.frames and record.frames != frames:
    yield (
      f"frames: expected {frames} for {T} latents, got {record.frames};"
      " cut the clip to 1 + 4·k frames"
    )
  if not abs(record.fps / geometry.FPS - 1) <= FPS_TOLERANCE:
    yield (
      f"fps: expected {geometry.FPS} frames a second, got {record.fps:g};"
      f" {RESAMPLE}"
    )
    return
  wanted = frames / record.fps * geometry.AUDIO_LATENT_RATE
  heard = record.sizes.audio
  if heard and abs(heard - wanted) > AUDIO_SLACK:
    yield (
      f"sound: expected {wanted:.1f} ± {AUDIO_SLACK} audio latents beside"
      f" {frames} frames at {record.fps:g} a second, got {heard}; cut both to"
      " one length"
    )


def _audio_problems(record: Record, sizes: Geometry) -> Iterator[str]:
  """Problems of the audio."""
  if record.audio is not None and (len(record.audio) % 2 or not record.audio):
    yield (
      "PCM: expected two bytes a sample and at least one sample, got"
      f" {len(record.audio)} bytes"
    )
  elif record.audio is not None:
    each = geometry.SAMPLES_PER_AUDIO_LATENT
    if len(record.audio) // 2 < each:
      yield (
        f"PCM: expected the samples of one latent, {each}, or more, got"
        f" {len(record.audio) // 2}; leave the sound out"
      )
  latents = record.latents.audio
  if latents is None:
    return
  yield from _array_problems(latents, "audio latents", "TC")
  if latents.ndim == 2 and latents.shape[-1] != sizes.audio_channels:
    yield (
      f"audio latents: expected {sizes.audio_channels} channels, got"
      f" {latents.shape[-1]}; encode with this model's audio VAE"
    )


def _text_problems(record: Record, sizes: Geometry) -> Iterator[str]:
  """Problems of the text embeddings."""
  if len(record.text) not in (0, len(record.captions)):
    yield (
      f"text: expected one embedding for each of {len(record.captions)}"
      f" captions, or none at all, got {len(record.text)}"
    )
  for array_SE in record.text:
    yield from _array_problems(array_SE, "text", "SE")
    if array_SE.ndim == 2 and array_SE.shape[-1] != sizes.text_dim:
      yield (
        f"text: expected width {sizes.text_dim}, got {array_SE.shape[-1]};"
        " encode with this model's text encoder"
      )


def _array_problems(
  array: np.ndarray, name: str, letters: str
) -> Iterator[str]:
  """Problems of the rank, size or values of an array."""
  if array.ndim != len(letters) or not array.size:
    yield (
      f"{name}: expected [{', '.join(letters)}], none of them 0, got"
      f" {list(array.shape)}"
    )
  elif not np.isfinite(array.astype(np.float32)).all():
    yield f"{name}: expected finite numbers, got NaN or infinity"


def check_version(found: str, where: str) -> None:
  """ValueError unless `found` has this schema's major number."""
  if found.split(".")[0] != VERSION.split(".")[0]:
    raise ValueError(
      f"{where} has schema version {found:.40}, expected {VERSION}; write it"
      " again with this ovi_jax, or read it with the one that wrote it"
    )
