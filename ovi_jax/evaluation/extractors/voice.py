"""Voices as embeddings, with the speaker encoder of Resemblyzer in Flax.

Three LSTM layers over 40 mel bands (power, not logarithm; 25 ms every 10 ms) of
1.6 s of mono sound at 16 kHz, a dense layer with ReLU, and unit length (Wan et
al., 2018). An utterance is the mean of windows that begin 1/1.3 s apart, of
unit length again. Array: `embedding` [256]. Before that the sound is raised to
-30 dBFS. Unlike in Resemblyzer, silence is not cut out. float32.

Weights: `pretrained.pt` of the package Resemblyzer, of which only this file is
read (`pip install --no-deps Resemblyzer`).
"""

import importlib.util
import math
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
from ovi_jax.evaluation.extractors import spectrum
from ovi_jax.media import container

RATE, HOP, BINS = 16_000, 160, 40
WINDOW = 160  # frames of 10 ms
_PER_SECOND, _MIN_COVERAGE = 1.3, 0.75  # windows; of the last one
_LEVEL = 10 ** (-30 / 20)  # RMS that quiet sounds are raised to
_LAYERS, _WIDTH = 3, 256
_BATCH = 8  # windows per call


class VoiceEncoder(nn.Module):
  """The network."""

  @nn.compact
  def __call__(self, mel_BTM: jax.Array) -> jax.Array:
    """Embeddings [B, 256] of unit length of windows mel_BTM."""
    x_BTD = mel_BTM
    for number in range(_LAYERS):
      x_BTD = _Lstm(name=f"lstm_{number}")(x_BTD)
    out = nn.Dense(_WIDTH, precision=jax.lax.Precision.HIGHEST, name="dense")
    x_BD = nn.relu(out(x_BTD[:, -1]))
    length_B1 = jnp.linalg.norm(x_BD, axis=-1, keepdims=True)
    return x_BD / jnp.maximum(length_B1, 1e-12)


class _Lstm(nn.Module):
  """An LSTM layer, gates in the order input, forget, cell, output."""

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    zeros, init = nn.initializers.zeros, nn.initializers.lecun_normal()
    kernel = self.param("kernel", init, (x_BTD.shape[-1], 4 * _WIDTH))
    hidden_kernel = self.param("hidden_kernel", init, (_WIDTH, 4 * _WIDTH))
    bias = self.param("bias", zeros, (4 * _WIDTH,))
    hidden_bias = self.param("hidden_bias", zeros, (4 * _WIDTH,))

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
      return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

    def step(state, gates_BD):
      cell_BD, out_BD = state
      gates_BD = gates_BD + product(out_BD, hidden_kernel)
      inward, kept, new, outward = jnp.split(gates_BD, 4, axis=-1)
      cell_BD = jax.nn.sigmoid(kept) * cell_BD
      cell_BD = cell_BD + jax.nn.sigmoid(inward) * jnp.tanh(new)
      out_BD = jax.nn.sigmoid(outward) * jnp.tanh(cell_BD)
      return (cell_BD, out_BD), out_BD

    gates_BTD = product(x_BTD, kernel) + (bias + hidden_bias)[None, None]
    zero_BD = jnp.zeros((x_BTD.shape[0], _WIDTH), x_BTD.dtype)
    _, out_TBD = jax.lax.scan(
      step, (zero_BD, zero_BD), gates_BTD.swapaxes(0, 1)
    )
    return out_TBD.swapaxes(0, 1)


def rows() -> list[mapping.Row]:
  """The table of the package's file."""
  turned = mapping.Rearrange("o i -> i o")
  table = []
  for number in range(_LAYERS):
    ours = f"params/lstm_{number}"
    table += [
      mapping.Row(f"lstm.weight_ih_l{number}", f"{ours}/kernel", turned),
      mapping.Row(f"lstm.weight_hh_l{number}", f"{ours}/hidden_kernel", turned),
      mapping.Row(f"lstm.bias_ih_l{number}", f"{ours}/bias"),
      mapping.Row(f"lstm.bias_hh_l{number}", f"{ours}/hidden_bias"),
    ]
  return [*table, *mapping.linear("linear", "params/dense")]


def voice(path: str) -> features.Extractor:
  """The extractor.

  Args:
    path: of the weights; "" for those of the installed package.

  Raises:
    ValueError: there is no such file.
  """
  found = (
    container.given("--weights=voice", path) if path else _package_weights()
  )
  return features.Extractor(
    name="voice",
    version=2,
    needs=(clips.SOUND,),
    weights=container.digest(found) if found else "",
    missing=""
    if found
    else "Resemblyzer is missing: pip install --no-deps Resemblyzer, or"
    " --weights=voice=FILE",
    load=lambda: _load(found),
  )


def _package_weights() -> pathlib.Path | None:
  """The weights in the installed package, which is not imported."""
  found = importlib.util.find_spec("resemblyzer")
  if found is None or not found.origin:
    return None
  path = pathlib.Path(found.origin).with_name("pretrained.pt")
  return path if path.is_file() else None


def read_weights(path: pathlib.Path) -> dict[str, Any]:
  """The variables of `VoiceEncoder`.

  Raises:
    ValueError: the file is damaged or of another network.
  """
  tensors = reader.open_tensors(path, "model_state")
  # Of its training: the loss's scale and offset.
  extra = ("similarity_weight", "similarity_bias")
  shapes = {n: s for n, s in tensors.shapes.items() if n not in extra}
  mel = jax.ShapeDtypeStruct((1, WINDOW, BINS), jnp.float32)
  ours = mapping.flatten(
    jax.eval_shape(VoiceEncoder().init, jax.random.key(0), mel)
  )
  try:
    mapping.check(rows(), shapes, {n: x.shape for n, x in ours.items()})
  except ValueError as error:
    raise ValueError(f"{path} is no encoder of voices: {error}") from error
  flat = mapping.gather(rows(), tensors.read)
  return mapping.nest({n: np.asarray(x, np.float32) for n, x in flat.items()})


def _load(path: pathlib.Path | None) -> features.Compute:
  if path is None:
    raise ValueError(
      "voices need weights: pip install --no-deps Resemblyzer, or"
      " --weights=voice=FILE"
    )
  variables = jax.device_put(read_weights(path))
  network = jax.jit(VoiceEncoder().apply)

  def embed(media: clips.Media) -> features.Arrays:
    mel_BTM = windows(media.mono(RATE))
    if not len(mel_BTM):
      return {}
    parts = []
    for start in range(0, len(mel_BTM), _BATCH):
      part = mel_BTM[start : start + _BATCH]
      padded = np.pad(part, ((0, _BATCH - len(part)), (0, 0), (0, 0)))
      parts.append(np.asarray(network(variables, padded))[: len(part)])
    mean_D = np.concatenate(parts).mean(axis=0)
    return {"embedding": mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)}

  def compute(media: Sequence[clips.Media]) -> list[Mapping[str, np.ndarray]]:
    return [embed(each) for each in media]

  return compute


def windows(wave_A: np.ndarray) -> np.ndarray:
  """Mel spectrograms [windows, 160, 40] of a sound at 16 kHz.

  None of a silent sound. A last window counts if three quarters of it are in
  the sound; there is one at least.
  """
  if not np.any(wave_A):
    return np.zeros((0, WINDOW, BINS), np.float32)
  level = math.sqrt(float(np.square(wave_A, dtype=np.float64).mean()))
  wave_A = wave_A * np.float32(max(1.0, _LEVEL / level))
  frames = math.ceil((wave_A.size + 1) / HOP)
  step = round(RATE / _PER_SECOND / HOP)
  starts = list(range(0, max(1, frames - WINDOW + step + 1), step))
  inside = (wave_A.size - starts[-1] * HOP) / (WINDOW * HOP)
  if inside < _MIN_COVERAGE and len(starts) > 1:
    starts.pop()
  needed = (starts[-1] + WINDOW) * HOP
  padded_A = np.pad(wave_A, (0, max(0, needed - wave_A.size)))
  mel_TM = spectrum.power_mel(padded_A, RATE, fft_size=400, hop=HOP, bins=BINS)
  return np.stack([mel_TM[start : start + WINDOW] for start in starts])
