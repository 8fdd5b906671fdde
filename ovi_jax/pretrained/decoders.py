"""Decoders of latents: frames and audio."""

import dataclasses
import functools
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.media import images
from ovi_jax.modality import AV
from ovi_jax.models import audio_vae
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import component_loader


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """Parameters of the decoders; `None` for those that are not loaded."""

  components: component_loader.Components
  video: Any = None
  audio: Any = None
  vocoder: Any = None

  @classmethod
  def load(
    cls,
    components: component_loader.Components,
    names: Collection[str] = AV._fields,
  ) -> "Decoder":
    """Load the decoders of some modalities.

    Args:
      components: the directory of weights.
      names: of the modalities.

    Returns:
      The decoders.
    """
    params = {}
    if "video" in names:
      params["video"] = components.load("video_vae", "decoder")
    if "audio" in names:
      params["audio"] = components.load("audio_vae", "decoder", jnp.float32)
      params["vocoder"] = components.load("vocoder", dtype=jnp.float32)
    return cls(components=components, **params)

  def frames(self, latents_BTHWC: jax.Array) -> Iterator[np.ndarray]:
    """Decode the video of the first clip of a batch.

    Args:
      latents_BTHWC: video latents.

    Yields:
      Frames, uint8 RGB [a few frames, H, W, 3], in order.

    Raises:
      ValueError: pixels are not finite, so the weights are damaged.
    """
    with self.components.computing():
      count = latents_BTHWC.shape[1]
      yield from self._decoded(latents_BTHWC[:, i] for i in range(count))

  def frames_of(self, latents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Decode the video of a clip whose latents come one after another.

    Args:
      latents: latents_HWC; the next is read when its frames are wanted.

    Yields:
      Frames as `frames` does: those of each latent.

    Raises:
      ValueError: as `frames`.
    """
    chunks = self._decoded(latent_HWC[None] for latent_HWC in latents)
    while True:
      # Not while frames or latents are waited for: the mesh is of a thread.
      with self.components.computing():
        chunk = next(chunks, None)
      if chunk is None:
        return
      yield chunk

  def _decoded(self, latents: Iterable[Any]) -> Iterator[np.ndarray]:
    """Frames of latents_BHWC."""
    arch, dtype = self.components.arch, self.components.dtype
    chunks = codec.decode_sequence(arch.video_vae, self.video, latents, dtype)
    for chunk_BTHWC in chunks:
      try:
        frames_THWC = images.to_uint8(np.asarray(chunk_BTHWC)[0])
      except ValueError as error:
        raise ValueError(self.components.damaged("video_vae")) from error
      yield frames_THWC

  def wave(self, latents_BTC: jax.Array) -> np.ndarray:
    """Decode the audio of the first clip of a batch.

    Args:
      latents_BTC: audio latents.

    Returns:
      wave_A, mono float32 in [-1, 1] at 16 kHz, on the host.

    Raises:
      ValueError: samples are not finite, so the weights are damaged.
    """
    arch = self.components.arch
    with self.components.computing(jnp.float32):
      wave_BA = decode_audio(
        arch.audio_vae, arch.vocoder, self.audio, self.vocoder, latents_BTC
      )
    # On the host: the mesh of whoever calls may be another.
    wave_A = np.asarray(wave_BA)[0]
    return self.components.require_finite(wave_A, "audio_vae", "vocoder")


@functools.partial(jax.jit, static_argnames=("vae", "bigvgan"))
def decode_audio(
  vae: audio_vae.AudioVAEConfig,
  bigvgan: vocoder.VocoderConfig,
  vae_params: Any,
  vocoder_params: Any,
  latents_BTC: jax.Array,
) -> jax.Array:
  """Decode audio latents with given parameters.

  Args:
    vae: sizes of the audio VAE.
    bigvgan: sizes of the vocoder.
    vae_params: parameters of the VAE's decoder.
    vocoder_params: parameters of the vocoder.
    latents_BTC: audio latents.

  Returns:
    wave_BA, float32 in [-1, 1] at 16 kHz.
  """
  mel_BTM = audio_vae.AudioVAE(vae).apply(
    {"params": vae_params}, latents_BTC, method="decode"
  )
  wave_BA: Any = vocoder.BigVGAN(bigvgan).apply(
    {"params": vocoder_params}, mel_BTM
  )
  return wave_BA
