"""VGGish (Hershey et al., 2017) in Flax, for the Fréchet audio distance.

Sound, mono at 16 kHz without its mean and cut to 8 s, becomes log mel patches
of 0.96 s: magnitudes of 25 ms windows (periodic Hann) every 10 ms, 64 bands of
HTK's mel scale from 125 to 7500 Hz, log(x + 0.01). Six convolutions and three
dense layers give 128 features per patch, without PCA, quantization and the last
ReLU, as av-benchmark uses them. Array: `embedding` [patches, 128]. float32.

Weights: the state dict of harritaylor/torchvggish (`vggish-10086976.pth`).
"""

import dataclasses
import functools
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

RATE, SECONDS = 16_000, 8.0
_WINDOW, _HOP, _POINTS = 400, 160, 512  # samples
FRAMES, BINS = 96, 64  # of a patch
_LOW, _HIGH, _OFFSET = 125.0, 7500.0, 0.01  # Hz, Hz, of the logarithm
_PLACES = (0, 3, 6, 8, 11, 13)  # of the convolutions in torch's list
_POOLED = (0, 1, 3, 5)  # convolutions before a pooling
_BATCH = 16  # patches per call
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, kw_only=True)
class VggishConfig:
  """Sizes; defaults are those of the public weights.

  Attributes:
    channels: of the six convolutions.
    hidden_dim: width of the two hidden dense layers.
    embedding_dim: number of features.
  """

  channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
  hidden_dim: int = 4096
  embedding_dim: int = 128


class Vggish(nn.Module):
  """The network."""

  config: VggishConfig

  @nn.compact
  def __call__(self, patch_BTM: jax.Array) -> jax.Array:
    """Features [B, 128] of log mel patches [B, 96, 64]."""
    x = patch_BTM[..., None]
    for number, channels in enumerate(self.config.channels):
      conv = nn.Conv(
        channels, (3, 3), precision=_PRECISION, name=f"conv_{number}"
      )
      x = nn.relu(conv(x))
      if number in _POOLED:
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for number in range(2):
      dense = nn.Dense(
        self.config.hidden_dim, precision=_PRECISION, name=f"dense_{number}"
      )
      x = nn.relu(dense(x))
    return nn.Dense(
      self.config.embedding_dim, precision=_PRECISION, name="dense_2"
    )(x)


def rows() -> list[mapping.Row]:
  """The table of the public file."""
  picture = mapping.Rearrange("o i h w -> h w i o")
  table = []
  for number, place in enumerate(_PLACES):
    name, ours = f"features.{place}", f"params/conv_{number}"
    table += mapping.affine(name, ours, picture)
  for number in range(3):
    table += mapping.linear(
      f"embeddings.{2 * number}", f"params/dense_{number}"
    )
  return table


def vggish(path: str) -> features.Extractor:
  """The extractor.

  Args:
    path: of the weights; "" for none, then it is `missing`.

  Raises:
    ValueError: there is no such file.
  """
  missing = digest = ""
  if path:
    digest = container.digest(container.given("--weights=vggish", path))
  else:
    missing = "needs imported features 'vggish', or --weights=vggish=FILE"
  return features.Extractor(
    name="vggish",
    version=2,
    needs=(clips.SOUND,),
    settings={"seconds": SECONDS},
    weights=digest,
    missing=missing,
    load=lambda: _load(pathlib.Path(path)),
  )


def read_weights(
  path: pathlib.Path, config: VggishConfig | None = None
) -> dict[str, Any]:
  """The variables of `Vggish`.

  Raises:
    ValueError: the file is damaged or of another network.
  """
  tensors = reader.open_tensors(path)
  # Parameters of the PCA, which some files hold too.
  shapes = {
    n: s for n, s in tensors.shapes.items() if not n.startswith("pproc.")
  }
  patch = jax.ShapeDtypeStruct((1, FRAMES, BINS), jnp.float32)
  network = Vggish(config or VggishConfig())
  ours = mapping.flatten(jax.eval_shape(network.init, jax.random.key(0), patch))
  try:
    mapping.check(rows(), shapes, {n: x.shape for n, x in ours.items()})
  except ValueError as error:
    raise ValueError(f"{path} is no VGGish: {error}") from error
  flat = mapping.gather(rows(), tensors.read)
  return mapping.nest({n: np.asarray(x, np.float32) for n, x in flat.items()})


def _load(path: pathlib.Path) -> features.Compute:
  variables = jax.device_put(read_weights(path))
  network = jax.jit(Vggish(VggishConfig()).apply)

  def embed(media: clips.Media) -> features.Arrays:
    wave_A = media.mono(RATE)
    patch_NTM = patches(wave_A - wave_A.mean() if wave_A.size else wave_A)
    parts = []
    for start in range(0, len(patch_NTM), _BATCH):
      part = patch_NTM[start : start + _BATCH]
      padded = np.pad(part, ((0, _BATCH - len(part)), (0, 0), (0, 0)))
      parts.append(np.asarray(network(variables, padded))[: len(part)])
    # Sounds shorter than a patch have no features.
    return {"embedding": np.concatenate(parts)} if parts else {}

  def compute(media: Sequence[clips.Media]) -> list[Mapping[str, Any]]:
    return [embed(each) for each in media]

  return compute


def patches(wave_A: np.ndarray) -> np.ndarray:
  """Log mel patches [N, 96, 64] of the first 8 s of a sound at 16 kHz."""
  mel_TM = log_mel(wave_A[: round(SECONDS * RATE)], _OFFSET)
  count = len(mel_TM) // FRAMES
  cut = mel_TM[: count * FRAMES].reshape(count, FRAMES, BINS)
  return cut.astype(np.float32)


def log_mel(wave_A: np.ndarray, offset: float) -> np.ndarray:
  """log(mel + offset) [T, 64] of all whole windows of a sound at 16 kHz."""
  if wave_A.size < _WINDOW:
    return np.zeros((0, BINS))
  views = np.lib.stride_tricks.sliding_window_view(
    wave_A.astype(np.float64), _WINDOW
  )[::_HOP]
  turns = np.arange(_WINDOW) / _WINDOW
  window = 0.5 - 0.5 * np.cos(2 * np.pi * turns)
  spectrum_TF = np.abs(np.fft.rfft(views * window[None], _POINTS))
  return np.log(spectrum_TF @ _bands() + offset)


@functools.cache
def _bands() -> np.ndarray:
  """Triangles in mel [257, 64], of height 1; the lowest frequency is left out.

  Unlike `models.mel.bands`, they are triangles over mel, not Hz.
  """

  def to_mel(hz: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(hz / 700)

  low, high = to_mel(np.array([_LOW, _HIGH]))
  edges = np.linspace(low, high, BINS + 2)[None]
  mel = to_mel(np.fft.rfftfreq(_POINTS, 1 / RATE))[:, None]
  rise = (mel - edges[:, :-2]) / (edges[:, 1:-1] - edges[:, :-2])
  fall = (edges[:, 2:] - mel) / (edges[:, 2:] - edges[:, 1:-1])
  bands = np.maximum(0, np.minimum(rise, fall))
  bands[0] = 0
  return bands
