"""Sampling compiled ahead of time: `sample.py --aot=v6e:2x4`.

The programs are those that a run would compile; parameters and inputs are
shapes. Without weights of the variant, released sizes are used, with kernels of
8 bits if that is asked for.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from ovi_jax import flag_profiles
from ovi_jax import flops
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax.aot import report
from ovi_jax.aot import topology
from ovi_jax.lora import apply as lora_lib
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import fusion
from ovi_jax.models import quantized
from ovi_jax.models import umt5
from ovi_jax.models.video_vae import codec
from ovi_jax.pretrained import weights as weights_lib
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions as conditions_lib
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import guidance
from ovi_jax.sampling import lengths
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import solvers
from ovi_jax.sampling import windows
from ovi_jax.sharding import logical_axes
from ovi_jax.sharding import sharding_rules

NONE_GIVEN = conditions_lib.Conditions()
_RULES = {"fusion": sharding_rules.FUSION, "umt5": sharding_rules.UMT5}
ALL_GENERATED: AV[Any] = AV()


def run(
  name: str,
  config: ml_collections.ConfigDict,
  weights: storage.AnyPath,
  out: storage.AnyPath,
  flags_profile: str = flag_profiles.NONE,
  given: conditions_lib.Conditions = NONE_GIVEN,
  image: bool = False,
  seconds: float | None = None,
  lora: str = "",
  quantize: str = "",
) -> bool:
  """Compile the text encoder, a denoising step and a decoding step.

  Logs and writes their reports.

  Args:
    name: of the topology.
    config: of `configs/sample.py`.
    weights: directory of weights, of which only shapes and dtypes are read.
    out: directory for the report.
    flags_profile: compiler flags that were applied, see `flag_profiles`.
    given: files that clips are given, which are not read.
    image: whether clips are given a first frame.
    seconds: length of clips; `None` for that of the weights. Of a clip in
      windows, the program of the later windows is compiled.
    lora: files and strengths, see `lora.apply.parse`.
    quantize: a key of `quantized.DTYPES`: assume 8-bit kernels, if there are no
      local weights; empty for none.

  Returns:
    Whether all programs fit.

  Raises:
    ValueError: the topology, the settings, the weights or the LoRAs are
      invalid.
  """
  outputs.check_directory(out)
  devices, job = topology.devices(name), flag_profiles.SAMPLE
  flag_profiles.check_device(flags_profile, job, devices[0].device_kind)
  flags = flag_profiles.flags_of(flags_profile, job)
  asked: Any = config.variant
  manifest = manifest_of(asked, weights)
  advised = settings_lib.recommended_of(manifest)
  advised |= lora_lib.recommended_of(lora)
  settings = settings_lib.Settings.from_config(config, advised)
  pipeline = opening.components_of(
    weights, manifest, settings, devices, devices[0].platform
  )
  loras = lora_lib.load(lora, manifest.architecture.fusion, manifest)
  pipeline = dataclasses.replace(pipeline, loras=loras)
  if manifest.digests and quantize:
    raise ValueError(
      f"--aot_quantize={quantize} is for reports without local weights, but"
      f" {weights} has weights, whose dtypes are used; remove --aot_quantize"
    )
  # Of a prompt without a picture.
  size = opening.clip_size(settings, manifest)
  variant = manifest.geometry
  given.check(image)
  if given.voice is not None and manifest.architecture.fusion.audio is None:
    raise ValueError("voice: the weights have no audio tower; leave it out")
  frames = variant.latent_frames
  if seconds is not None:
    frames = conditions_lib.nearest_latent_frames(seconds)
  window = lengths.window_latent_frames(settings, variant)
  many = given.extend is not None or frames > window
  clip = variant.clip(
    *geometry.snap(*size, variant.area), window if many else frames
  )
  if many:
    planned = windows.plan(2 * window, clip, settings.window_overlap)
    masks = windows.masks(planned[1], clip)
  else:
    masks = conditions_lib.masks(given, image, conditions_lib.ANY, clip)
    conditions_lib.check_masks(given, masks, conditions_lib.ANY, clip)
  dtype = quantized.DTYPES.get(quantize)
  # Files are not read: a voice is taken for the longest.
  voice = 0 if given.voice is None else conditions_lib.VOICE_LATENTS[-1]
  guided = functools.partial(step, given=masks, voice_latents=voice)
  reports = (
    make(settings, pipeline, clip, flags, quantize=dtype)
    for make in (guided, decoding, encoding)
  )
  what = manifest.variant or weights_dir.CUSTOM
  has_length = seconds is not None or window != variant.latent_frames
  named = "_".join(
    [
      *filter(None, (what, name, "lora" if lora else "", quantize)),
      *_kinds_given(given, image, settings.conditioning),
      *([f"{clip.latent_frames}_latent_frames"] if has_length else []),
      *(["windows", settings.conditioning] if many and not given.files else []),
    ]
  )
  return report.publish(out, named, reports)


def _kinds_given(
  given: conditions_lib.Conditions, image: bool, mode: str
) -> list[str]:
  """What is given, and the mode, for the name of a report.

  Clips with a first frame at most are the same in all modes.
  """
  kinds = [*(["image"] if image else []), *given.files]
  if given.keep:
    kinds.append("keep")
  if given.keep_audio_until is not None:
    kinds.append("keep_audio_until")
  return [*kinds, mode] if given.files else kinds


def _latents_given(masks: AV[Any], mode: str) -> str:
  """How many latents are given and how, for the name of a program."""
  counts = [
    f"{mask_T.sum()} of {len(mask_T)} {name} latents"
    for name, mask_T in masks.present().items()
  ]
  return f", given {' and '.join(counts)} ({mode})" if counts else ""


def manifest_of(variant: str, weights: storage.AnyPath) -> weights_dir.Manifest:
  """What the weights say, or the released sizes of a variant.

  Raises:
    ValueError: no variant of that name, or no weights.
  """
  if not variant:
    return weights_dir.manifest_of(weights)
  geometry.variant(variant)
  if (weights / weights_dir.MANIFEST).is_file():
    found = weights_dir.manifest_of(weights, variant)
    if found.variant == variant:
      return found
  return weights_dir.released(variant)


def step(
  settings: settings_lib.Settings,
  pipeline: denoisers.SamplingComponents,
  clip: geometry.Clip,
  flags: Mapping[str, str],
  given: AV[Any] = ALL_GENERATED,
  quantize: np.dtype | None = None,
  voice_latents: int = 0,
) -> report.Report:
  """A guided step of a whole batch of clips.

  Args:
    settings: of the run.
    pipeline: what it is made of.
    clip: sizes of the clips.
    flags: compiler flags, for the report.
    given: masks_T of the latents in time that are given.
    quantize: dtype of the 8-bit kernels that are assumed without local weights.
    voice_latents: audio latents of the clips' reference voices.
  """
  towers, mesh = pipeline.arch.fusion, pipeline.mesh
  batch = settings.batch_size
  whole = functools.partial(
    sharding_rules.abstract, place=sharding_rules.replicated(mesh)
  )
  method = solvers.named(settings.solver)
  levels = method.schedule(settings.num_steps, settings.flow_shift)
  guided_by_voice = voice_latents and settings.voice_guidance_scale != 1
  passes = guidance.PASSES + bool(guided_by_voice)
  row = method.coefficients(levels.sigmas)[0]
  with pipeline.computing():
    model = pipeline.denoiser_model()
    params = _parameters("fusion", pipeline, quantize)
    grid = clip.latent_frames, clip.latent_height, clip.latent_width
    x = AV(
      whole((batch, *grid, towers.video.channels)),
      whole((batch, clip.audio_latents, towers.audio.channels)),
    )
    rows = passes * batch
    text = whole((rows, pipeline.text_length, towers.video.text_dim))
    repeated = jax.eval_shape(
      functools.partial(guidance.duplicate_for_cfg, passes=passes), x
    )
    references: AV[Any] = AV()
    if voice_latents:
      shown = functools.partial(
        denoisers.shown_reference,
        conditioning=settings.conditioning,
        passes=passes,
      )
      shape = batch, voice_latents, towers.audio.channels
      references = jax.tree.map(
        lambda s: whole(s.shape, dtype=s.dtype),
        jax.eval_shape(shown, jax.ShapeDtypeStruct(shape, jnp.float32)),
      )
    constants: Any = jax.eval_shape(
      functools.partial(denoisers.step_constants, model),
      params,
      repeated,
      AV(text, text),
      references,
    )
    constants = jax.tree.map(
      lambda s: sharding_rules.abstract(
        s.shape, _of_constants(s.shape, mesh), s.dtype
      ),
      constants,
    )
    scale = whole(())
    mask = whole((towers.video.num_layers, rows), dtype=jnp.bool_)
    inputs = denoise.Inputs(
      constants,
      mask,
      AV(scale, scale),
      _given(given, x, settings, mesh),
      references,
      scale if guided_by_voice else None,
    )
    state = jax.tree.map(
      lambda s: whole(s.shape, dtype=s.dtype),
      jax.eval_shape(lambda x: x.map(lambda _, a: method.init(a)), x),
    )
    arguments = params, inputs, x, state, scale, whole(row.shape), scale
    lowered = denoise.step.lower(model, method, *arguments)
  tokens = AV(clip.tokens, clip.audio_latents + voice_latents)
  voice = f", {voice_latents} latents of a voice" if voice_latents else ""
  return report.compile_and_report(
    f"guided step of {'' if batch == 1 else f'{batch} clips of '}"
    f"{clip.pixels[0]}x{clip.pixels[1]},"
    f" {clip.latent_frames} latent frames"
    f"{_latents_given(given, settings.conditioning)}{voice}",
    lowered,
    arguments,
    mesh,
    rows * flops.forward(towers, tokens).total,
    flags,
  )


def _given(
  masks: AV[Any],
  x: AV[Any],
  settings: settings_lib.Settings,
  mesh: jax.sharding.Mesh,
) -> AV[Any]:
  """Given latents as shapes."""
  parts = conditions_lib.split(masks, settings.conditioning)
  whole = sharding_rules.replicated(mesh)

  def one(name: str, pair: tuple[Any, Any]) -> denoise.Given:
    latents = getattr(x, name)
    mask = sharding_rules.abstract(latents.shape[:2], whole, jnp.bool_)
    clean, renoised = (None if m is None else mask for m in pair)
    noise = None if renoised is None else latents
    return denoise.Given(latents, clean, renoised, noise)

  return parts.map(one)


def decoding(
  settings: settings_lib.Settings,
  pipeline: denoisers.SamplingComponents,
  clip: geometry.Clip,
  flags: Mapping[str, str],
  quantize: np.dtype | None = None,
) -> report.Report:
  """The frames of one latent; a clip has as many of them as latent frames."""
  del settings, quantize
  vae, dtype = pipeline.arch.video_vae, pipeline.dtype
  whole = sharding_rules.replicated(pipeline.mesh)
  height, width = clip.pixels
  cache = jax.eval_shape(
    lambda: codec.init_cache(vae, "decoder", 1, height, width, dtype)
  )
  cache = jax.tree.map(
    lambda s, place: sharding_rules.abstract(s.shape, place, s.dtype),
    cache,
    codec.cache_sharding(cache, whole),
  )
  shape = 1, clip.latent_height, clip.latent_width, vae.z_dim
  params = _parameters("video_vae", pipeline)["decoder"]
  arguments = (
    params,
    cache,
    sharding_rules.abstract(shape, whole),
    sharding_rules.abstract((), whole, jnp.bool_),
  )
  with pipeline.computing():
    program = codec.jit_decode_step(vae, dtype, (1, height, width), whole)
    lowered = program.lower(*arguments)
  return report.compile_and_report(
    "decoding of one latent frame",
    lowered,
    arguments,
    pipeline.mesh,
    None,
    flags,
  )


def encoding(
  settings: settings_lib.Settings,
  pipeline: denoisers.SamplingComponents,
  clip: geometry.Clip,
  flags: Mapping[str, str],
  quantize: np.dtype | None = None,
) -> report.Report:
  """The embedding of one prompt; `quantize` as for `step`."""
  del settings, clip
  whole = sharding_rules.replicated(pipeline.mesh)
  shape = 1, pipeline.text_length
  ids_BS = sharding_rules.abstract(shape, whole, jnp.int32)
  arguments = _parameters("umt5", pipeline, quantize), ids_BS, ids_BS
  with pipeline.computing():
    lowered = umt5.embed.lower(
      pipeline.arch.umt5, *arguments, dtype=pipeline.dtype
    )
  return report.compile_and_report(
    "embedding of one prompt", lowered, arguments, pipeline.mesh, None, flags
  )


def _of_constants(
  shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> jax.sharding.NamedSharding:
  """Keys and values lie as the model leaves them; rotary tables are whole."""
  if len(shape) != len(fusion.TEXT_KEYS):
    return sharding_rules.replicated(mesh)
  spec = logical_axes.spec(
    fusion.TEXT_KEYS, shape, mesh.shape, logical_axes.ACTIVATIONS
  )
  return jax.sharding.NamedSharding(mesh, spec)


def _parameters(
  component: str,
  pipeline: denoisers.SamplingComponents,
  quantize: np.dtype | None = None,
) -> Any:
  """A component's parameters as shapes on the mesh, as they are loaded.

  Args:
    component: one of `architecture.COMPONENTS`.
    pipeline: with the mesh, the compute dtype and LoRAs of the denoiser.
    quantize: dtype of the 8-bit kernels that are assumed without local weights.
  """
  config = pipeline.arch.config(component)
  shapes = architecture.parameter_shapes(component, config)
  whole: dict[str, Any] = traverse_util.flatten_dict(shapes, sep="/")
  flat: dict[str, Any] = {
    path: jax.ShapeDtypeStruct(x.shape, pipeline.dtype)
    for path, x in whole.items()
  }
  if component in quantized.COMPONENTS:
    if component in pipeline.manifest.digests:
      file = weights_dir.component_file(pipeline.weights, component)
      quantize = quantized.dtype_of(weights_lib.shapes(file))
    if quantize is not None:
      flat = quantized.with_scales(flat, quantize)
  loras = pipeline.loras if component == "fusion" else ()
  flat |= {
    path: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for path, x in lora_lib.factors(loras, pipeline.arch.fusion).items()
  }
  placed = dict.fromkeys(flat, sharding_rules.replicated(pipeline.mesh))
  if component in _RULES:
    placed = sharding_rules.param_shardings(
      flat, _RULES[component], pipeline.mesh
    )
  made = {
    path: sharding_rules.abstract(x.shape, placed[path], x.dtype)
    for path, x in flat.items()
  }
  return traverse_util.unflatten_dict(made, sep="/")
