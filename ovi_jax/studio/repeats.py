"""Requests of clips that are there: from their jobs, or from their recipes."""

import pathlib
from collections.abc import Mapping
from typing import Any

from ovi_jax import geometry
from ovi_jax.studio import gallery as galleries
from ovi_jax.studio import jobs
from ovi_jax.studio import requests


def made(store: jobs.JobStore, clip: galleries.Clip) -> jobs.Job | None:
  """The job that made a clip; `None` if another program did."""
  job = store.made(clip.name)
  same = job is not None and job.request.prompt == clip.prompt
  return job if same else None


def is_repeatable(store: jobs.JobStore, clip: galleries.Clip) -> bool:
  """Whether a clip can be made again."""
  return _has_all(clip) or made(store, clip) is not None


def request_of(
  store: jobs.JobStore, clip: galleries.Clip
) -> tuple[jobs.ClipRequest, pathlib.Path]:
  """The request that makes a clip, and the folder of its given files.

  Raises:
    ValueError: its given files, or LoRAs, are not known.
  """
  if (job := made(store, clip)) is not None:
    return job.request, store.given_folder(job.id)
  if not _has_all(clip):
    raise ValueError(
      "this clip was made by sample.py with files or LoRAs that the studio does"
      " not have; add them above and generate it again"
    )
  recipe = clip.recipe
  config = recipe.get("config")
  settings = {
    name: value
    for name, value in (config if isinstance(config, dict) else {}).items()
    if name in requests.SETTINGS
  }
  generate = recipe.get("generate")
  request = jobs.ClipRequest(
    prompt=clip.prompt,
    settings={**settings, "seed": clip.seed},
    seconds=_seconds(recipe),
    generate=generate if isinstance(generate, str) else "both",
  )
  return request, store.folder


def _has_all(clip: galleries.Clip) -> bool:
  """Whether the recipe alone says all that decides what the clip is."""
  given = (clip.recipe.get(n) for n in ("image", "given", "loras"))
  return isinstance(clip.recipe.get("prompt"), str) and not any(given)


def _seconds(recipe: Mapping[str, Any]) -> float | None:
  """The length of a clip that has not that of the weights."""
  found = recipe.get("latent_frames")
  if type(found) is not int or not 1 < found < 2**16:
    return None
  return geometry.VIDEO_STRIDES[0] * (found - 1) / geometry.FPS
