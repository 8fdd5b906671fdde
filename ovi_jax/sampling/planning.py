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
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.lora import apply as lora_lib
from ovi_jax.modality import AV
from ovi_jax.models import rope
from ovi_jax.pretrained import weights as weights_lib
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import windows as windows_lib
from ovi_jax.sharding import mesh as meshes

_log = logging.getLogger(__name__)
MAX_CLIPS = 100_000  # of a run
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
    return generated_only(self.request.masks(self.clip), self.generates)

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


def generated_only(masks: AV[Any], generate: str) -> AV[Any]:
  """The masks of what is generated, see `denoiser.NEEDS`."""
  if generate == denoisers.BOTH:
    return masks
  return AV(**{generate: getattr(masks, generate)})


def resolve_settings(
  config: ml_collections.ConfigDict,
  weights: str | os.PathLike[str],
  lora: str = "",
) -> settings_lib.Settings:
  """The settings of a config and, where it leaves them open, of the weights.

  Args:
    config: of `configs/sample.py`.
    weights: directory of weights.
    lora: files and strengths, see `lora.apply.parse`; what they recommend
      replaces what the weights do.

  Raises:
    ValueError: there are no weights, a LoRA is missing, or the settings make no
      sense.
  """
  variant: Any = config.get("variant", "")
  manifest = weights_dir.manifest_of(weights, variant)
  advised = settings_lib.recommended_of(manifest)
  advised |= lora_lib.recommended_of(lora)
  return settings_lib.Settings.from_config(config, advised)


def recommended_of(
  components: denoisers.SamplingComponents,
) -> dict[str, Any]:
  """What the weights and the LoRAs on them recommend."""
  loras = ((x.adapter.metadata, x.strength) for x in components.loras)
  advised = settings_lib.recommended_of(components.manifest)
  return advised | lora_lib.recommended(loras)


def open_components(
  weights: storage.AnyPath,
  settings: settings_lib.Settings,
  lora: str = "",
  generate: str = denoisers.BOTH,
) -> denoisers.SamplingComponents:
  """Check weights, devices, dtype and attention; load LoRAs, but no weights.

  Args:
    weights: their directory.
    settings: of the run.
    lora: files and strengths, see `lora.apply.parse`.
    generate: a key of `denoiser.NEEDS`: video with sound, or one alone.

  Raises:
    ValueError: the weights cannot make what is asked for, the mesh cannot be,
      or a LoRA does not fit.
  """
  problems = config_lib.invalid_choice("generate", generate, denoisers.NEEDS)
  config_lib.check(problems, "")
  both = generate == denoisers.BOTH
  names = _towers(generate)
  found = weights_dir.manifest_of(weights, settings.variant)
  towers = found.architecture.fusion.present()
  if missing := [name for name in names if name not in towers]:
    have = ", ".join(towers)
    raise ValueError(
      f"weights in {weights} have only the tower {have};"
      + (" a video with sound needs both;" if both else "")
      + (
        f" generate={have} makes" if both else f" there is none of {missing[0]}"
      )
      + (f" {have} alone" if both else "")
    )
  needs = denoisers.NEEDS[generate]
  manifest = _with_towers(
    weights_dir.read(weights, settings.variant, needs), names
  )
  shared = settings.shard_clips_over_hosts
  devices = jax.devices() if shared else jax.local_devices()
  opened = components_of(weights, manifest, settings, devices, cli.platform())
  return with_loras(opened, lora)


def _towers(generate: str) -> tuple[str, ...]:
  """The towers that a key of `denoiser.NEEDS` takes."""
  return AV._fields if generate == denoisers.BOTH else (generate,)


def _with_towers(
  manifest: weights_dir.Manifest, names: Sequence[str]
) -> weights_dir.Manifest:
  """The manifest of some of the towers."""
  sizes = {name: manifest.sizes["fusion"][name] for name in names}
  return dataclasses.replace(
    manifest, sizes={**manifest.sizes, "fusion": sizes}
  )


def restricted(
  components: denoisers.SamplingComponents, generate: str
) -> denoisers.SamplingComponents:
  """The components for one tower of weights with both.

  Args:
    components: of the weights.
    generate: a key of `denoiser.NEEDS`.

  Raises:
    ValueError: it is unknown, or the components are not of this tower.
  """
  if generate == components.generates:
    return components
  problems = config_lib.invalid_choice("generate", generate, denoisers.NEEDS)
  config_lib.check(problems, "")
  if components.generates != denoisers.BOTH:
    raise ValueError(
      f"generate: the weights are opened for {components.generates} alone, got"
      f" {generate}"
    )
  manifest = _with_towers(components.manifest, _towers(generate))
  return dataclasses.replace(components, manifest=manifest)


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
      settings.attention, platform, dtype, tower.head_dim
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
      f" are {count} clips; the limit is {MAX_CLIPS}. Split the prompts"
      " over several runs"
    )
  variant, generate = components.geometry, components.generates
  requests = [
    dataclasses.replace(request, generate=generate) for request in requests
  ]
  for request in requests:
    _check_towers(request, generate)
  height, width = clip_size(settings, components.manifest)
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
  lengths = _lengths(expanded, variant, settings, generate)
  _check_voices(expanded, lengths, components)
  if noise and any(length.windows for length in lengths):
    window = windows_lib.seconds_of(window_latent_frames(settings, variant))
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
    notes += _length_notes(request, length, variant)
    if request.given.extend is None:
      notes += _sound_notes(request, clip)
    notes += request.notes
    if request.voice is not None and not _knows_voices(components):
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
      if line not in noted:
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


def _knows_voices(components: denoisers.SamplingComponents) -> bool:
  """Whether the weights recommend settings of reference voices."""
  return "voice_guidance_scale" in components.manifest.sampling


def _check_voices(
  requests: Sequence[requests_lib.Request],
  lengths: Sequence["_Length"],
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Length:
  """How long a clip is and how it is made.

  Attributes:
    clip: sizes of it, or of each of its windows.
    latent_frames: of all of it; with an extended file, from its end on.
    windows: of a clip that is made in windows.
    extended: the end of an extended file.
    prompts: one, or one for each window.
  """

  clip: geometry.Clip
  latent_frames: int
  windows: tuple[windows_lib.Window, ...] = ()
  extended: conditions.Extended | None = None
  prompts: tuple[str, ...]


def _lengths(
  requests: Sequence[requests_lib.Request],
  variant: geometry.Variant,
  settings: settings_lib.Settings,
  generate: str,
) -> list[_Length]:
  """Lengths of all clips; ValueError lists what cannot be made."""
  window = window_latent_frames(settings, variant)
  lengths, problems = [], []
  for request in requests:
    try:
      overlap = settings.window_overlap
      lengths.append(_length(request, variant, window, overlap, generate))
    except ValueError as error:
      problems.append(f"{request.place}{error}")
  requests_lib.check_problems(
    "clips that cannot be generated", requests, problems
  )
  return lengths


def window_latent_frames(
  settings: settings_lib.Settings, variant: geometry.Variant
) -> int:
  """Latent frames that are denoised at once, at most."""
  if settings.window_seconds:
    return conditions.nearest_latent_frames(settings.window_seconds)
  return variant.latent_frames


def _length(
  request: requests_lib.Request,
  variant: geometry.Variant,
  window: int,
  overlap: int,
  generate: str,
) -> _Length:
  """The length of a clip.

  Args:
    request: of it.
    variant: of the weights.
    window: latent frames of a window.
    overlap: that windows have in common, at least.
    generate: a key of `denoiser.NEEDS`.
  """
  given, asked, extended = request.given, None, None
  if request.seconds is not None:
    asked = conditions.nearest_latent_frames(request.seconds)
  if given.extend is not None:
    offset = given.span("extend")[0]
    extended = conditions.extended(
      request.media_seconds or 0.0, overlap, offset
    )
    new = window - extended.latent_frames if asked is None else asked - 1
    # As many windows, and no longer ones than are needed.
    asked = extended.latent_frames + new
  frames = asked
  if extended is None and request.media_seconds is not None:
    frames = conditions.latent_frames(
      request.media_seconds, asked or variant.latent_frames
    )
  frames = frames or variant.latent_frames
  windows: tuple[windows_lib.Window, ...] = ()
  if extended is not None or frames > window:
    _check_windows(request, frames, window, generate)
    clip = variant.clip(*request.size, min(window, frames))
    start = 0 if extended is None else extended.latent_frames
    windows = windows_lib.plan(frames, clip, overlap, start)
  else:
    clip = variant.clip(*request.size, frames)
    masks = generated_only(request.masks(clip), generate)
    towers = 2 if generate == denoisers.BOTH else 1
    conditions.check_masks(given, masks, request.sound, clip, towers)
  texts = (request.prompt,)
  if request.seconds is not None or extended is not None:
    texts = windows_lib.split_prompt(request.prompt)
  if len(texts) not in (1, count := len(windows) or 1):
    raise ValueError(
      f"{len(texts)} prompts between {windows_lib.SEPARATOR!r} for a clip of"
      f" {count} window{'s' if count > 1 else ''}; write one for each window,"
      " or one for all"
    )
  return _Length(
    clip=clip,
    latent_frames=frames,
    windows=windows,
    extended=extended,
    prompts=texts,
  )


def _check_windows(
  request: requests_lib.Request, frames: int, window: int, generate: str
) -> None:
  """ValueError if a clip of several windows is too long, or given too much."""
  longest = windows_lib.seconds_of(window)
  if frames > windows_lib.MAX_LATENT_FRAMES:
    most = windows_lib.seconds_of(windows_lib.MAX_LATENT_FRAMES)
    raise ValueError(
      f"seconds must be at most {most:.0f}; extend continues a finished clip"
    )
  names = [n for n in request.given.media if n != "extend"]
  names += [] if generate == denoisers.BOTH else [f"generate={generate}"]
  if names:
    raise ValueError(
      f"{names[0]} cannot be used with a clip of several windows; give at most"
      f" {longest:.2f} seconds, or raise window_seconds"
    )


def _length_notes(
  request: requests_lib.Request, length: _Length, variant: geometry.Variant
) -> tuple[str, ...]:
  """What a clip has more or less of than was asked for, or trained."""
  clip, notes = length.clip, ()
  if clip.latent_frames > variant.latent_frames:
    trained = windows_lib.seconds_of(variant.latent_frames)
    seconds = windows_lib.seconds_of(clip.latent_frames)
    notes += (
      f"the window of {seconds:.2f} s is longer than the {trained:.2f} s of"
      " training; quality may be lower",
    )
  if len(length.windows) > 1:
    notes += (f"the clip is generated in {len(length.windows)} windows",)
  if length.extended is not None:
    return notes
  return notes + _media_notes(request, length, variant)


def _media_notes(
  request: requests_lib.Request, length: _Length, variant: geometry.Variant
) -> tuple[str, ...]:
  """What a clip has more or less of than the files it is made from."""
  media = request.media_seconds
  seconds = windows_lib.seconds_of(length.latent_frames)
  wanted = variant.latent_frames
  if request.seconds is not None:
    wanted = conditions.nearest_latent_frames(request.seconds)
  if media is None:
    if abs(seconds - (request.seconds or seconds)) > 1.5 / geometry.FPS:
      return (f"the clip lasts {seconds:.2f} s: lengths are 1 + 4·k frames",)
    return ()
  files = " and ".join(request.given.media)
  if length.latent_frames == wanted:
    if media > seconds + 1 / geometry.FPS:
      return (f"the first {seconds:.2f} of {media:.2f} s are used",)
    if media < seconds - 1 / geometry.FPS:
      return (
        f"{files}: {media:.2f} of {seconds:.2f} s, the last frame is"
        " repeated and silence appended",
      )
    return ()
  return (
    f"the clip lasts {seconds:.2f} s, the length of {files} rounded down to"
    " 1 + 4·k frames",
  )


def _sound_notes(
  request: requests_lib.Request, clip: geometry.Clip
) -> tuple[str, ...]:
  """What is generated because the given sound begins late or ends early."""
  (start, end), given = request.sound, request.given
  if not 0 < end < math.inf:
    return ()
  name = "video" if given.audio is None else "audio"

  def lost(sound: conditions.Interval) -> bool:
    """Whether less is given than without the other end of the track."""
    found, wanted = (
      dataclasses.replace(request, sound=interval).masks(clip).audio
      for interval in (sound, conditions.ANY)
    )
    return wanted is not None and (found is None or (found != wanted).any())

  notes = ()
  if lost((start, math.inf)):
    notes += (
      f"{name}: its sound begins at {start:.2f} s, the sound before it is"
      " generated",
    )
  if lost((0.0, end)):
    notes += (
      f"{name}: its sound ends at {end:.2f} s, the sound after it is generated",
    )
  return notes


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
  length: _Length,
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
