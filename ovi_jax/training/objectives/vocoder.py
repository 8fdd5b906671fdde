"""The vocoder's objective: a waveform from its own spectrogram.

Waveforms are compared by their spectra, without a discriminator, so phases are
free. The input spectrogram has noise, because those of a VAE and a denoiser
have errors. Losses are float32; the vocoder follows the compute dtype.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ovi_jax import diffusion
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import mel
from ovi_jax.models import vocoder
from ovi_jax.training.objectives import spectral

TERMS = (*spectral.Distance._fields, "mel")
SOUND = AV(0.0, 1.0)  # which modality counts
# Of the first output; random ones of the usual size are a roar to unlearn.
_QUIETER = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderObjective:
  """An `Objective` on batches of waveforms without padding.

  Attributes:
    config: sizes.
    convergence_weight: weight of the spectral convergence, see
      `spectral.Distance`.
    magnitude_weight: weight of the log-magnitude error, see
      `spectral.Distance`.
    mel_weight: weight of the mean difference of log10 mels.
    noise_std: maximum standard deviation of the noise in the input mel, log10;
      each example samples its own, from 0.
    dtype: compute dtype.
  """

  config: vocoder.VocoderConfig
  convergence_weight: float = 3.0
  magnitude_weight: float = 1.0
  mel_weight: float = 2.0
  noise_std: float = 0.1
  dtype: Any = jnp.float32

  def __post_init__(self):
    for name in (*(f"{term}_weight" for term in TERMS), "noise_std"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"objective: {name} must not be negative, got {getattr(self, name)}"
        )

  @property
  def spectrogram(self) -> mel.MelConfig:
    return mel.MelConfig(bins=self.config.mel_bins)

  def init(self, key: jax.Array) -> dict[str, Any]:
    """Random parameters that begin almost silent."""
    mel_BTM = jnp.zeros((1, 8, self.config.mel_bins))
    params: Any = vocoder.BigVGAN(self.config).init(key, mel_BTM)["params"]
    kernel = _QUIETER * params["conv_out"]["kernel"]
    return params | {"conv_out": params["conv_out"] | {"kernel": kernel}}

  def sample_noise(self, key: jax.Array, example: schema.Batch) -> jax.Array:
    """What is added to an example's mel, [T, M]."""
    level_key, noise_key = jax.random.split(key)
    frames = example.latents.audio.shape[0] // self.spectrogram.hop
    level = self.noise_std * jax.random.uniform(level_key)
    shape = frames, self.config.mel_bins
    return level * jax.random.normal(noise_key, shape)

  def example_weights(
    self, batch: schema.Batch, sample: Any
  ) -> dict[str, jax.Array]:
    del sample
    share_B = diffusion.example_weights(batch.lengths, SOUND).audio
    return {term: getattr(self, f"{term}_weight") * share_B for term in TERMS}

  def loss_terms(
    self, params: Any, batch: schema.Batch, sample: Any, null_SE: jax.Array
  ) -> Mapping[str, jax.Array]:
    """`convergence`, `magnitude` and `mel` of every example."""
    del null_SE
    wave_BA = batch.latents.audio
    mel_BTM = mel.log_mel(self.spectrogram, wave_BA) + sample
    model = vocoder.BigVGAN(self.config, self.dtype)
    ours_BA: Any = model.apply({"params": params}, mel_BTM)
    terms = spectral.distance(ours_BA, wave_BA)._asdict()
    terms["mel"] = spectral.mel_distance(self.spectrogram, ours_BA, wave_BA)
    there_B = batch.lengths.audio > 0
    return {n: jnp.where(there_B, term_B, 0) for n, term_B in terms.items()}
