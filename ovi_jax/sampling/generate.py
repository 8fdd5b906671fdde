"""A run of `sample.py`: from checked requests to mp4 files.

The order is the point: whatever can be wrong with the input is found before
weights are loaded, and a finished clip is never touched again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax.modality import AV
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import clips as clips_lib
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import first_frames
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import tracking
from ovi_jax.sharding import distributed

_log = logging.getLogger(__name__)


def run(
  *,
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  weights: str | os.PathLike[str],
  out: str | os.PathLike[str],
  noise: str | os.PathLike[str] = "",
  save_latents: bool = False,
  maps: bool = False,
  overwrite: bool = False,
  lora: str = "",
  generate: str = denoisers.BOTH,
  first_frame: first_frames.Endpoint | None = None,
) -> list[storage.AnyPath]:
  """Make a clip for every request.

  Args:
    requests: prompts and images.
    settings: of the run.
    weights: directory of converted weights; may be in an object store.
    out: directory for the results; likewise.
    noise: .npz with video_THWC and audio_TC to start from, for every clip;
      empty for that of the seeds.
    save_latents: keep the final latents beside each clip.
    maps: draw beside each clip what its sound attends to.
    overwrite: make clips again that are there already. Without, a clip that
      another run writes meanwhile is never replaced: the same one is reused,
      beside another one this run's gets a name of its own.
    lora: files and strengths, see `lora.apply.parse`.
    generate: video with sound, or one alone: a key of `denoiser.NEEDS`.
    first_frame: where the first frames of requests without one come from; they
      are kept in the folder `first_frames` of `out` and beside the clips.

  Returns:
    The mp4 (or wav) files, those made earlier included.

  Raises:
    ValueError: something about the input, the weights or the noise is wrong;
      raised before weights are loaded.
    OSError: the results cannot be written.
  """
  cli.setup_jax()
  weights, out = storage.locate(weights), storage.locate(out)
  if settings.shard_clips_over_hosts:
    distributed.initialize()
  heads = attention_maps.parse(settings.attention_heads)
  with (
    distributed.collective_errors()
    if settings.shard_clips_over_hosts
    else contextlib.nullcontext()
  ):
    if maps and generate != denoisers.BOTH:
      raise ValueError(
        "attention_maps needs both towers; leave it out, or set generate=both"
      )
    components = opening.open_components(weights, settings, lora, generate)
    if first_frame is not None:
      requests, settings = _with_first_frames(
        requests, settings, components, first_frame, out
      )
    if heads:
      audio = components.arch.fusion.audio
      attention_maps.named(heads, (audio.num_layers, audio.num_heads))
    jobs, given = planning.plan(requests, settings, components, out, noise)
    if maps and any(job.windows for job in jobs):
      raise ValueError(
        "attention_maps cannot be used with a clip of several windows; leave it"
        " out, or give fewer seconds"
      )
  index, count = distributed.process_info()
  if settings.shard_clips_over_hosts:
    flags = {"save_latents": save_latents, "maps": maps, "overwrite": overwrite}
    distributed.assert_equal_across_hosts(
      _shared(settings, flags, components, jobs)
    )
  elif count > 1:
    _log.info(
      "process %d of %d makes its share of %d clips, plan %s; the others must"
      " name the same plan",
      *(index, count, len(jobs)),
      _digest(_shared(settings, {}, components, jobs)),
    )
  # By place among all, not among what is missing: others may be at work.
  mine = jobs if settings.shard_clips_over_hosts else jobs[index::count]
  pending = []
  seen: dict[storage.AnyPath, outputs.Seen] = {}
  for job in mine:
    beside = [outputs.latents_of(job.path)] if save_latents else []
    beside += attention_maps.files_of(job.path, heads) if maps else ()
    if not overwrite:
      seen[job.path] = outputs.Seen.at(job.path)
    if not overwrite and outputs.is_complete(job.path, job.recipe, beside):
      _log.info("already made: %s", job.path)
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
    shown = heads if maps else None
    written = _make(
      pending, settings, components, given, save_latents, shown, seen
    )
    return [written.get(job.path, job.path) for job in jobs]
  return [job.path for job in jobs]


def _with_first_frames(
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  components: denoisers.SamplingComponents,
  endpoint: first_frames.Endpoint,
  out: storage.AnyPath,
) -> tuple[Sequence[requests_lib.Request], settings_lib.Settings]:
  """Requests with first frames, one for each sample."""
  if settings.shard_clips_over_hosts or distributed.process_info()[1] > 1:
    raise ValueError(
      "first_frame_endpoint needs a run of one process; generate the pictures"
      " with one and pass them as image_path"
    )
  first_frames.check(requests, settings.mode, components.generates)
  outputs.check_directory(out)
  found = first_frames.fetch(
    requests,
    endpoint,
    out / first_frames.FOLDER,
    seed=settings.seed,
    samples_per_prompt=settings.samples_per_prompt,
    size=opening.clip_size(settings, components.manifest),
    area=components.geometry.area,
  )
  return found, dataclasses.replace(settings, samples_per_prompt=1)


def _shared(
  settings: settings_lib.Settings,
  flags: Mapping[str, bool],
  components: denoisers.SamplingComponents,
  jobs: Sequence[planning.Job],
) -> dict[str, Any]:
  """What all processes of a run must have alike."""
  clips = {}
  for job in jobs:
    recipe = job.recipe
    image = recipe["image"] and recipe["image"]["sha256"]  # lies anywhere
    wanted = {name: recipe[name] for name in ("text", "noise_sha256")}
    given = outputs.without_paths(recipe.get("given", {}))
    clips[job.path.name] = wanted | {"image_sha256": image, "given": given}
  return {
    "config": dataclasses.asdict(settings),
    "flags": dict(flags),
    "dtype": components.dtype.name,
    "attention": components.backend,
    "weights": dict(components.manifest.digests),
    "generate": components.generates,
    "loras": [[each.sha256, *each.strength] for each in components.loras],
    "clips": list(clips),
    "clip": clips,
  }


def _digest(values: Mapping[str, Any]) -> str:
  said = json.dumps(values, sort_keys=True).encode()
  return hashlib.sha256(said).hexdigest()[:8]


def _make(
  jobs: Sequence[planning.Job],
  settings: settings_lib.Settings,
  components: denoisers.SamplingComponents,
  noise: AV[np.ndarray] | None,
  save_latents: bool,
  heads: attention_maps.Heads | None,
  seen: Mapping[storage.AnyPath, outputs.Seen],
) -> dict[storage.AnyPath, storage.AnyPath]:
  """Make the clips and write them; returns where they are, by their names."""
  written: dict[storage.AnyPath, storage.AnyPath] = {}
  writes = not settings.shard_clips_over_hosts or jax.process_index() == 0

  def write(made: clips_lib.Made) -> None:
    if not writes:
      # Windows are denoised on the devices of all processes.
      for _ in made.stream()[0] if made.long is not None else ():
        pass
      return
    request, planned = made.job.request, made.job.path
    fetched = request.image if request.first_frame is not None else None
    path = made.write(
      planned,
      save_latents=save_latents,
      seen=seen.get(planned),
      picture=fetched,
    )
    written[planned] = path
    if made.maps is not None:  # later than the clip, see `studio.maps`
      clip, maps = made.clip, made.maps
      attention_maps.write(path, clip.video, clip.audio, maps, heads or ())
    _log.info("wrote %s", path)

  pipeline = pipelines.Pipeline(components, keep_loaded=False)
  track = functools.partial(tracking.bar, count=len(jobs), hidden=not writes)
  pipeline.generate(jobs, settings, write, noise, heads=heads, track=track)
  return written
