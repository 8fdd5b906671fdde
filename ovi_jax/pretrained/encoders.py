"""Prompts, pictures and sound to what the denoiser reads.

Batches may be split by rows over the mesh: each device then encodes its own.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.models import audio_vae
from ovi_jax.models import mel
from ovi_jax.models import umt5
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import component_loader
from ovi_jax.sharding import sharding_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder:
  """The text encoder with its parameters and tokenizer."""

  components: component_loader.Components
  tokenizer: tokenizer_lib.Tokenizer
  params: dict[str, Any]

  @classmethod
  def load(cls, components: component_loader.Components) -> "TextEncoder":
    return cls(
      components=components,
      tokenizer=components.tokenizer(),
      params=components.load("umt5"),
    )

  def encode(self, ids_BS: Any, mask_BS: Any, split: bool = False) -> jax.Array:
    """Embed token ids: text_BSE, zero beyond each prompt's end.

    Args:
      ids_BS: see `tokenizer.Tokenizer.encode`.
      mask_BS: likewise.
      split: each device embeds its own rows.
    """
    components = self.components
    if split:
      place = sharding_rules.batch_sharding(components.mesh)
      ids_BS, mask_BS = jax.device_put((ids_BS, mask_BS), place)
    with components.computing():
      return umt5.embed(
        components.arch.umt5, self.params, ids_BS, mask_BS, components.dtype
      )

  def texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Embed prompts; each becomes text_SE, S its own tokens, on the host.

    Raises:
      ValueError: an embedding is not finite: the weights are damaged.
    """
    embedded, length = {}, self.components.text_length
    for text in dict.fromkeys(texts):
      ids_BS, mask_BS = self.tokenizer.encode([text], length)
      text_BSE = self.encode(ids_BS, mask_BS)
      text_SE = np.asarray(text_BSE[0])[: mask_BS[0].sum()]
      embedded[text] = self.components.require_finite(text_SE, "umt5")
    return embedded


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoEncoder:
  """The encoding half of the video autoencoder with its parameters."""

  components: component_loader.Components
  params: dict[str, Any]

  @classmethod
  def load(cls, components: component_loader.Components) -> "VideoEncoder":
    params = components.load("video_vae", "encoder")
    return cls(components=components, params=params)

  def encode(self, frames_BTHWC: Any, split: bool = False) -> jax.Array:
    """Encode clips: latents_BTHWC, normalised means, float32.

    Args:
      frames_BTHWC: see `codec.encode`.
      split: each device encodes its own rows; otherwise all encode all.

    Raises:
      ValueError: the frames are of another number, size or type.
    """
    components = self.components
    place = sharding_rules.batch_sharding(components.mesh) if split else None
    with components.computing():
      return codec.encode(
        components.arch.video_vae,
        self.params,
        frames_BTHWC,
        components.dtype,
        place,
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioEncoder:
  """The encoding half of the sound's autoencoder with its parameters."""

  components: component_loader.Components
  params: dict[str, Any]

  @classmethod
  def load(cls, components: component_loader.Components) -> "AudioEncoder":
    params = components.load("audio_vae", "encoder", jnp.float32)
    return cls(components=components, params=params)

  def encode(self, wave_BA: Any, split: bool = False) -> jax.Array:
    """Encode sounds: latents_BTC, means, float32, one for 512 samples.

    Args:
      wave_BA: in [-1, 1] at 16 kHz.
      split: each device encodes its own rows.

    Raises:
      ValueError: the samples are too few, or no whole number of latents.
    """
    components = self.components
    if split:
      wave_BA = jax.device_put(
        wave_BA, sharding_rules.batch_sharding(components.mesh)
      )
    with components.computing(jnp.float32):
      return encode_audio(components.arch.audio_vae, self.params, wave_BA)


@functools.partial(jax.jit, static_argnames="vae")
def encode_audio(
  vae: audio_vae.AudioVAEConfig, params: Any, wave_BA: jax.Array
) -> jax.Array:
  """wave_BA in [-1, 1] at 16 kHz -> means of the latents_BTC, float32."""
  mel_BTM = mel.log_mel(mel.MelConfig(bins=vae.data_dim), wave_BA)
  encoded: Any = audio_vae.AudioVAE(vae).apply(
    {"params": params}, mel_BTM, method="encode"
  )
  return encoded[0]
