"""The audio VAE's objective: reconstruction of spectrograms.

In training, filters are normalized whenever they are used, so only their
directions are learnt, as in EDM2 (arXiv 2312.02696, section 2.3). The released
weights contain normalized filters; ours are normalized when they are exported.
Losses are float32; the codec follows the compute dtype.
"""

import dataclasses
import math
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import diffusion
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import audio_vae
from ovi_jax.models import mel
from ovi_jax.training import param_filter

SOUND = AV(0.0, 1.0)  # which modality counts
_QUERIES = "qkv/kernel"  # inputs, then which of three, then outputs
_SILENT = -4.0  # log10 magnitude, about 100 dB below a full sine
# A bin that hardly changes is not blown up further than this.
_LEAST_DEVIATION = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioVAEObjective:
  """An `Objective` on batches of waveforms without padding.

  Attributes:
    config: sizes, with mean and standard deviation of the data's mel bins.
    silence_weight: weight of the error in silence, which is most of time and
      frequency; the error of sound has weight 1.
    kl_weight: weight of the KL divergence of the latents from unit Gaussians,
      averaged over channels and time.
    dtype: compute dtype.
  """

  config: audio_vae.AudioVAEConfig
  silence_weight: float = 0.5
  kl_weight: float = 1e-3
  dtype: Any = jnp.float32

  def __post_init__(self):
    if min(self.silence_weight, self.kl_weight) < 0:
      raise ValueError(
        "objective: silence_weight and kl_weight must not be negative, got"
        f" {self.silence_weight} and {self.kl_weight}"
      )

  @property
  def spectrogram(self) -> mel.MelConfig:
    return mel.MelConfig(bins=self.config.data_dim)

  def exported(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters as the model reads them, filters of their one norm."""
    return unit_filters(params)

  def sample_noise(self, key: jax.Array, example: schema.Batch) -> jax.Array:
    """Noise of the latents of an example, [T, C]."""
    each = self.spectrogram.hop * self.config.frames_per_latent
    latents = example.latents.audio.shape[0] // each
    return jax.random.normal(key, (latents, self.config.embed_dim))

  def example_weights(
    self, batch: schema.Batch, sample: Any
  ) -> dict[str, jax.Array]:
    del sample
    share_B = diffusion.example_weights(batch.lengths, SOUND).audio
    scales = {"mel": 1.0, "silence": self.silence_weight, "kl": self.kl_weight}
    return {name: scale * share_B for name, scale in scales.items()}

  def loss_terms(
    self, params: Any, batch: schema.Batch, sample: Any, null_SE: jax.Array
  ) -> Mapping[str, jax.Array]:
    """Mean differences of sound and silence, in deviations; nats a number."""
    del null_SE
    model = audio_vae.AudioVAE(self.config, self.dtype)
    variables = {"params": unit_filters(params)}
    mel_BTM = mel.log_mel(self.spectrogram, batch.latents.audio)
    moments: Any = model.apply(variables, mel_BTM, method="encode")
    mean_BTC, logvar_BTC = moments
    latents_BTC = mean_BTC + jnp.exp(0.5 * logvar_BTC) * sample
    ours_BTM: Any = model.apply(variables, latents_BTC, method="decode")
    std_M = np.array(self.config.mel_std, np.float32)
    error_BTM = jnp.abs(ours_BTM - mel_BTM) / std_M[None, None]
    variance_BTC = jnp.exp(logvar_BTC)
    kl_BTC = 0.5 * (jnp.square(mean_BTC) + variance_BTC - 1 - logvar_BTC)
    heard_BTM = mel_BTM > _SILENT
    terms = {
      "mel": _mean(error_BTM, heard_BTM),
      "silence": _mean(error_BTM, ~heard_BTM),
      "kl": kl_BTC.mean((1, 2)),
    }
    there_B = batch.lengths.audio > 0
    return {n: jnp.where(there_B, term_B, 0) for n, term_B in terms.items()}


def _mean(x_BTM: jax.Array, counts_BTM: jax.Array) -> jax.Array:
  """Mean over what counts, 0 where nothing does."""
  total_B = jnp.where(counts_BTM, x_BTM, 0.0).sum((1, 2))
  return total_B / jnp.maximum(counts_BTM.sum((1, 2)), 1)


def unit_filters(params: Mapping[str, Any]) -> dict[str, Any]:
  """Every filter divided by its norm.

  It is 1 / (1 + epsilon·√n) for n numbers, what a filter of norm 1 has when the
  original has divided it. Doing so again changes nothing.

  Args:
    params: of an audio VAE, nested; what is no kernel stays as it is.
  """
  flat = param_filter.flat(params)
  for path, kernel in flat.items():
    if not path.endswith("kernel"):
      continue
    axes = (0,) if path.endswith(_QUERIES) else tuple(range(kernel.ndim - 1))
    count = math.prod(kernel.shape[axis] for axis in axes)
    square = jnp.square(kernel).sum(axes, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(square, 1e-20))
    flat[path] = kernel / (norm * (1 + audio_vae.EPSILON * count**0.5))
  return param_filter.nested(flat)


def measure_mel(
  waves: Iterable[np.ndarray], config: mel.MelConfig | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and deviation of every mel bin, for `AudioVAEConfig`.

  Args:
    waves: wave_A in [-1, 1] each, float.
    config: of the spectrograms.

  Returns:
    Both to four decimals; a deviation is at least 0.25.

  Raises:
    ValueError: there is no sound.
  """
  config = config or mel.MelConfig()
  count, total, square = 0, np.zeros(config.bins), np.zeros(config.bins)
  for wave_A in waves:
    mel_TM = np.asarray(mel.log_mel(config, wave_A[None])[0], np.float64)
    count += len(mel_TM)
    total += mel_TM.sum(0)
    square += np.square(mel_TM).sum(0)
  if not count:
    raise ValueError("mel statistics: expected at least one sound, got none")
  mean = total / count
  deviation = np.sqrt(np.maximum(square / count - np.square(mean), 0))
  deviation = np.maximum(deviation, _LEAST_DEVIATION)
  rounded = (tuple(map(float, x.round(4))) for x in (mean, deviation))
  return next(rounded), next(rounded)
