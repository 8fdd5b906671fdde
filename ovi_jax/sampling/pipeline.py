"""The components around the loop: prompts in, latents, pictures and sound out.

Each stage loads the weights it needs and gives them back when it is done: the
text encoder is gone before the denoiser comes. The denoiser and the text
encoder are laid over the mesh by `parallel.partition`; codecs are copied to
every device.

Numbers: text encoder, denoiser and video autoencoder follow the run's dtype;
samples, the sound's autoencoder and vocoder are float32 always (they are a
thousandth of the work).
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import media
from ovi_jax import prompt as prompts
from ovi_jax import runtime
from ovi_jax.checkpoint import directory
from ovi_jax.checkpoint import weights
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import attention
from ovi_jax.models import audio_vae
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import umt5
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import codec
from ovi_jax.parallel import partition
from ovi_jax.sampling import denoise
from ovi_jax.sampling import guidance
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import solver

NEEDS = architecture.COMPONENTS
TEXT_ROWS = 64
CACHED_ACTIVATIONS = 2**21  # of a feed-forward, 8 MiB: they stay in a cache
_RULES = {"fusion": partition.FUSION, "umt5": partition.UMT5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Where the weights are and how to compute with them.

  Attributes:
    weights: directory of converted weights.
    manifest: what it holds.
    mesh: the devices.
    dtype: compute dtype.
    backend: attention backend.
  """

  weights: pathlib.Path
  manifest: directory.Manifest
  mesh: jax.sharding.Mesh
  dtype: jnp.dtype
  backend: str

  @functools.cached_property
  def arch(self) -> architecture.Architecture:
    return self.manifest.architecture

  @property
  def channels(self) -> AV[int]:
    """Latent channels of each modality."""
    towers = self.arch.fusion.present()
    return AV(**{name: tower.channels for name, tower in towers.items()})

  @contextlib.contextmanager
  def computing(self, dtype: Any = None) -> Iterator[None]:
    """Compute on the mesh; float32 means float32, no accelerator's short cut.

    Args:
      dtype: compute dtype; by default the run's.
    """
    whole = (self.dtype if dtype is None else dtype) == jnp.float32
    precision = "highest" if whole else None
    with jax.set_mesh(self.mesh), jax.default_matmul_precision(precision):
      yield

  @property
  def text_length(self) -> int:
    """Tokens of a prompt, the same for every tower."""
    return next(iter(self.arch.fusion.present().values())).text_length

  def load(
    self, component: str, prefix: str | None = None, dtype: Any = None
  ) -> dict[str, Any]:
    """Load a component's parameters onto the mesh.

    Args:
      component: one of `architecture.COMPONENTS`.
      prefix: load only what is below this path.
      dtype: of the parameters; by default the run's compute dtype.
    """
    path = directory.component_file(self.weights, component)
    placement: Any = partition.replicated(self.mesh)
    if component in _RULES:
      shapes = weights.shapes(path)
      placed = partition.shardings(shapes, _RULES[component], self.mesh)
      placement = lambda leaf, shape: placed[leaf]  # noqa: E731
    return weights.load(
      path,
      shardings=placement,
      dtype=self.dtype if dtype is None else dtype,
      prefix=prefix,
    )

  def tokenizer(self) -> prompts.Tokenizer:
    return prompts.Tokenizer.load(self.weights / directory.TOKENIZER)

  def embed(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Embed prompts; each becomes text_SE, S its own tokens, on the host."""
    params = self.load("umt5")
    tokenizer = self.tokenizer()
    embedded = {}
    for text in dict.fromkeys(texts):
      ids_BS, mask_BS = tokenizer.encode([text], self.text_length)
      with self.computing():
        text_BSE = umt5.embed(
          self.arch.umt5, params, ids_BS, mask_BS, self.dtype
        )
      embedded[text] = np.asarray(text_BSE[0])[: mask_BS[0].sum()]
    return embedded

  def encode_images(
    self, paths: Sequence[pathlib.Path], area: int
  ) -> dict[pathlib.Path, np.ndarray]:
    """First latent frame [1, H, W, C] of each picture, on the host."""
    if not paths:
      return {}
    params = self.load("video_vae", "encoder")
    latents = {}
    for path in dict.fromkeys(paths):
      image_HWC = media.first_frame(media.read_image(path), area)
      with self.computing():
        frames = codec.encode(
          self.arch.video_vae, params, image_HWC[None, None], self.dtype
        )
      latents[path] = np.asarray(frames[0])
    return latents

  def decoder(self) -> "Decoder":
    """Load what turns latents into pictures and sound."""
    return Decoder(
      pipeline=self,
      video=self.load("video_vae", "decoder"),
      audio=self.load("audio_vae", "decoder", jnp.float32),
      vocoder=self.load("vocoder", dtype=jnp.float32),
    )

  def denoiser(self) -> "Denoiser":
    """Load the model of the loop."""
    model = denoiser_model(
      self.arch.fusion, self.dtype, self.backend, self.mesh.size
    )
    return Denoiser(pipeline=self, model=model, params=self.load("fusion"))


def denoiser_model(
  config: AV[dit.DiTConfig], dtype: jnp.dtype, backend: str, devices: int
) -> fusion.FusionDiT:
  """The denoiser as it runs best on this platform."""
  cached = runtime.platform() == "cpu" and devices == 1
  limit = CACHED_ACTIVATIONS if cached else None
  return fusion.FusionDiT(config, dtype, backend, limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
  """The model of the loop with its parameters."""

  pipeline: Pipeline
  model: fusion.FusionDiT
  params: dict[str, Any]

  def sample(
    self,
    noise: AV[np.ndarray],
    positive: np.ndarray,
    negative: AV[np.ndarray],
    settings: settings_lib.Settings,
    first_frame: np.ndarray | None = None,
    on_step: Any = lambda _: None,
  ) -> AV[jax.Array]:
    """Denoise one clip.

    Args:
      noise: video_THWC and audio_TC, standard normal.
      positive: text_SE of the prompt, S its own tokens.
      negative: text_SE of each tower's negative prompt.
      settings: solver, steps, guidance.
      first_frame: clean first latent [1, H, W, C], or `None`.
      on_step: called with the number of finished steps.

    Returns:
      Latents video_BTHWC and audio_BTC with B = 1, float32.
    """
    method = solver.named(settings.solver)
    levels = method.schedule(settings.steps, settings.shift)
    with self.pipeline.computing():
      x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32)[None], noise)
      text = text_pairs(
        positive, negative, self.pipeline.text_length, self.model.backend
      )
      first = None if first_frame is None else jnp.asarray(first_frame)[None]
      depth = self.model.config.video.blocks
      inputs = denoise.Inputs(
        conditions(self.model, self.params, guidance.both(x), text),
        jnp.asarray(guidance.kept_blocks(depth, 1, settings.skip_layer)),
        settings.guidance,
        first,
      )
      return denoise.denoise(
        self.model, method, self.params, inputs, x, levels, on_step
      )


def text_pairs(
  positive: np.ndarray,
  negative: AV[np.ndarray],
  limit: int,
  backend: str,
) -> AV[np.ndarray]:
  """Embeddings_BSE of the doubled batch, zero beyond each prompt's end.

  S is one of few lengths, since each compiles a program of its own: the first
  of 64, 128, 256, ..., less the row that stands for the rest, that holds the
  longest prompt.

  Args:
    positive: text_SE of the prompt.
    negative: text_SE of each tower's negative prompt.
    limit: the largest S.
    backend: of the attention; S is `limit` for one that gains nothing by less.

  Raises:
    ValueError: an embedding is longer than `limit`.
  """
  negatives = negative.present()
  longest = max(len(text) for text in (positive, *negatives.values()))
  if longest > limit:
    raise ValueError(f"{longest} text embeddings; the towers read {limit}")
  rows = TEXT_ROWS
  while rows <= longest:
    rows *= 2
  rows = min(rows - 1, limit)
  if backend not in attention.WEIGHS_LAST:
    rows = limit

  def padded(text_SE: np.ndarray) -> np.ndarray:
    return np.pad(text_SE, ((0, rows - len(text_SE)), (0, 0)))

  return AV(
    **{
      name: np.stack([padded(positive), padded(text)])
      for name, text in negatives.items()
    }
  )


@functools.partial(jax.jit, static_argnames="model")
def conditions(
  model: fusion.FusionDiT, params: Any, latents: AV[Any], text: AV[jax.Array]
) -> fusion.Conditions:
  """What all steps of a prompt share, see `fusion.FusionDiT.conditions`."""
  made: Any = model.apply(
    {"params": params}, latents, text, method="conditions"
  )
  return made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
  """The codecs' decoding halves with their parameters."""

  pipeline: Pipeline
  video: dict[str, Any]
  audio: dict[str, Any]
  vocoder: dict[str, Any]

  def frames(self, latents_BTHWC: jax.Array) -> Iterator[np.ndarray]:
    """Video frames of the first clip, uint8, a few at a time."""
    arch, dtype = self.pipeline.arch, self.pipeline.dtype
    with self.pipeline.computing():
      chunks = codec.decode_chunks(
        arch.video_vae, self.video, latents_BTHWC, dtype
      )
      for chunk_BTHWC in chunks:
        yield media.to_uint8(np.asarray(chunk_BTHWC[0]))

  def wave(self, latents_BTC: jax.Array) -> np.ndarray:
    """Sound of the first clip, [samples] in [-1, 1] at 16 kHz."""
    arch = self.pipeline.arch
    with self.pipeline.computing(jnp.float32):
      wave_BA = decode_sound(
        arch.audio_vae, arch.vocoder, self.audio, self.vocoder, latents_BTC
      )
    return np.asarray(wave_BA[0])


@functools.partial(jax.jit, static_argnames=("vae", "bigvgan"))
def decode_sound(
  vae: audio_vae.AudioVAEConfig,
  bigvgan: vocoder.VocoderConfig,
  vae_params: Any,
  vocoder_params: Any,
  latents_BTC: jax.Array,
) -> jax.Array:
  """Audio latents -> wave_BA, float32."""
  mel_BTM = audio_vae.AudioVAE(vae).apply(
    {"params": vae_params}, latents_BTC, method="decode"
  )
  wave_BA: Any = vocoder.BigVGAN(bigvgan).apply(
    {"params": vocoder_params}, mel_BTM
  )
  return wave_BA
