"""Records with media and captions to records with latents and embeddings.

Clips of one size are encoded side by side, split over the devices; what a
record has already is kept.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovi_jax import geometry
from ovi_jax.data import clips
from ovi_jax.data import schema
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import encoders

MODALITIES = ("text", "video", "audio")
# The encoders' components of a release.
COMPONENTS = {"text": "umt5", "video": "video_vae", "audio": "audio_vae"}
_ROWS = 64  # the shortest padded prompt

_Read = Callable[[schema.Record], np.ndarray]
_Encode = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordEncoder:
  """Adds missing latents and embeddings to records.

  Attributes:
    batch: clips of a batch over all devices.
    text: the text encoder; `None` leaves text unchanged.
    video: the video encoder; `None` leaves video unchanged.
    audio: the audio encoder; `None` leaves audio unchanged.
  """

  batch: int
  text: encoders.TextEncoder | None = None
  video: encoders.VideoEncoder | None = None
  audio: encoders.AudioEncoder | None = None

  @classmethod
  def load(
    cls,
    components: component_loader.Components,
    parts: Sequence[str],
    batch: int,
  ) -> "RecordEncoder":
    """Load the encoders of some of `MODALITIES`.

    Args:
      components: the directory of weights.
      parts: of `MODALITIES`.
      batch: clips of a batch over all devices.

    Returns:
      The encoder.
    """
    kinds: dict[str, Any] = {
      "text": encoders.TextEncoder,
      "video": encoders.VideoEncoder,
      "audio": encoders.AudioEncoder,
    }
    loaded = {part: kinds[part].load(components) for part in parts}
    return cls(batch=batch, **loaded)

  def __call__(self, records: Sequence[schema.Record]) -> list[schema.Record]:
    """Encode records.

    Args:
      records: with media.

    Returns:
      The records in the same order, with media, latents and embeddings.

    Raises:
      ValueError: a record's media are damaged; names it.
    """
    records, text = list(records), self.text
    latents = [record.latents._asdict() for record in records]
    if self.video is not None:
      encode = self.video.encode
      found = self._encoded(
        [
          (i, (r.frames, r.height, r.width))
          for i, r in enumerate(records)
          if r.video is not None and r.latents.video is None
        ],
        lambda i: clips.frames(records[i]),
        lambda frames_BTHWC: encode(frames_BTHWC, split=True),
      )
      for i, latent in found:
        latents[i]["video"] = latent
    if self.audio is not None:
      encode_sound = self.audio.encode
      found = self._encoded(
        [
          (i, r.sizes.audio)
          for i, r in enumerate(records)
          if r.audio is not None and r.latents.audio is None
        ],
        lambda i: _whole(clips.wave(records[i])),
        lambda wave_BA: encode_sound(wave_BA, split=True),
      )
      for i, latent in found:
        latents[i]["audio"] = latent
    made = [
      dataclasses.replace(record, latents=type(record.latents)(**latent))
      for record, latent in zip(records, latents)
    ]
    return made if text is None else self._with_text(text, made)

  def _with_text(
    self, encoder: encoders.TextEncoder, records: Sequence[schema.Record]
  ) -> list[schema.Record]:
    """The records with an embedding of each caption."""
    captions = list(
      dict.fromkeys(c for r in records if not r.text for c in r.captions)
    )
    limit = encoder.components.text_length
    ids_BS, mask_BS = encoder.tokenizer.encode(captions, limit)
    lengths = mask_BS.sum(1)

    def read(number: int) -> np.ndarray:
      return np.stack([ids_BS[number], mask_BS[number]])

    def encode(both: np.ndarray) -> Any:
      rows = _padded(int(both[:, 1].sum(1).max()), limit)
      return encoder.encode(both[:, 0, :rows], both[:, 1, :rows], split=True)

    groups = [(i, _padded(n, limit)) for i, n in enumerate(lengths)]
    embedded = {
      captions[i]: text_SE[: lengths[i]]
      for i, text_SE in self._encoded(groups, read, encode)
    }
    return [
      record
      if record.text
      else dataclasses.replace(
        record, text=tuple(embedded[c] for c in record.captions)
      )
      for record in records
    ]

  def _encoded(
    self,
    groups: Sequence[tuple[int, Hashable]],
    read: Callable[[int], np.ndarray],
    encode: _Encode,
  ) -> Iterator[tuple[int, np.ndarray]]:
    """(number, what was encoded of it), those of one group side by side.

    The next batch is read while one is encoded.
    """
    order = sorted(groups, key=lambda member: repr(member[1]))
    batches = [
      members[start : start + self.batch]
      for _, group in itertools.groupby(order, key=lambda member: member[1])
      for members in [[number for number, _ in group]]
      for start in range(0, len(members), self.batch)
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
      reading: list[Any] = []
      for place, numbers in enumerate(batches):
        reading = reading or [pool.submit(read, n) for n in numbers]
        rows = [future.result() for future in reading]
        following = batches[place + 1] if place + 1 < len(batches) else []
        reading = [pool.submit(read, n) for n in following]
        # A last batch that is not full repeats its last row.
        rows += [rows[-1]] * (self.batch - len(rows))
        yield from zip(numbers, np.asarray(encode(np.stack(rows))))


def _whole(wave_A: np.ndarray) -> np.ndarray:
  """The samples that make whole latents."""
  each = geometry.SAMPLES_PER_AUDIO_LATENT
  return wave_A[: len(wave_A) // each * each]


def _padded(length: int, limit: int) -> int:
  """Few lengths of prompts, since each compiles a program of its own."""
  rows = _ROWS
  while rows < length:
    rows *= 2
  return min(rows, limit)
