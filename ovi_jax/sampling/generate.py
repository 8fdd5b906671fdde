"""A run of `sample.py`: from checked requests to mp4 files.

The order is the point: whatever can be wrong with the input is found before
weights are loaded, and a finished clip is never touched again.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import ovi_jax
from ovi_jax import geometry
from ovi_jax import media
from ovi_jax import prompt as prompts
from ovi_jax import runtime
from ovi_jax.checkpoint import directory
from ovi_jax.modality import AV
from ovi_jax.models import attention
from ovi_jax.parallel import mesh as meshes
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One clip to make, with everything that decides what it will be."""

  request: requests_lib.Request
  text: str  # the prompt as the encoder reads it
  clip: geometry.Clip
  recipe: dict[str, Any]  # written beside the clip; equal recipe, equal clip
  path: pathlib.Path


def run(
  *,
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  weights: pathlib.Path,
  out: pathlib.Path,
  noise: pathlib.Path | None = None,
  save_latents: bool = False,
  overwrite: bool = False,
  log: Log = print,
) -> list[pathlib.Path]:
  """Make a clip for every request.

  Args:
    requests: prompts and images.
    settings: of the run.
    weights: directory of converted weights.
    out: directory for the results.
    noise: .npz with video_THWC and audio_TC to start from, for every clip.
    save_latents: keep the final latents beside each clip.
    overwrite: make clips again that are there already.
    log: called with each line for the user.

  Returns:
    The mp4 files, those made earlier included.

  Raises:
    ValueError: something about the input, the weights or the noise is wrong;
      raised before weights are loaded.
    OSError: the results cannot be written.
  """
  manifest = directory.read(weights, settings.variant, pipelines.NEEDS)
  given = None if noise is None else read_noise(noise)
  pipeline = _pipeline(weights, manifest, settings)
  jobs = plan(requests, settings, pipeline, out, given, log)
  pending = [job for job in jobs if overwrite or not _made(job, log)]
  if pending:
    _make(pending, settings, pipeline, given, save_latents, log)
  return [job.path for job in jobs]


def _pipeline(
  weights: pathlib.Path,
  manifest: directory.Manifest,
  settings: settings_lib.Settings,
) -> pipelines.Pipeline:
  """Settle devices, dtype and attention."""
  platform = runtime.platform()
  name = settings.dtype
  if name == "auto":
    name = "float32" if platform == "cpu" else "bfloat16"
  dtype = jnp.dtype(name)
  heads = next(iter(manifest.architecture.fusion.present().values())).heads
  return pipelines.Pipeline(
    weights=weights,
    manifest=manifest,
    mesh=meshes.for_sampling(jax.devices(), heads),
    dtype=dtype,
    backend=attention.resolve(settings.attention, platform, dtype),
  )


def plan(
  requests: Sequence[requests_lib.Request],
  settings: settings_lib.Settings,
  pipeline: pipelines.Pipeline,
  out: pathlib.Path,
  noise: AV[np.ndarray] | None,
  log: Log,
) -> list[Job]:
  """Settle prompts, sizes and names of all clips; reads images, no weights."""
  variant = pipeline.manifest.geometry
  wanted = settings.height, settings.width
  arch = pipeline.arch
  if arch.clip is not None and wanted == geometry.DEFAULT_SIZE:
    wanted = arch.clip.pixels
  expanded = requests_lib.expand(
    requests,
    settings.each_example_n_times,
    settings.seed,
    height=wanted[0],
    width=wanted[1],
    area=variant.area,
  )
  depth = arch.fusion.video.blocks
  if settings.skip_layer >= depth:
    log(f"note: there is no block {settings.skip_layer}, none is skipped")
  tokenizer = pipeline.tokenizer()
  jobs = []
  noted: set[str] = set()
  for request in expanded:
    text, notes = prompts.format_for(request.prompt, variant)
    notes += tokenizer.notes([text], pipeline.text_length)
    for note in notes:
      line = f"note: row {request.index}: {note}"
      if line not in noted:
        log(line)
      noted.add(line)
    clip = variant.clip(*request.size)
    if noise is not None:
      _check_noise(noise, clip, arch)
    recipe = _recipe(request, text, settings, pipeline, noise)
    path = out / f"{request.stem}.mp4"
    jobs.append(
      Job(request=request, text=text, clip=clip, recipe=recipe, path=path)
    )
  return jobs


def _recipe(
  request: requests_lib.Request,
  text: str,
  settings: settings_lib.Settings,
  pipeline: pipelines.Pipeline,
  noise: AV[np.ndarray] | None,
) -> dict[str, Any]:
  """Everything needed to make the clip again."""
  image = None
  if request.image is not None:
    content = hashlib.sha256(request.image.read_bytes()).hexdigest()
    image = {"path": str(request.image), "sha256": content}
  manifest = pipeline.manifest
  config = settings.recipe() | {"seed": request.seed}
  config.pop("each_example_n_times")
  return {
    "prompt": request.prompt,
    "text": text,
    "image": image,
    "seed": request.seed,
    "height": request.size[0],
    "width": request.size[1],
    "noise_sha256": None if noise is None else _digest(noise),
    "config": config,
    "dtype": pipeline.dtype.name,
    "weights": {
      "variant": manifest.variant or directory.CUSTOM,
      "sha256": dict(manifest.digests),
    },
    "ovi_jax": ovi_jax.__version__,
  }


def _made(job: Job, log: Log) -> bool:
  """Whether this very clip is there already.

  Raises:
    ValueError: another clip stands under its name.
  """
  if not job.path.exists():
    return False
  beside = job.path.with_suffix(".json")
  try:
    found = json.loads(beside.read_text())
  except (OSError, ValueError):
    found = {}
  different = [k for k, v in job.recipe.items() if found.get(k) != v]
  # Another version or place of the image is the same clip.
  different = [k for k in different if k != "ovi_jax"]
  if different:
    raise ValueError(
      f"{job.path} was made with other settings ({', '.join(different)}"
      " differ); choose another --out, or --overwrite it"
    )
  log(f"already made: {job.path}")
  return True


def _make(
  jobs: Sequence[Job],
  settings: settings_lib.Settings,
  pipeline: pipelines.Pipeline,
  noise: AV[np.ndarray] | None,
  save_latents: bool,
  log: Log,
) -> None:
  """Load the weights, stage after stage, and make the clips."""
  log(f"encoding {len({job.text for job in jobs})} prompts")
  negative = settings.negative_prompt
  embedded = pipeline.embed([*(job.text for job in jobs), *negative])
  images = [job.request.image for job in jobs if job.request.image is not None]
  first = pipeline.encode_images(images, pipeline.manifest.geometry.area)
  log(f"loading the denoiser on {pipeline.mesh.size} device(s)")
  denoiser, decoder = pipeline.denoiser(), pipeline.decoder()
  channels = AV(
    **{n: c.channels for n, c in pipeline.arch.fusion.present().items()}
  )
  for number, job in enumerate(jobs, 1):
    start = noise
    if start is None:
      start = pipelines.noise(job.request.seed, job.clip, channels)
    title = f"[{number}/{len(jobs)}] {job.path.stem}"
    with tqdm.tqdm(total=settings.steps, desc=title, unit="step") as bar:
      latents = denoiser.sample(
        start,
        embedded[job.text],
        AV(*(embedded[n] for n in negative)),
        settings,
        None if job.request.image is None else first[job.request.image],
        lambda _, bar=bar: bar.update(),
      )
    write(job, latents, decoder, save_latents)
    log(f"wrote {job.path}")


def write(
  job: Job,
  latents: AV[jax.Array],
  decoder: pipelines.Decoder,
  save_latents: bool,
) -> None:
  """Write a clip's files, the mp4 last: where it stands, all is done."""
  job.path.parent.mkdir(parents=True, exist_ok=True)
  if save_latents:
    path = job.path.with_suffix(".npz")
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
      np.savez(
        file,
        video_THWC=np.asarray(latents.video[0]),
        audio_TC=np.asarray(latents.audio[0]),
      )
    os.replace(partial, path)
  fresh = job.path.with_name(f".{job.path.stem}.new.mp4")
  wave = decoder.wave(latents.audio)
  media.write_mp4(fresh, decoder.frames(latents.video), wave)
  described = job.recipe | {
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
  }
  beside = job.path.with_suffix(".json")
  partial = beside.with_suffix(".partial")
  partial.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
  # An earlier clip stays until now, and is never described by this one's JSON.
  beside.unlink(missing_ok=True)
  os.replace(fresh, job.path)
  os.replace(partial, beside)


def read_noise(path: pathlib.Path) -> AV[np.ndarray]:
  """Noise from an .npz with video_THWC and audio_TC.

  Raises:
    ValueError: no such file, not an .npz of numbers, or arrays missing.
  """
  if not path.is_file():
    raise ValueError(f"noise: {path} is not a file")
  wanted = ("video_THWC", "audio_TC")
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = [file[name] for name in wanted if name in file.files]
      found = list(file.files)
  except (OSError, ValueError, EOFError, AttributeError) as error:
    raise ValueError(f"noise: {path} is not an .npz file ({error})") from error
  if len(arrays) != len(wanted):
    raise ValueError(f"noise: {path} needs {wanted}, it has {found}")
  for name, array in zip(wanted, arrays):
    if array.dtype.kind != "f" or not np.isfinite(array).all():
      raise ValueError(f"noise: {name} in {path} must be finite numbers")
  return AV(*(np.asarray(a, np.float32) for a in arrays))


def _check_noise(noise: AV[np.ndarray], clip: geometry.Clip, arch: Any) -> None:
  """ValueError unless the noise has the clip's shape."""
  video, audio = arch.fusion.video.channels, arch.fusion.audio.channels
  sides = clip.latent_height, clip.latent_width
  expected = (
    (clip.latent_frames, *sides, video),
    (clip.audio_latents, audio),
  )
  found = tuple(a.shape for a in noise)
  if found != expected:
    raise ValueError(
      f"noise: expected video_THWC {expected[0]} and audio_TC {expected[1]}"
      f" for this clip, got {found[0]} and {found[1]}"
    )


def _digest(noise: AV[np.ndarray]) -> str:
  """Identity of given noise."""
  digest = hashlib.sha256()
  for array in noise:
    digest.update(array.tobytes())
  return digest.hexdigest()
