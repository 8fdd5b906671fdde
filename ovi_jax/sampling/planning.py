"""Requests to planned clips: everything is checked before weights are
loaded."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import ovi_jax
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax import storage
from ovi_jax import tokenizer as tokenizers
from ovi_jax.modality import AV
from ovi_jax.models import rope
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import lengths as lengths_lib
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import opening
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import windows as windows_lib

_log = logging.getLogger(__name__)
MAX_CLIPS = 100_000  # of a run
MAX_NOTES = 20  # that are shown
# Of the files of clips, by what is generated.
ENDINGS = {denoisers.BOTH: ".mp4", "video": ".mp4", "audio": ".wav"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One clip to make, with everything that decides what it will be."""

  request: requests_lib.Request
  text: str  # the prompt as the encoder reads it
  clip: geometry.Clip
  recipe: dict[str, Any]  # written beside the clip; equal recipe, equal clip
  path: storage.AnyPath
  conditioning: str = conditions.RENOISE  # of `conditions.MODES`
  # Of a clip that is made in windows of the size `clip`; else empty.
  windows: tuple[windows_lib.Window, ...] = ()
  window_texts: tuple[str, ...] = ()  # for each of them
  extended: conditions.Extended | None = None
  generates: str = denoisers.BOTH

  @property
  def given(self) -> AV[np.ndarray]:
    """The latents in time that are given, of the first window at least."""
    if self.extended is not None:
      return self.extended.masks(self.request.sound, self.clip)
    return lengths_lib.generated_only(
      self.request.masks(self.clip), self.generates
    )

  @property
  def frames(self) -> int:
    """Video frames of all windows; of an extended file from `extended` on."""
    start = self.windows[-1].start if self.windows else 0
    return self.clip.frames + geometry.VIDEO_STRIDES[0] * start

  @property
  def voice_latents(self) -> int:
    """Audio latents of the reference voice; 0 without one."""
    return 0 if self.request.voice is None else self.request.voice.latents

  @property
  def num_windows(self) -> int:
    """Parts that are denoised one after another."""
    return len(self.windows) or 1

  @property
  def texts(self) -> tuple[str, ...]:
    """The prompts of all windows as the encoder reads them."""
    return self.window_texts or (self.text,)


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
      f" are {count} clips; the limit is {MAX_CLIPS}. Split the prompts"
      " over several runs"
    )
  variant, generate = components.geometry, components.generates
  requests = [
    dataclasses.replace(request, generate=generate) for request in requests
  ]
  for request in requests:
    _check_towers(request, generate)
  height, width = opening.clip_size(settings, components.manifest)
  expanded = requests_lib.expand(
    requests,
    settings.samples_per_prompt,
    settings.seed,
    height=height,
    width=width,
    area=variant.area,
    latent_frames=variant.latent_frames,
  )
  depth = settings_lib.num_layers(components.arch.fusion)
  if settings.slg_layer >= depth:
    _log.info(
      "note: slg_layer is %d, but the last block of these weights is %d;"
      " skip-layer guidance is off",
      *(settings.slg_layer, depth - 1),
    )
  lengths = lengths_lib.plan(expanded, variant, settings, generate)
  _check_voices(expanded, lengths, components)
  if noise and any(length.windows for length in lengths):
    window = windows_lib.seconds_of(
      lengths_lib.window_latent_frames(settings, variant)
    )
    raise ValueError(
      "noise cannot be used with a clip of several windows; leave it out, or"
      f" give at most {window:.2f} seconds"
    )
  clips = [length.clip for length in lengths]
  given = _noise(noise, clips, components.channels) if noise else None
  tokenizer = components.tokenizer()
  again = count - len(expanded)
  if again:
    _log.info(
      "note: %d clips are requested again (same prompt, image and seed); each"
      " clip is generated once",
      again,
    )
  jobs = []
  noted: set[str] = set()
  for request, length in zip(expanded, lengths):
    clip = length.clip
    texts, notes = read_prompts(
      length.prompts, variant, tokenizer, components.text_length
    )
    notes += lengths_lib.notes_of(request, length, variant)
    if request.given.extend is None:
      notes += lengths_lib.sound_notes(request, clip)
    notes += request.notes
    if request.voice is not None and not knows_voices(components.manifest):
      notes += (
        "voice: these weights do not say that they were trained with reference"
        " voices",
      )
    height, width = request.size
    if not 0.75 < height * width / variant.area < 1.25:
      notes += (
        f"{height}x{width} has {height * width} pixels, the weights were"
        f" trained at about {variant.area}; an aspect ratio closer to 1:1 gives"
        " better results",
      )
    elif geometry.elongation(height, width) > geometry.USUAL_ASPECT:
      notes += (
        f"the clip is {height}x{width}, more extreme than the"
        f" {geometry.USUAL_ASPECT:g} to 1 of training; crop it for better"
        " results",
      )
    for note in notes:
      line = f"note: {request.place}{note}"
      if line not in noted and len(noted) < MAX_NOTES:
        _log.info("%s", line)
      noted.add(line)
    many = len(texts) > 1
    recipe = _metadata(
      request,
      length,
      " | ".join(texts) if many else texts[0],
      settings,
      components,
      given,
    )
    jobs.append(
      Job(
        request=request,
        text=texts[0],
        clip=clip,
        recipe=recipe,
        path=out / f"{request.stem}{ENDINGS[generate]}",
        conditioning=settings.conditioning,
        windows=length.windows,
        window_texts=tuple(texts if many else texts * len(length.windows)),
        extended=length.extended,
        generates=generate,
      )
    )
  if len(noted) > MAX_NOTES:
    _log.info("note: %d further notes are not shown", len(noted) - MAX_NOTES)
  return jobs, given


def read_prompts(
  given: Sequence[str],
  variant: geometry.Variant,
  tokenizer: tokenizers.Tokenizer,
  length: int,
) -> tuple[list[str], tuple[str, ...]]:
  """Prompts as the text encoder reads them, and what was changed or left out.

  Args:
    given: as the user wrote them: one, or those of a long clip's windows.
    variant: of the weights.
    tokenizer: of the weights.
    length: tokens that the text encoder reads.

  Returns:
    The texts, and notes to show the user.
  """
  read = [prompts.format_for(prompt, variant) for prompt in given]
  texts = [text for text, _ in read]
  notes = tuple(note for _, said in read for note in said)
  notes += tokenizer.notes(texts, length)
  if unread := tokenizer.unread(" ".join(texts)):
    notes += (
      "these words are not in the vocabulary and are left out:"
      f" {', '.join(unread)}",
    )
  return texts, notes


def _check_towers(request: requests_lib.Request, generate: str) -> None:
  """ValueError if files are given of what one tower alone does not make."""
  given = request.given
  unused = {
    denoisers.BOTH: (),
    "video": ("audio", "extend", "voice"),
    "audio": ("image", "last_image", "video", "extend"),
  }
  named = [*(["image"] if request.image is not None else []), *given.files]
  if wrong := [name for name in named if name in unused[generate]]:
    raise ValueError(
      f"{request.place}{wrong[0]} and generate={generate} cannot be combined;"
      " leave one out"
    )
  if generate == "video" and given.keep_audio_until is not None:
    raise ValueError(
      f"{request.place}keep_audio_until and generate=video cannot be combined;"
      " leave one out"
    )


def knows_voices(manifest: weights_dir.Manifest) -> bool:
  """Whether the weights recommend settings of reference voices."""
  return "voice_guidance_scale" in manifest.sampling


def _check_voices(
  requests: Sequence[requests_lib.Request],
  lengths: Sequence[lengths_lib.Length],
  components: denoisers.SamplingComponents,
) -> None:
  """ValueError if a clip reaches the positions of its reference voice."""
  tower = components.arch.fusion.audio
  for request, length in zip(requests, lengths):
    if request.voice is None or tower is None:
      continue
    most = rope.reference_start(tower.rope_scale)
    if length.clip.audio_latents > most:
      seconds = most / geometry.AUDIO_LATENT_RATE
      raise ValueError(
        f"{request.place}voice goes with up to {seconds:.1f} s that are"
        " denoised at once; lower window_seconds"
      )


def batches(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
  """Group clips that one program can denoise together.

  Args:
    jobs: see `plan`.
    batch_size: clips of a batch, at most.

  Returns:
    Clips of the same latent sizes, of which the same kinds of latents are
    given and as many of a reference voice, in their order; a batch stands where
    its first clip does. A clip that is made in windows is a batch of its own.
  """
  made: list[list[Job]] = []
  latest: dict[Any, list[Job]] = {}
  for job in jobs:
    if job.windows:
      made.append([job])
      continue
    parts = conditions.split(job.given, job.conditioning)
    key = job.clip, jax.tree.structure(parts), job.voice_latents
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
  length: lengths_lib.Length,
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
    given["latent_frames"] = length.clip.latent_frames
    given["conditioning"] = settings.conditioning
  if request.voice is not None:
    given["voice"] |= dataclasses.asdict(request.voice)
    given["voice_guidance_scale"] = settings.voice_guidance_scale
  size: dict[str, Any] = {}
  frames = length.latent_frames
  known = components.geometry.latent_frames
  if request.seconds is not None and frames != known:
    size["latent_frames"] = frames
  if components.generates != denoisers.BOTH:
    size["generate"] = components.generates
  if length.windows:
    size["latent_frames"] = frames
    size["windows"] = {
      "count": len(length.windows),
      "latent_frames": length.clip.latent_frames,
      "overlap": settings.window_overlap,
      "conditioning": settings.conditioning,
    }
  manifest = components.manifest
  config = settings.metadata() | {"seed": request.seed}
  config.pop("samples_per_prompt")
  return {
    "prompt": request.prompt,
    "text": text,
    "image": image,
    **({"given": given} if given else {}),
    **size,
    **({"first_frame": dict(made)} if (made := request.first_frame) else {}),
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
