"""The components around the loop: prompts in, latents out.

Each stage loads the weights it needs and gives them back when it is done: the
text encoder is freed before the DiT is loaded. Samples are float32 whatever
the compute dtype.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ovi_jax import cli
from ovi_jax import geometry
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.lora import apply as lora_lib
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import low_rank
from ovi_jax.models import quantized
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import conditions as conditions_lib
from ovi_jax.sampling import denoise
from ovi_jax.sampling import guidance
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import solvers

# What is generated, and the components that this takes.
BOTH = "both"
NEEDS = {
  BOTH: architecture.COMPONENTS,
  "video": ("umt5", "fusion", "video_vae"),
  "audio": ("umt5", "fusion", "audio_vae", "vocoder"),
}
# Clips of weights of one tower that do not say how long theirs are: those of
# Wan2.2-TI2V-5B.
_ONE_TOWER = geometry.Variant(
  name=weights_dir.CUSTOM,
  checkpoint="",
  area=704 * 1280,
  latent_frames=31,
  audio_latents=157,
  audio_tag="",
)
TEXT_ROWS = 64
CACHED_ACTIVATIONS = 2**21  # of a feed-forward, 8 MiB: they stay in a cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingComponents(component_loader.Components):
  """All components, and how the denoiser attends.

  Attributes:
    backend: attention backend.
    context_parallelism: of attention between tokens that are split over
      devices.
    loras: applied to the denoiser.
  """

  backend: str
  context_parallelism: str = context.ULYSSES
  loras: tuple[lora_lib.Lora, ...] = ()

  @property
  def generates(self) -> str:
    """What is made: a key of `NEEDS`."""
    towers = tuple(self.arch.fusion.present())
    return towers[0] if len(towers) == 1 else BOTH

  @property
  def geometry(self) -> geometry.Variant:
    """Length and area of the clips that the weights make.

    Raises:
      ValueError: weights of both towers do not say.
    """
    named = self.manifest.variant in geometry.VARIANTS
    if named or self.arch.clip is not None or self.generates == BOTH:
      return self.manifest.geometry
    return _ONE_TOWER

  @property
  def channels(self) -> AV[int]:
    """Latent channels of each modality."""
    return self.arch.fusion.map(lambda _, tower: tower.channels)

  def denoiser(self) -> "Denoiser":
    """Load the model of the loop, without `loras`."""
    params = self.load("fusion", self._fusion_paths())
    return Denoiser(components=self, model=self.denoiser_model(), params=params)

  def _fusion_paths(self) -> tuple[str, ...] | None:
    """Parameters of the towers that are there; `None` for all of the file."""
    if self.generates == BOTH:
      return None
    wanted = architecture.parameter_shapes("fusion", self.arch.fusion)
    paths: dict[str, Any] = traverse_util.flatten_dict(wanted, sep="/")
    file = weights_dir.component_file(self.weights, "fusion")
    scales = {quantized.beside(path) for path in paths} - paths.keys()
    return tuple(p for p in weights.shapes(file) if p in {*paths, *scales})

  def denoiser_model(self) -> fusion.FusionDiT:
    """The model of the loop, without its parameters."""
    return denoiser_model(
      self.arch.fusion,
      self.dtype,
      self.backend,
      self.mesh.size,
      self.context_parallelism,
    )


def denoiser_model(
  config: AV[dit.DiTConfig],
  dtype: jnp.dtype,
  backend: str,
  devices: int,
  context_parallelism: str = context.ULYSSES,
) -> fusion.FusionDiT:
  """The denoiser as it runs best on this platform."""
  cached = cli.platform() == "cpu" and devices == 1
  limit = CACHED_ACTIVATIONS if cached else None
  unroll = fusion.should_unroll(config, cli.platform())
  return fusion.FusionDiT(
    config,
    dtype,
    backend,
    limit,
    unroll=unroll,
    context_parallelism=context_parallelism,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
  """The model of the loop with its parameters."""

  components: SamplingComponents
  model: fusion.FusionDiT
  params: dict[str, Any]

  def with_loras(self, loras: Sequence[lora_lib.Lora]) -> "Denoiser":
    """The same model with LoRAs; it shares the parameters of this one."""
    params = lora_lib.apply(
      self.params, loras, self.model.config, self.components.mesh
    )
    return dataclasses.replace(self, params=params)

  def restricted(self, components: SamplingComponents) -> "Denoiser":
    """One tower of this model; it shares the parameters of this one.

    Args:
      components: see `opening.restricted`.
    """
    wanted = architecture.parameter_shapes("fusion", components.arch.fusion)
    paths: dict[str, Any] = traverse_util.flatten_dict(wanted, sep="/")
    parts = low_rank.DOWN, low_rank.UP, low_rank.SCALE
    kept = {*paths, *map(quantized.beside, paths)}
    kept |= {low_rank.beside(path, part) for path in paths for part in parts}
    flat: dict[str, Any] = traverse_util.flatten_dict(self.params, sep="/")
    params = {path: x for path, x in flat.items() if path in kept}
    return dataclasses.replace(
      self,
      components=components,
      model=components.denoiser_model(),
      params=traverse_util.unflatten_dict(params, sep="/"),
    )

  def sample(
    self,
    noise: AV[np.ndarray],
    positives: Sequence[np.ndarray],
    negative: AV[np.ndarray],
    settings: settings_lib.Settings,
    given: AV[denoise.Given | None] = denoise.NONE_GIVEN,
    on_step: denoise.OnStep = lambda _: None,
    voices_BRC: np.ndarray | None = None,
  ) -> AV[jax.Array]:
    """Denoise a batch of clips.

    Args:
      noise: video_BTHWC and audio_BTC of the model's towers, standard normal.
      positives: text_SE of each clip's prompt, S its own tokens.
      negative: text_SE of each tower's negative prompt, for all clips.
      settings: solver, steps, guidance.
      given: given latents of each modality.
      on_step: called after each step.
      voices_BRC: audio latents of each clip's reference voice.

    Returns:
      Latents video_BTHWC and audio_BTC, float32. A row is the same in any
      batch, but for the order of additions.

    Raises:
      denoise.NonFiniteLatentsError: a step ended in NaN or infinity.
      denoise.CancelledError: by `on_step`.
    """
    method = solvers.named(settings.solver)
    levels = method.schedule(settings.num_steps, settings.flow_shift)
    with self.components.computing():
      x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), noise)
      voice_scale = None
      if voices_BRC is not None and settings.voice_guidance_scale != 1:
        voice_scale = settings.voice_guidance_scale
      passes = guidance.PASSES + (voice_scale is not None)
      references = shown_reference(voices_BRC, settings.conditioning, passes)
      text = text_pairs(
        positives,
        negative,
        self.components.text_length,
        self.model.backend,
        passes,
      )
      batch = len(positives)
      depth = settings_lib.num_layers(self.model.config)
      inputs = denoise.Inputs(
        step_constants(
          self.model,
          self.params,
          guidance.duplicate_for_cfg(x, passes),
          text,
          references,
        ),
        jnp.asarray(
          guidance.slg_mask(depth, batch, settings.slg_layer, passes)
        ),
        self.model.config.map(
          lambda name, _: getattr(settings.guidance_scale, name)
        ),
        jax.tree.map(jnp.asarray, given),
        references,
        voice_scale,
      )
      return denoise.denoise(
        self.model, method, self.params, inputs, x, levels, on_step
      )

  def maps(
    self,
    latents: AV[jax.Array],
    noise: AV[np.ndarray],
    positive: np.ndarray,
    given: AV[denoise.Given | None] = denoise.NONE_GIVEN,
    heads: attention_maps.Heads = (),
    voices_BRC: np.ndarray | None = None,
    conditioning: str = conditions_lib.RENOISE,
  ) -> attention_maps.Maps:
    """What the towers attend to of each other, in a clip that is there.

    Args:
      latents: clean video_BTHWC and audio_BTC, B = 1.
      noise: video_THWC and audio_TC, standard normal.
      positive: text_SE of the prompt.
      given: latents, B = 1, that the clip was made from.
      heads: see `attention_maps.measure`.
      voices_BRC: audio latents of the reference voice, B = 1.
      conditioning: how they were shown, of `conditions.MODES`.
    """
    with self.components.computing():
      both = AV(positive, positive)
      limit = self.components.text_length
      doubled = text_pairs([positive], both, limit, self.model.backend)
      return attention_maps.measure(
        self.model,
        self.params,
        latents,
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float32)[None], noise),
        jax.tree.map(lambda a: jnp.asarray(a[:1]), doubled),
        clean_BT=jax.tree.map(jnp.asarray, denoise.clean_masks(given)),
        heads=heads,
        references=shown_reference(voices_BRC, conditioning),
      )


def shown_reference(
  voices_BRC: np.ndarray | None, conditioning: str, passes: int = 1
) -> AV[Any]:
  """Reference voices as the model is shown them; nothing of no voice.

  Args:
    voices_BRC: audio latents of each clip's reference.
    conditioning: of `conditions.MODES`.
    passes: 1 without guidance; else see `denoise.with_passes`.
  """
  if voices_BRC is None:
    return denoise.NONE_GIVEN
  return AV(
    audio=denoise.with_passes(
      jnp.asarray(voices_BRC, jnp.float32),
      conditioning == conditions_lib.CLEAN,
      passes,
    )
  )


def text_pairs(
  positives: Sequence[np.ndarray],
  negative: AV[np.ndarray],
  limit: int,
  backend: str,
  passes: int = guidance.PASSES,
) -> AV[np.ndarray]:
  """Embeddings [passes B, S, E] of a batch, zero after each prompt's end.

  S is one of few lengths, since each compiles a program of its own: the first
  of 64, 128, 256, ..., less the row that stands for the rest, that holds the
  longest prompt.

  Args:
    positives: text_SE of each clip's prompt.
    negative: text_SE of each tower's negative prompt, for all clips.
    limit: the largest S.
    backend: of the attention; S is `limit` for one that gains nothing by less.
    passes: see `guidance.duplicate_for_cfg`.

  Raises:
    ValueError: an embedding is longer than `limit`.
  """
  longest = max(map(len, (*positives, *negative.present().values())))
  if longest > limit:
    raise ValueError(f"{longest} text embeddings; the towers read {limit}")
  rows = TEXT_ROWS
  while rows <= longest:
    rows *= 2
  rows = min(rows - 1, limit)
  if not attention.BACKENDS[backend].weights_pad_key:
    rows = limit

  def padded(text_SE: np.ndarray) -> np.ndarray:
    return np.pad(text_SE, ((0, rows - len(text_SE)), (0, 0)))

  prompts = [padded(text) for text in positives]
  without = prompts * (passes - guidance.PASSES)
  return negative.map(
    lambda _, text: np.stack(
      [*prompts, *[padded(text)] * len(prompts), *without]
    )
  )


@functools.partial(jax.jit, static_argnames="model")
def step_constants(
  model: fusion.FusionDiT,
  params: Any,
  latents: AV[Any],
  text: AV[jax.Array],
  references: AV[Any] = denoise.NONE_GIVEN,
) -> fusion.StepConstants:
  """What all steps of a prompt share, see `fusion.FusionDiT.step_constants`."""
  made: Any = model.apply(
    {"params": params}, latents, text, references, method="step_constants"
  )
  return made
