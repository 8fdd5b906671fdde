"""PANNs' Cnn14 (Kong et al., 2020) in Flax: AudioSet tags and embeddings.

Two front ends, each with its own public weights. `panns_16k`, as in
av-benchmark: 16 kHz, windows of 512, hop 160, 50 to 8000 Hz, the mean removed,
cut to 8 s (`Cnn14_16k_mAP=0.438.pth`). `panns_32k`, as in MOVA: 32 kHz, 1024,
320, 50 to 14000 Hz, padded or cut to 10 s (`Cnn14_mAP=0.431.pth`). The power in
64 bands is taken to 10 log10. Arrays: `embedding` [2048], after the ReLU of the
dense layer, and `logits` [527]. float32.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.evaluation import clips
from ovi_jax.evaluation import features
from ovi_jax.media import container
from ovi_jax.models import mel

BINS = 64
_FLOOR = 1e-10  # power
_EPSILON = 1e-5  # of batch norms
_PRECISION = jax.lax.Precision.HIGHEST
# Buffers of torch's front end, which we compute, and counters.
_IGNORED = ("spectrogram_extractor.", "logmel_extractor.")
_COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontEnd:
  """How sound becomes the input of the network.

  Attributes:
    rate: samples a second.
    fft_size: samples of a window.
    hop: samples from one window to the next.
    high: upper edge of the highest band, Hz.
    seconds: length that longer sounds are cut to.
    padded: whether shorter sounds are padded to it with zeros.
    centered: whether the mean is removed.
  """

  rate: int
  fft_size: int
  hop: int
  high: float
  seconds: float
  padded: bool
  centered: bool


FRONT_ENDS: Mapping[str, FrontEnd] = {
  "panns_16k": FrontEnd(
    rate=16_000,
    fft_size=512,
    hop=160,
    high=8_000.0,
    seconds=8.0,
    padded=False,
    centered=True,
  ),
  "panns_32k": FrontEnd(
    rate=32_000,
    fft_size=1024,
    hop=320,
    high=14_000.0,
    seconds=10.0,
    padded=True,
    centered=False,
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cnn14Config:
  """Sizes; defaults are those of the public weights.

  Attributes:
    channels: of the six blocks.
    classes: number of tags.
  """

  channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
  classes: int = 527


class Cnn14(nn.Module):
  """The network."""

  config: Cnn14Config

  @nn.compact
  def __call__(self, mel_BTM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Embeddings [B, 2048] and logits [B, 527] of log mel spectrograms."""
    x = _norm("bn0")(mel_BTM)[..., None]
    last = len(self.config.channels) - 1
    for number, channels in enumerate(self.config.channels):
      for part in (1, 2):
        conv = nn.Conv(
          channels,
          (3, 3),
          use_bias=False,
          precision=_PRECISION,
          name=f"block_{number}_conv_{part}",
        )
        x = nn.relu(_norm(f"block_{number}_norm_{part}")(conv(x)))
      if number < last:
        x = nn.avg_pool(x, (2, 2), (2, 2))
    x_BTC = x.mean(axis=2)
    x_BC = x_BTC.max(axis=1) + x_BTC.mean(axis=1)
    dense = nn.Dense(
      self.config.channels[-1], precision=_PRECISION, name="dense"
    )
    embedding_BC = nn.relu(dense(x_BC))
    tags = nn.Dense(self.config.classes, precision=_PRECISION, name="tags")
    return embedding_BC, tags(embedding_BC)


def _norm(name: str) -> nn.BatchNorm:
  return nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name=name)


def rows(config: Cnn14Config) -> list[mapping.Row]:
  """The table of the public files."""
  picture = mapping.Rearrange("o i h w -> h w i o")
  table = _norm_rows("bn0", "bn0")
  for number in range(len(config.channels)):
    for part in (1, 2):
      theirs = f"conv_block{number + 1}"
      table.append(
        mapping.Row(
          f"{theirs}.conv{part}.weight",
          f"params/block_{number}_conv_{part}/kernel",
          picture,
        )
      )
      table += _norm_rows(f"{theirs}.bn{part}", f"block_{number}_norm_{part}")
  return [
    *table,
    *mapping.linear("fc1", "params/dense"),
    *mapping.linear("fc_audioset", "params/tags"),
  ]


def _norm_rows(theirs: str, ours: str) -> list[mapping.Row]:
  return [
    mapping.Row(f"{theirs}.weight", f"params/{ours}/scale"),
    mapping.Row(f"{theirs}.bias", f"params/{ours}/bias"),
    mapping.Row(f"{theirs}.running_mean", f"batch_stats/{ours}/mean"),
    mapping.Row(f"{theirs}.running_var", f"batch_stats/{ours}/var"),
  ]


def panns(name: str, path: str) -> features.Extractor:
  """An extractor.

  Args:
    name: a key of `FRONT_ENDS`.
    path: of the weights; "" for none, then it is `missing`.

  Raises:
    ValueError: there is no such file.
  """
  missing = digest = ""
  if path:
    digest = container.digest(container.given(f"--weights={name}", path))
  else:
    missing = f"needs imported features {name!r}, or --weights={name}=FILE"
  front_end = FRONT_ENDS[name]
  return features.Extractor(
    name=name,
    version=2,
    needs=(clips.SOUND,),
    settings=dataclasses.asdict(front_end),
    weights=digest,
    missing=missing,
    load=lambda: _load(pathlib.Path(path), front_end),
  )


def read_weights(
  path: pathlib.Path, config: Cnn14Config | None = None
) -> dict[str, Any]:
  """The variables of `Cnn14`.

  Raises:
    ValueError: the file is damaged or of another network.
  """
  config = config or Cnn14Config()
  tensors = reader.open_tensors(path, "model")
  shapes = {
    name: shape
    for name, shape in tensors.shapes.items()
    if not name.startswith(_IGNORED) and not name.endswith(_COUNTER)
  }
  log_mel = jax.ShapeDtypeStruct((1, 64, BINS), jnp.float32)
  ours = mapping.flatten(
    jax.eval_shape(Cnn14(config).init, jax.random.key(0), log_mel)
  )
  table = rows(config)
  try:
    mapping.check(table, shapes, {n: x.shape for n, x in ours.items()})
  except ValueError as error:
    raise ValueError(f"{path} is no Cnn14: {error}") from error
  flat = mapping.gather(table, tensors.read)
  return mapping.nest({n: np.asarray(x, np.float32) for n, x in flat.items()})


def _load(path: pathlib.Path, front_end: FrontEnd) -> features.Compute:
  variables = jax.device_put(read_weights(path))
  # Compiled once per length of sound.
  network = jax.jit(Cnn14(Cnn14Config()).apply)

  def tag(media: clips.Media) -> features.Arrays:
    mel_TM = log_mel(media.mono(front_end.rate), front_end)
    if len(mel_TM) < 32:  # five poolings leave nothing
      return {}
    embedding, logits = network(variables, mel_TM[None])
    return {
      "embedding": np.asarray(embedding[0]),
      "logits": np.asarray(logits[0]),
    }

  def compute(media: Sequence[clips.Media]) -> list[features.Arrays]:
    return [tag(each) for each in media]

  return compute


def log_mel(wave_A: np.ndarray, front_end: FrontEnd) -> np.ndarray:
  """The input mel_TM of the network, decibels of power.

  The sound is mirrored at its ends.
  """
  most = round(front_end.seconds * front_end.rate)
  if front_end.centered and wave_A.size:
    wave_A = wave_A - wave_A.mean()
  wave_A = wave_A[:most]
  if front_end.padded:
    wave_A = np.pad(wave_A, (0, most - wave_A.size))
  size, half = front_end.fft_size, front_end.fft_size // 2
  if wave_A.size <= half:
    return np.zeros((0, BINS), np.float32)
  padded_A = np.pad(wave_A.astype(np.float64), half, mode="reflect")
  views = np.lib.stride_tricks.sliding_window_view(padded_A, size)
  turns = np.arange(size) / size
  window = 0.5 - 0.5 * np.cos(2 * np.pi * turns)
  power_TF = np.square(
    np.abs(np.fft.rfft(views[:: front_end.hop] * window[None]))
  )
  bands_MF = mel.bands(front_end.rate, size, BINS, 50.0, front_end.high)
  power_TM = power_TF @ bands_MF.T.astype(np.float64)
  return (10 * np.log10(np.maximum(power_TM, _FLOOR))).astype(np.float32)
