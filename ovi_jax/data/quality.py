"""Measures what tokenizer and codecs lose of a dataset, on a part of it.

Words without a token are dropped from a caption, so captions that differ in
such words alone become the same text. Codecs are measured on a few clips:
encoded, decoded and compared. Both limit what a model can learn, and neither
shows in the loss.
"""

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import config as config_lib
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax import untrusted
from ovi_jax.data import builder
from ovi_jax.data import clips
from ovi_jax.data import schema
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import distortion
from ovi_jax.pretrained import encoders
from ovi_jax.sharding import mesh as meshes

FILE = "quality.json"  # in the folder of a dataset, of when it was encoded
RECORDS = 256  # whose captions are read
CLIPS = 4  # that go through the codecs
_FRAMES = 33  # of each, at most
_SIDE = 256  # pixels of their middle, at most
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_TAG = re.compile(
  "|".join(map(re.escape, (*prompts.CLOSING, *prompts.CLOSING.values())))
)
_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits of what tokenizer and codecs may lose.

  Attributes:
    max_unknown_words: maximum fraction of the captions' words, in [0, 1].
    min_codec_psnr: minimum mean PSNR of the video VAE, dB; 0 for no limit.
    max_codec_mel_error: maximum mean log-mel error of audio VAE and vocoder,
      dB; 0 for no limit.
  """

  max_unknown_words: float = 0.2
  min_codec_psnr: float = 20.0
  max_codec_mel_error: float = 8.0

  def __post_init__(self):
    config_lib.check_types(type(self), vars(self), "")
    if not 0 <= self.max_unknown_words <= 1:
      raise ValueError(
        f"max_unknown_words must be in [0, 1], got {self.max_unknown_words}"
      )
    if not min(self.min_codec_psnr, self.max_codec_mel_error) >= 0:
      raise ValueError(
        "min_codec_psnr and max_codec_mel_error must be 0 (no limit) or more,"
        f" got {self.min_codec_psnr} and {self.max_codec_mel_error}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
  """Coverage of captions by a tokenizer.

  Attributes:
    captions: that were read, each text once.
    words: of them.
    unknown: of these words, those without a token.
    examples: the most frequent unknown words.
    merged: captions that became the same text as another, different one.
    cut: captions with more tokens than are read; their end is lost.
  """

  captions: int
  words: int
  unknown: int
  examples: tuple[str, ...]
  merged: int
  cut: int = 0

  def __post_init__(self):
    counts = self.captions, self.words, self.unknown, self.merged, self.cut
    if any(type(count) is not int or count < 0 for count in counts):
      raise ValueError(f"expected counts from 0, got {counts!r:.80}")
    if any(not isinstance(word, str) for word in self.examples):
      raise ValueError(f"expected words as examples, got {self.examples!r:.80}")

  @property
  def share(self) -> float:
    return self.unknown / max(1, self.words)

  def line(self) -> str:
    """A line of text for the console."""
    named = ", ".join(map(untrusted.printable, self.examples))
    return (
      f"captions: the tokenizer does not know {self.unknown} of {self.words}"
      f" words ({self.share:.0%}{f': {named}, …' if named else ''});"
      f" {self.merged} of {self.captions} captions become the same text as"
      " another"
      + (f", {self.cut} are too long and lose their end" if self.cut else "")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
  """Measurements of a dataset; `None` where not measured.

  Attributes:
    coverage: of the captions.
    psnr: of pictures after the video autoencoder, dB.
    mel_error: of sounds after audio VAE and vocoder, dB.
    accepted: whether the user encoded the data whatever was measured.
  """

  coverage: Coverage | None = None
  psnr: float | None = None
  mel_error: float | None = None
  accepted: bool = False

  def __post_init__(self):
    for value in (self.psnr, self.mel_error):
      if value is not None and type(value) not in (int, float):
        raise ValueError(f"expected a number of dB, got {value!r:.80}")
    if not isinstance(self.accepted, bool):
      raise ValueError(f"accepted: expected a bool, got {self.accepted!r:.80}")

  def lines(self) -> list[str]:
    """Lines of text for the console."""
    found = [self.coverage.line()] if self.coverage else []
    if self.psnr is not None:
      found.append(
        f"video autoencoder: {self.psnr:.1f} dB PSNR on these clips"
        f" ({_grade(self.psnr)})"
      )
    if self.mel_error is not None:
      found.append(
        f"audio VAE and vocoder: {self.mel_error:.1f} dB mean log-mel error on"
        " these sounds"
      )
    return found

  def check(self, limits: Limits, advice: str) -> None:
    """Refuse what is beyond a limit.

    Args:
      limits: what is acceptable.
      advice: what the user can do about it.

    Raises:
      ValueError: lists every limit that is exceeded.
    """
    problems = []
    if self.accepted:
      return
    if self.coverage and self.coverage.share > limits.max_unknown_words:
      problems.append(
        f"{self.coverage.share:.0%} of the captions' words are unknown to the"
        f" tokenizer, at most {limits.max_unknown_words:.0%} are accepted"
        " (max_unknown_words)"
      )
    if self.psnr is not None and self.psnr < limits.min_codec_psnr:
      problems.append(
        f"the video autoencoder reaches {self.psnr:.1f} dB PSNR on these clips,"
        f" at least {limits.min_codec_psnr:g} are expected (min_codec_psnr)"
      )
    most = limits.max_codec_mel_error
    if self.mel_error is not None and 0 < most < self.mel_error:
      problems.append(
        f"audio VAE and vocoder change sounds by {self.mel_error:.1f} dB, at"
        f" most {most:g} are accepted (max_codec_mel_error)"
      )
    if problems:
      raise ValueError(f"{'; '.join(problems)}. {advice}")

  def save(self, path: storage.AnyPath) -> None:
    """Write it to a file."""
    with files.atomic_path(path) as temporary:
      temporary.write_text(json.dumps(dataclasses.asdict(self), indent=1))

  @classmethod
  def read(cls, path: storage.AnyPath) -> "Quality | None":
    """Read saved measurements; `None` if there is no such file.

    Raises:
      ValueError: the file is damaged.
    """
    if not storage.exists(path):
      return None
    try:
      values: Any = dict(storage.read_json(path))
      if values.get("coverage") is not None:
        values["coverage"] = Coverage(**values["coverage"])
      return cls(**values)
    except (OSError, TypeError, ValueError) as error:
      raise ValueError(f"{path} is damaged ({error}); delete it") from error


def coverage(
  tokenizer: tokenizer_lib.Tokenizer, captions: Iterable[str], length: int
) -> Coverage:
  """Measure the coverage of captions by a tokenizer.

  Args:
    tokenizer: of the text encoder.
    captions: as the records have them; each text counts once.
    length: tokens that are read of each.

  Returns:
    The coverage; each text counts once.
  """
  texts = list(dict.fromkeys(captions))
  unknown: collections.Counter[str] = collections.Counter()
  words = 0
  for text in texts:
    unread = set(tokenizer.unread(text))
    found = _WORD.findall(_TAG.sub(" ", prompts.clean(text)))
    words += len(found)
    unknown.update(word.lower() for word in found if word in unread)
  ids_BS, _ = tokenizer.encode(texts, length)
  cut = sum(count > length for count in tokenizer.lengths(texts))
  alike = collections.Counter(row.tobytes() for row in ids_BS)
  return Coverage(
    captions=len(texts),
    words=words,
    unknown=unknown.total(),
    examples=tuple(word for word, _ in unknown.most_common(_LISTED)),
    merged=sum(count for count in alike.values() if count > 1),
    cut=cut,
  )


def some(
  splits: Sequence[builder.Split], count: int
) -> Iterator[schema.Record]:
  """Records at even distances over all splits, at most `count`."""
  sizes = [len(split) for split in splits]
  total, ends = sum(sizes), list(itertools.accumulate(sizes))
  for number in range(min(count, total)):
    place = number * total // min(count, total)
    which = next(n for n, end in enumerate(ends) if place < end)
    yield splits[which][place - (ends[which] - sizes[which])]


def captions_of(splits: Sequence[builder.Split]) -> list[str]:
  """Captions of some records of the splits."""
  return [c for record in some(splits, RECORDS) for c in record.captions]


def reconstruction(
  components: component_loader.Components,
  splits: Sequence[builder.Split],
  parts: Sequence[str] = ("video", "audio"),
) -> Quality:
  """Measure codecs on a few clips of a dataset.

  Args:
    components: of the codecs; what their decoders need must be present.
    splits: of the dataset.
    parts: modalities to measure.

  Returns:
    A mean for each of `parts` that the clips have.
  """
  # One clip at a time: on one device, whatever the mesh.
  alone = meshes.make(jax.local_devices()[:1])
  components = dataclasses.replace(components, mesh=alone)
  records = list(some(splits, CLIPS))
  psnr, mel_error = [], []
  if "video" in parts and any(r.video is not None for r in records):
    encoder = encoders.VideoEncoder.load(components)
    decoder = decoders.Decoder.load(components, ("video",))
    for record in records:
      if record.video is not None:
        frames_THWC = _middle(clips.frames(record))
        latents = encoder.encode(frames_THWC[None])
        decoded = np.concatenate(list(decoder.frames(latents)))
        psnr.append(distortion.video_psnr(frames_THWC, decoded))
  if "audio" in parts and any(r.audio is not None for r in records):
    encoder = encoders.AudioEncoder.load(components)
    decoder = decoders.Decoder.load(components, ("audio",))
    for record in records:
      if record.audio is not None:
        each = geometry.SAMPLES_PER_AUDIO_LATENT
        wave_A = clips.wave(record)
        wave_A = wave_A[: len(wave_A) // each * each]
        decoded = decoder.wave(encoder.encode(wave_A[None]))
        mel_error.append(distortion.log_mel_error(wave_A, decoded))
  return Quality(
    psnr=float(np.mean(np.minimum(psnr, 100))) if psnr else None,
    mel_error=float(np.mean(mel_error)) if mel_error else None,
  )


def _middle(frames_THWC: np.ndarray) -> np.ndarray:
  """The first frames' middle, of a size that the codec takes."""
  multiple, sides = geometry.PIXEL_MULTIPLE, []
  for size in frames_THWC.shape[1:3]:
    kept = min(size, _SIDE) // multiple * multiple
    start = (size - kept) // 2
    sides.append(slice(start, start + kept))
  return frames_THWC[(slice(_FRAMES), *sides)]


def _grade(psnr: float) -> str:
  """PSNR in words."""
  for least, words in ((30, "close"), (25, "soft"), (20, "coarse")):
    if psnr >= least:
      return words
  return "not recognizable in detail"
