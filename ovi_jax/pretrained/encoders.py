"""Encoders of prompts, frames and audio.

Batches may be split over the mesh by rows; each device then encodes its own.
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
    """Load the text encoder and its tokenizer."""
    return cls(
      components=components,
      tokenizer=components.tokenizer(),
      params=components.load("umt5"),
    )

  def encode(self, ids_BS: Any, mask_BS: Any, split: bool = False) -> jax.Array:
    """Embed token ids.

    Args:
      ids_BS: see `tokenizer.Tokenizer.encode`.
      mask_BS: likewise.
      split: each device embeds its own rows.

    Returns:
      text_BSE in the compute dtype, zero beyond each prompt's end.
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
    """Embed prompts.

    Args:
      texts: prompts; duplicates are embedded once.

    Returns:
      By prompt: text_SE on the host, S the number of its tokens.

    Raises:
      ValueError: an embedding is not finite, so the weights are damaged.
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
  """The encoder of the video VAE."""

  components: component_loader.Components
  params: dict[str, Any]

  @classmethod
  def load(cls, components: component_loader.Components) -> "VideoEncoder":
    """Load the encoder of the video VAE."""
    params = components.load("video_vae", "encoder")
    return cls(components=components, params=params)

  def encode(self, frames_BTHWC: Any, split: bool = False) -> jax.Array:
    """Encode clips.

    Args:
      frames_BTHWC: RGB, uint8 or in [-1, 1]; T is 1 + 4·k, H and W are
        multiples of 16.
      split: each device encodes its own rows; otherwise each encodes all.

    Returns:
      latents_BTHWC, normalized means, float32.

    Raises:
      ValueError: the number, size or type of the frames is not supported.
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
  """The encoder of the audio VAE."""

  components: component_loader.Components
  params: dict[str, Any]

  @classmethod
  def load(cls, components: component_loader.Components) -> "AudioEncoder":
    """Load the encoder of the audio VAE."""
    params = components.load("audio_vae", "encoder", jnp.float32)
    return cls(components=components, params=params)

  def encode(self, wave_BA: Any, split: bool = False) -> jax.Array:
    """Encode audio.

    Args:
      wave_BA: mono in [-1, 1] at 16 kHz; A is a multiple of 512.
      split: each device encodes its own rows.

    Returns:
      latents_BTC, means, float32, one per 512 samples.

    Raises:
      ValueError: the samples are too few, or not a whole number of latents.
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
  """Encode audio with given parameters.

  Args:
    vae: sizes of the audio VAE.
    params: parameters of its encoder.
    wave_BA: mono in [-1, 1] at 16 kHz.

  Returns:
    latents_BTC, means, float32.
  """
  mel_BTM = mel.log_mel(mel.MelConfig(bins=vae.data_dim), wave_BA)
  encoded: Any = audio_vae.AudioVAE(vae).apply(
    {"params": params}, mel_BTM, method="encode"
  )
  return encoded[0]
