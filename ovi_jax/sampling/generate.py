"""A run of `sample.py`: from checked requests to mp4 files.

The order is the point: whatever can be wrong with the input is found before
weights are loaded, and a finished clip is never touched again.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

import ovi_jax
from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import console
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.modality import AV
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sharding import distributed
from ovi_jax.sharding import mesh as meshes

Log = Callable[[str], None]
MAX_CLIPS = 100_000  # of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One clip to make, with everything that decides what it will be."""

  request: requests_lib.Request
  text: str  # the prompt as the encoder reads it
  clip: geometry.Clip
  recipe: dict[str, Any]  # written beside the clip; equal recipe, equal clip
  path: pathlib.Path


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


def run(
  *,
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  weights: pathlib.Path,
  out: pathlib.Path,
  noise: str | os.PathLike[str] = "",
  save_latents: bool = False,
  maps: bool = False,
  overwrite: bool = False,
  log: Log = console.log,
) -> list[pathlib.Path]:
  """Make a clip for every request.

  Args:
    requests: prompts and images.
    settings: of the run.
    weights: directory of converted weights.
    out: directory for the results.
    noise: .npz with video_THWC and audio_TC to start from, for every clip;
      empty for that of the seeds.
    save_latents: keep the final latents beside each clip.
    maps: draw beside each clip what its sound attends to.
    overwrite: make clips again that are there already.
    log: called with each line for the user.

  Returns:
    The mp4 files, those made earlier included.

  Raises:
    ValueError: something about the input, the weights or the noise is wrong;
      raised before weights are loaded.
    OSError: the results cannot be written.
  """
  cli.setup_jax()
  if settings.shard_clips_over_hosts:
    distributed.initialize()
  heads = attention_maps.parse(settings.attention_heads)
  with (
    distributed.collective_errors()
    if settings.shard_clips_over_hosts
    else contextlib.nullcontext()
  ):
    pipeline = _pipeline(weights, settings)
    if heads:
      audio = pipeline.arch.fusion.audio
      attention_maps.named(heads, (audio.num_layers, audio.num_heads))
    jobs, given = plan(requests, settings, pipeline, out, noise, log)
  index, count = distributed.process_info()
  if settings.shard_clips_over_hosts:
    flags = {"save_latents": save_latents, "maps": maps, "overwrite": overwrite}
    distributed.assert_equal_across_hosts(
      _shared(settings, flags, pipeline, jobs)
    )
    log = log if index == 0 else _silently
  elif count > 1:
    log(
      f"process {index} of {count} makes its share of {len(jobs)} clips, plan"
      f" {_digest(_shared(settings, {}, pipeline, jobs))}; the others must name"
      " the same plan"
    )
  # By place among all, not among what is missing: others may be at work.
  mine = jobs if settings.shard_clips_over_hosts else jobs[index::count]
  pending = []
  for job in mine:
    beside = [outputs.latents_of(job.path)] if save_latents else []
    beside += attention_maps.files_of(job.path, heads) if maps else ()
    if not overwrite and outputs.is_complete(job.path, job.recipe, beside):
      log(f"already made: {job.path}")
    else:
      pending.append(job)
  if settings.shard_clips_over_hosts:
    asked = distributed.gather([job.path.name for job in pending])[0]
    pending = [job for job in jobs if job.path.name in asked]
  if pending:
    outputs.check_directory(out)
    if overwrite and (index == 0 or not settings.shard_clips_over_hosts):
      for job in pending:  # what lies beside is of the clips that were there
        outputs.latents_of(job.path).unlink(missing_ok=True)
        attention_maps.remove_stale(job.path)
    drawn = heads if maps else None
    _make(pending, settings, pipeline, given, save_latents, drawn, log)
  return [job.path for job in jobs]


def _pipeline(
  weights: pathlib.Path, settings: settings_lib.Settings
) -> pipelines.Pipeline:
  """Settle weights, devices, dtype and attention.

  Raises:
    ValueError: the weights cannot make a video with sound, or the mesh cannot
      be.
  """
  manifest = weights_dir.read(weights, settings.variant, pipelines.NEEDS)
  towers = manifest.architecture.fusion.present()
  if len(towers) != 2:
    raise ValueError(
      f"weights in {weights} have only the tower {', '.join(towers)}; a video"
      " with sound needs both"
    )
  platform = cli.platform()
  dtype = config_lib.resolve_dtype(settings.dtype, platform)
  tower = next(iter(towers.values()))
  return pipelines.Pipeline(
    weights=weights,
    manifest=manifest,
    mesh=make_mesh(settings, _devices(settings), tower.num_heads),
    context_parallelism=settings.context_parallelism,
    dtype=dtype,
    backend=attention.resolve(
      settings.attention, platform, dtype, tower.head_size
    ),
  )


def _devices(settings: settings_lib.Settings) -> list[Any]:
  return (
    jax.devices() if settings.shard_clips_over_hosts else jax.local_devices()
  )


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
  pipeline: pipelines.Pipeline,
  out: pathlib.Path,
  noise: str | os.PathLike[str],
  log: Log,
) -> tuple[list[Job], AV[np.ndarray] | None]:
  """Settle prompts, sizes and names of all clips; reads images, no weights.

  Args:
    requests: see `run`.
    settings: see `run`.
    pipeline: of the weights.
    out: see `run`.
    noise: see `run`.
    log: see `run`.

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
  variant = pipeline.manifest.geometry
  wanted = settings.height, settings.width
  arch = pipeline.arch
  if arch.clip is not None and wanted == geometry.DEFAULT_SIZE:
    wanted = arch.clip.pixels
  expanded = requests_lib.expand(
    requests,
    settings.samples_per_prompt,
    settings.seed,
    height=wanted[0],
    width=wanted[1],
    area=variant.area,
  )
  depth = arch.fusion.video.num_layers
  if settings.slg_layer >= depth:
    log(f"note: there is no block {settings.slg_layer}, none is skipped")
  clips = [variant.clip(*request.size) for request in expanded]
  given = _noise(noise, clips, pipeline.channels) if noise else None
  tokenizer = pipeline.tokenizer()
  again = len(requests) * settings.samples_per_prompt - len(expanded)
  if again:
    log(
      f"note: {again} clips are asked for twice (the same prompt, image and"
      " seed) and are made once"
    )
  jobs = []
  noted: set[str] = set()
  for request, clip in zip(expanded, clips):
    text, notes = prompts.format_for(request.prompt, variant)
    notes += tokenizer.notes([text], pipeline.text_length) + request.notes
    if unread := tokenizer.unread(text):
      notes += (
        "these words are not in the vocabulary and are left out:"
        f" {', '.join(unread)}",
      )
    height, width = request.size
    if not 0.75 < height * width / variant.area < 1.25:
      notes += (
        f"{height}x{width} is far from the {variant.area} pixels these weights"
        " know; a less extreme aspect would do better",
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
        log(line)
      noted.add(line)
    recipe = _metadata(request, text, settings, pipeline, given)
    path = out / f"{request.stem}.mp4"
    jobs.append(
      Job(request=request, text=text, clip=clip, recipe=recipe, path=path)
    )
  return jobs, given


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
  return noises.read(pathlib.Path(path), wanted[0])


def _metadata(
  request: requests_lib.Request,
  text: str,
  settings: settings_lib.Settings,
  pipeline: pipelines.Pipeline,
  noise: AV[np.ndarray] | None,
) -> dict[str, Any]:
  """Everything needed to make the clip again."""
  image = None
  if request.image is not None:
    content = weights_dir.digest_of(request.image)
    image = {"path": str(request.image), "sha256": content}
  manifest = pipeline.manifest
  config = settings.metadata() | {"seed": request.seed}
  config.pop("samples_per_prompt")
  return {
    "prompt": request.prompt,
    "text": text,
    "image": image,
    "seed": request.seed,
    "height": request.size[0],
    "width": request.size[1],
    "noise_sha256": None if noise is None else noises.digest(noise),
    "config": config,
    "dtype": pipeline.dtype.name,
    "weights": {
      "variant": manifest.variant or weights_dir.CUSTOM,
      "sha256": dict(manifest.digests),
    },
    "ovi_jax": ovi_jax.__version__,
  }


def _shared(
  settings: settings_lib.Settings,
  flags: Mapping[str, bool],
  pipeline: pipelines.Pipeline,
  jobs: Sequence[Job],
) -> dict[str, Any]:
  """What all processes of a run must have alike."""
  clips = {}
  for job in jobs:
    recipe = job.recipe
    image = recipe["image"] and recipe["image"]["sha256"]  # lies anywhere
    wanted = {name: recipe[name] for name in ("text", "noise_sha256")}
    clips[job.path.name] = wanted | {"image_sha256": image}
  return {
    "config": dataclasses.asdict(settings),
    "flags": dict(flags),
    "dtype": pipeline.dtype.name,
    "attention": pipeline.backend,
    "weights": dict(pipeline.manifest.digests),
    "clips": list(clips),
    "clip": clips,
  }


def _digest(values: Mapping[str, Any]) -> str:
  said = json.dumps(values, sort_keys=True).encode()
  return hashlib.sha256(said).hexdigest()[:8]


def _silently(_: str) -> None:
  """Where another process speaks."""


def _make(
  jobs: Sequence[Job],
  settings: settings_lib.Settings,
  pipeline: pipelines.Pipeline,
  noise: AV[np.ndarray] | None,
  save_latents: bool,
  maps: attention_maps.Heads | None,
  log: Log,
) -> None:
  """Load the weights, stage after stage, and make the clips."""
  log(f"encoding {len({job.text for job in jobs})} prompts")
  negative = settings.negative_prompt
  embedded = pipeline.embed([*(job.text for job in jobs), *negative])
  images = [job.request.image for job in jobs if job.request.image is not None]
  first = pipeline.encode_images(images, pipeline.manifest.geometry.area)
  log(f"loading the denoiser on {pipeline.mesh.size} device(s)")
  denoiser, decoder = pipeline.denoiser(), decoders.Decoder.load(pipeline)
  channels = pipeline.channels
  writes = not settings.shard_clips_over_hosts or jax.process_index() == 0
  for number, job in enumerate(jobs, 1):
    start = noise
    if start is None:
      seed = job.request.seed
      assert seed is not None, "expand gives each a seed"
      start = noises.sample_noise(seed, job.clip, channels)
    title = f"[{number}/{len(jobs)}] {job.path.stem}"
    image = None if job.request.image is None else first[job.request.image]
    with console.progress(
      total=settings.num_steps, desc=title, unit="step", disable=not writes
    ) as bar:
      latents = denoiser.sample(
        start,
        embedded[job.text],
        AV(*(embedded[n] for n in negative)),
        settings,
        image,
        lambda _, bar=bar: bar.update(),
      )
    recipe = job.recipe | {
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
    }
    kept = jax.tree.map(lambda a: np.asarray(a[0]), latents)
    frames, wave = decoder.frames(latents.video), decoder.wave(latents.audio)
    if maps is not None:
      frames = [np.concatenate(list(frames))]
      found = denoiser.maps(latents, start, embedded[job.text], image, maps)
      if writes:
        attention_maps.write(job.path, frames[0], wave, found, maps)
    if not writes:
      collections.deque(frames, maxlen=0)  # every process decodes
      continue
    outputs.write(
      job.path,
      recipe,
      iter(frames),
      wave,
      kept if save_latents else None,
    )
    log(f"wrote {job.path}")
