"""Requests to planned clips: everything is checked before weights are
loaded."""

import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

import ovi_jax
from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tokenizer as tokenizers
from ovi_jax import untrusted
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.lora import apply as lora_lib
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights as weights_lib
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sharding import mesh as meshes

_log = logging.getLogger(__name__)
MAX_CLIPS = 100_000  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One clip to make, with everything that decides what it will be."""

  request: requests_lib.Request
  text: str  # the prompt as the encoder reads it
  clip: geometry.Clip
  recipe: dict[str, Any]  # written beside the clip; equal recipe, equal clip
  path: storage.AnyPath
  conditioning: str = conditions.RENOISE  # of `conditions.MODES`

  @property
  def given(self) -> AV[np.ndarray]:
    """The latents in time that are given, see `conditions.masks`."""
    return self.request.masks(self.clip)


def resolve_settings(
  config: ml_collections.ConfigDict, weights: str | os.PathLike[str]
) -> settings_lib.Settings:
  """The settings of a config and, where it leaves them open, of the weights.

  Raises:
    ValueError: there are no weights, or the settings make no sense.
  """
  variant: Any = config.get("variant", "")
  manifest = weights_dir.manifest_of(weights, variant)
  advised = settings_lib.recommended_of(manifest)
  return settings_lib.Settings.from_config(config, advised)


def open_components(
  weights: storage.AnyPath, settings: settings_lib.Settings, lora: str = ""
) -> denoisers.SamplingComponents:
  """Check weights, devices, dtype and attention; load LoRAs, but no weights.

  Args:
    weights: their directory.
    settings: of the run.
    lora: files and strengths, see `lora.apply.parse`.

  Raises:
    ValueError: the weights cannot make a video with sound, the mesh cannot be,
      or a LoRA does not fit.
  """
  manifest = weights_dir.read(weights, settings.variant, denoisers.NEEDS)
  towers = manifest.architecture.fusion.present()
  if len(towers) != 2:
    raise ValueError(
      f"weights in {weights} have only the tower {', '.join(towers)}; a video"
      " with sound needs both"
    )
  shared = settings.shard_clips_over_hosts
  devices = jax.devices() if shared else jax.local_devices()
  opened = components_of(weights, manifest, settings, devices, cli.platform())
  return with_loras(opened, lora)


def with_loras(
  components: denoisers.SamplingComponents, lora: str
) -> denoisers.SamplingComponents:
  """The components with other LoRAs.

  Args:
    components: of the weights.
    lora: files and strengths, see `lora.apply.parse`; empty for none.

  Raises:
    ValueError: a file is missing or damaged, or does not fit the weights.
  """
  loras = lora_lib.load(lora, components.arch.fusion, components.manifest)
  if loras:
    file = weights_dir.component_file(components.weights, "fusion")
    lora_lib.check_dtypes(loras, weights_lib.shapes(file))
  return dataclasses.replace(components, loras=loras)


def components_of(
  weights: storage.AnyPath,
  manifest: weights_dir.Manifest,
  settings: settings_lib.Settings,
  devices: Sequence[Any],
  platform: str,
) -> denoisers.SamplingComponents:
  """What a run on some devices, which need not be at hand, is made of.

  Args:
    weights: their directory.
    manifest: of the weights.
    settings: of the run.
    devices: to compute on.
    platform: theirs, see `cli.platform`.

  Raises:
    ValueError: the mesh or the attention cannot be.
  """
  tower = next(iter(manifest.architecture.fusion.present().values()))
  dtype = config_lib.resolve_dtype(settings.dtype, platform)
  return denoisers.SamplingComponents(
    weights=weights,
    manifest=manifest,
    mesh=make_mesh(settings, devices, tower.num_heads),
    context_parallelism=settings.context_parallelism,
    dtype=dtype,
    backend=attention.resolve(
      settings.attention, platform, dtype, tower.head_size
    ),
  )


def clip_size(
  settings: settings_lib.Settings, manifest: weights_dir.Manifest
) -> tuple[int, int]:
  """Height and width of clips without an image; only the ratio counts."""
  clip, size = manifest.architecture.clip, (settings.height, settings.width)
  if clip is not None and size == geometry.DEFAULT_SIZE:
    return clip.pixels
  return size


def make_mesh(
  settings: settings_lib.Settings, devices: Sequence[Any], heads: int
) -> jax.sharding.Mesh:
  """The mesh that the settings ask for, or one that suits the devices.

  Raises:
    ValueError: it does not multiply to the devices, or cannot divide heads.
  """
  if not any(settings.mesh.values()):
    return meshes.for_sampling(devices, heads)
  sizes = meshes.resolve_sizes(settings.mesh, len(devices))
  mesh = meshes.make(devices, **sizes)
  context.check(mesh.shape, heads, settings.context_parallelism)
  return mesh


def plan(
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  components: denoisers.SamplingComponents,
  out: storage.AnyPath,
  noise: str | os.PathLike[str],
) -> tuple[list[Job], AV[np.ndarray] | None]:
  """Resolve prompts, sizes and names of all clips; reads files, no weights.

  Args:
    requests: see `run`.
    settings: see `run`.
    components: of the weights.
    out: see `run`.
    noise: see `run`.

  Returns:
    The clips, and the noise that all of them begin as, if it is given.

  Raises:
    ValueError: something about the input is wrong.
  """
  count = len(requests) * settings.samples_per_prompt
  if count > MAX_CLIPS:
    raise ValueError(
      f"{len(requests)} prompts, each {settings.samples_per_prompt} times,"
      f" are {count} clips; a run makes at most {MAX_CLIPS}, so share them out"
    )
  variant = components.manifest.geometry
  height, width = clip_size(settings, components.manifest)
  expanded = requests_lib.expand(
    requests,
    settings.samples_per_prompt,
    settings.seed,
    height=height,
    width=width,
    area=variant.area,
  )
  depth = components.arch.fusion.video.num_layers
  if settings.slg_layer >= depth:
    _log.info("note: there is no block %d, none is skipped", settings.slg_layer)
  clips = _clips(expanded, variant)
  given = _noise(noise, clips, components.channels) if noise else None
  tokenizer = components.tokenizer()
  again = count - len(expanded)
  if again:
    _log.info(
      "note: %d clips are asked for twice (the same prompt, image and seed) and"
      " are made once",
      again,
    )
  jobs = []
  noted: set[str] = set()
  for request, clip in zip(expanded, clips):
    text, notes = read_prompt(
      request.prompt, variant, tokenizer, components.text_length
    )
    notes += _length_notes(request, clip, variant)
    notes += _sound_notes(request, clip) + request.notes
    height, width = request.size
    if not 0.75 < height * width / variant.area < 1.25:
      notes += (
        f"{height}x{width} is far from the {variant.area} pixels these weights"
        " know; a less extreme aspect gives better results",
      )
    elif geometry.elongation(height, width) > geometry.USUAL_ASPECT:
      notes += (
        f"the clip is {height}x{width}, more extreme than the"
        f" {geometry.USUAL_ASPECT:g} to 1 of training; crop it for better"
        " results",
      )
    for note in notes:
      line = f"note: row {request.index}: {note}"
      if line not in noted:
        _log.info("%s", line)
      noted.add(line)
    recipe = _metadata(request, clip, text, settings, components, given)
    jobs.append(
      Job(
        request=request,
        text=text,
        clip=clip,
        recipe=recipe,
        path=out / f"{request.stem}.mp4",
        conditioning=settings.conditioning,
      )
    )
  return jobs, given


def read_prompt(
  prompt: str,
  variant: geometry.Variant,
  tokenizer: tokenizers.Tokenizer,
  length: int,
) -> tuple[str, tuple[str, ...]]:
  """The prompt as the text encoder reads it, and what was changed or left out.

  Args:
    prompt: as the user wrote it.
    variant: of the weights.
    tokenizer: of the weights.
    length: tokens that the text encoder reads.

  Returns:
    The text, and notes to show the user.
  """
  text, notes = prompts.format_for(prompt, variant)
  notes += tokenizer.notes([text], length)
  if unread := tokenizer.unread(text):
    notes += (
      "these words are not in the vocabulary and are left out:"
      f" {', '.join(unread)}",
    )
  return text, notes


def _clips(
  requests: Sequence[requests_lib.Request], variant: geometry.Variant
) -> list[geometry.Clip]:
  """Sizes of all clips; ValueError lists what cannot be made of their files."""
  clips, problems = [], []
  for request in requests:
    frames = None
    try:
      if request.seconds is not None:
        frames = conditions.latent_frames(
          request.seconds, variant.latent_frames
        )
      clip = variant.clip(*request.size, frames)
      conditions.check_masks(
        request.given, request.masks(clip), request.sound_seconds, clip
      )
      clips.append(clip)
    except ValueError as error:
      problems.append(f"row {request.index}: {error}")
  if problems:
    listed = "\n  ".join(untrusted.shortened(list(dict.fromkeys(problems))))
    raise ValueError(f"unfit files:\n  {listed}")
  return clips


def _length_notes(
  request: requests_lib.Request, clip: geometry.Clip, variant: geometry.Variant
) -> tuple[str, ...]:
  """What a clip has more or less of than the files it is made from."""
  if request.seconds is None:
    return ()
  seconds = clip.frames / geometry.FPS
  files = " and ".join(request.given.files)
  if clip.latent_frames == variant.latent_frames:
    if request.seconds > seconds + 1 / geometry.FPS:
      return (f"the first {seconds:.2f} of {request.seconds:.2f} s are used",)
    if request.seconds < seconds - 1 / geometry.FPS:
      return (
        f"{files}: {request.seconds:.2f} of {seconds:.2f} s, the last frame is"
        " repeated and silence appended",
      )
    return ()
  return (
    f"the clip lasts {seconds:.2f} s, as much of {files} as whole latents hold",
  )


def _sound_notes(
  request: requests_lib.Request, clip: geometry.Clip
) -> tuple[str, ...]:
  """What is generated because the given video's sound ends too early."""
  if not 0 < request.sound_seconds < math.inf:
    return ()
  whole = dataclasses.replace(request, sound_seconds=math.inf)
  wanted, found = (
    0 if mask_T is None else mask_T.sum()
    for mask_T in (whole.masks(clip).audio, request.masks(clip).audio)
  )
  if found == wanted:
    return ()
  return (
    f"video: its sound ends at {request.sound_seconds:.2f} s, the sound after"
    " it is generated",
  )


def batches(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
  """Group clips that one program can denoise together.

  Args:
    jobs: see `plan`.
    batch_size: clips of a batch, at most.

  Returns:
    Clips of the same latent sizes, of which the same kinds of latents are
    given, in their order; a batch stands where its first clip does.
  """
  made: list[list[Job]] = []
  latest: dict[Any, list[Job]] = {}
  for job in jobs:
    parts = conditions.split(job.given, job.conditioning)
    key = job.clip, jax.tree.structure(parts)
    if key not in latest or len(latest[key]) == batch_size:
      latest[key] = []
      made.append(latest[key])
    latest[key].append(job)
  return made


def _noise(
  path: str | os.PathLike[str],
  clips: Sequence[geometry.Clip],
  channels: AV[int],
) -> AV[np.ndarray]:
  """The noise in a file, which every clip begins as."""
  wanted = list(dict.fromkeys(noises.shapes(clip, channels) for clip in clips))
  if len(wanted) > 1:
    sizes = ", ".join(
      dict.fromkeys("x".join(map(str, c.pixels)) for c in clips)
    )
    raise ValueError(
      f"noise: one file serves clips of one size; these have {sizes}"
    )
  return noises.read(storage.locate(path), wanted[0])


def _metadata(
  request: requests_lib.Request,
  clip: geometry.Clip,
  text: str,
  settings: settings_lib.Settings,
  components: denoisers.SamplingComponents,
  noise: AV[np.ndarray] | None,
) -> dict[str, Any]:
  """Everything needed to make the clip again."""
  image = None
  if request.image is not None:
    content = weights_dir.digest_of(request.image)
    image = {"path": str(request.image), "sha256": content}
  # A clip from a prompt, or a prompt and a first frame, has no such entry.
  given = request.given.metadata(weights_dir.digest_of)
  if given:
    given["latent_frames"] = clip.latent_frames
    given["conditioning"] = settings.conditioning
  manifest = components.manifest
  config = settings.metadata() | {"seed": request.seed}
  config.pop("samples_per_prompt")
  return {
    "prompt": request.prompt,
    "text": text,
    "image": image,
    **({"given": given} if given else {}),
    "seed": request.seed,
    "height": request.size[0],
    "width": request.size[1],
    "noise_sha256": None if noise is None else noises.digest(noise),
    "config": config,
    "dtype": components.dtype.name,
    "weights": {
      "variant": manifest.variant or weights_dir.CUSTOM,
      "sha256": dict(manifest.digests),
    },
    "ovi_jax": ovi_jax.__version__,
    "loras": [lora.metadata() for lora in components.loras],
  }
