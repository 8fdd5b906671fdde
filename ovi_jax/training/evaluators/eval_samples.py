"""Samples generated during training.

Clips of held-out prompts are written to `samples/step-00000100/<record>.mp4`
(`.wav` for a run of the audio tower). The noise is the same in all steps of a
run. The negative prompt is the empty prompt, and there is no skip-layer
guidance. Sampling is float32 around a model of any compute dtype, as in
`sampling`.
"""

import dataclasses
import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import prompt as prompts_lib
from ovi_jax import storage
from ovi_jax.data import schema
from ovi_jax.data import settings as data_settings
from ovi_jax.evaluation import clip_scores
from ovi_jax.evaluation import protocols as evaluation_protocols
from ovi_jax.media import mp4
from ovi_jax.media import wav
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import decoders
from ovi_jax.sampling import denoise as denoising
from ovi_jax.sampling import denoiser
from ovi_jax.sampling import guidance
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import settings as sampling_settings
from ovi_jax.sampling import solvers
from ovi_jax.sharding import mesh as meshes
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import logs as logs_lib
from ovi_jax.training import state_sharding
from ovi_jax.training import step

Show = Callable[[int, np.ndarray | None, np.ndarray | None], None]

DIRECTORY, LIST = "samples", "samples.json"
GUIDANCE = AV(4.0, 3.0)  # the original's
MAX_CLIPS = 1024  # sampled together


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSamplesConfig:
  """Settings of samples during training.

  Attributes:
    num_samples: number of clips, generated as one batch.
    num_steps: steps of the solver.
    solver: a key of `sampling.solvers.SOLVERS`.
    flow_shift: shift of noise levels towards noise.
    guidance_scale: classifier-free guidance scale of each modality.
    seed: clip number n has the noise of seed + n.
    protocols: of `ovi_jax.evaluation`, whose scores of the clips are logged as
      `samples/PROTOCOL/SCORE`; those that need weights or a reference are left
      out.
  """

  num_samples: int
  num_steps: int = 20
  solver: str = "unipc"
  flow_shift: float = 5.0
  guidance_scale: AV[float] = GUIDANCE
  seed: int = 0
  protocols: tuple[str, ...] = ()

  def __post_init__(self):
    scales = {
      f"guidance_scale.{n}": v for n, v in self.guidance_scale._asdict().items()
    }
    values = {
      "num_steps": self.num_steps,
      "flow_shift": self.flow_shift,
    } | scales
    problems = sampling_settings.out_of_bounds(values)
    if not 1 <= self.num_samples <= MAX_CLIPS:
      problems.append(
        f"num_samples must be from 1 to {MAX_CLIPS}, got {self.num_samples}"
      )
    if self.solver not in solvers.SOLVERS:
      known = ", ".join(solvers.SOLVERS)
      problems.append(f"solver {self.solver!r} is unknown; choose from {known}")
    last = self.seed + max(1, self.num_samples) - 1
    if self.seed < 0 or last >= 2**32:
      problems.append(f"seeds must be in [0, 2^32), got {self.seed} to {last}")
    if self.protocols:
      try:
        evaluation_protocols.load(self.protocols)
      except ValueError as error:
        problems.append(str(error))
    if problems:
      raise ValueError("eval_samples: " + "; ".join(problems))


class EvalPrompt(NamedTuple):
  """What a clip is made of.

  Attributes:
    id: names the clip.
    caption: for people.
    text_SE: its embedding, S the prompt's own tokens.
  """

  id: str
  caption: str
  text_SE: np.ndarray


def prompts(
  records: Iterable[schema.Record], count: int
) -> tuple[EvalPrompt, ...]:
  """The first caption of the first `count` records, or of all there are.

  Raises:
    ValueError: a record has no text embedding, or there is no record.
  """
  found: list[EvalPrompt] = []
  for record in records:
    if len(found) == count:
      break
    if not record.text:
      raise ValueError(
        f"samples: record {record.id!r} has no text embedding; encode the"
        " dataset first"
      )
    text_SE = np.asarray(record.text[0], np.float32)
    found.append(EvalPrompt(record.id, record.captions[0], text_SE))
  if not found:
    raise ValueError(
      "samples: expected at least one held-out record for its prompt, got"
      " none; hold some out, or make no samples"
    )
  return tuple(found)


def denoise(
  model: fusion.FusionDiT,
  params: Any,
  text: Sequence[np.ndarray],
  null_SE: np.ndarray,
  size: data_settings.Bucket,
  settings: EvalSamplesConfig,
) -> AV[jax.Array]:
  """Make clips from noise, side by side.

  Clips are the same on any mesh; it is the ambient one (`jax.set_mesh`). They
  are spread over devices if these divide twice their number, for the passes
  with and without the prompt.

  Args:
    model: the denoiser, of one tower or both.
    params: its parameters, nested.
    text: text_SE of each clip's prompt, S its own tokens.
    null_SE: embedding of the empty prompt.
    size: latents of every clip.
    settings: how they are made; the number of clips is that of `text`.

  Returns:
    Clean latents video_BTHWC and audio_BTC of the model's towers, float32.

  Raises:
    ValueError: a prompt is longer than the towers read.
  """
  towers = model.config.present()
  noise = _noise(model, size, settings.seed, len(text))
  pairs = denoiser.text_pairs(
    text,
    AV(**dict.fromkeys(towers, null_SE)),
    next(iter(towers.values())).max_text_len,
    model.backend,
  )
  method = solvers.named(settings.solver)
  depth = next(iter(towers.values())).num_layers
  inputs = denoising.Inputs(
    denoiser.step_constants(
      model, params, guidance.duplicate_for_cfg(noise), pairs
    ),
    jnp.asarray(guidance.slg_mask(depth, len(text), slg_layer=0)),
    AV(**{name: getattr(settings.guidance_scale, name) for name in towers}),
  )
  levels = method.schedule(settings.num_steps, settings.flow_shift)
  return denoising.denoise(model, method, params, inputs, noise, levels)


def _noise(
  model: fusion.FusionDiT, size: data_settings.Bucket, seed: int, count: int
) -> AV[Any]:
  """video_BTHWC and audio_BTC of the model's towers: row n from seed + n."""
  towers = model.config.present()
  # A tower's noise does not depend on the other's size: an absent one is small.
  frames, height, width = size.video or (1, geometry.PATCH, geometry.PATCH)
  clip = geometry.Clip(
    latent_frames=frames,
    latent_height=height,
    latent_width=width,
    audio_latents=size.audio or 1,
  )
  names = AV._fields
  channels = AV(*(towers[n].channels if n in towers else 1 for n in names))
  noise = [
    noises.sample_noise(seed + row, clip, channels) for row in range(count)
  ]
  return AV(**{n: np.stack([getattr(d, n) for d in noise]) for n in towers})


def write(
  directory: storage.AnyPath,
  ids: Sequence[str],
  latents: AV[Any],
  decoder: decoders.Decoder,
  show: Show = lambda row, frames_THWC, wave_A: None,
) -> list[storage.AnyPath]:
  """Decode clips into files, one after the other.

  Args:
    directory: of the files; made if it is not there.
    ids: what each clip is named after.
    latents: video_BTHWC and audio_BTC, or one of them, on the host.
    decoder: has what the latents need.
    show: called with each clip's row, some of its frames and its sound.

  Returns:
    Each clip's file: an mp4 if there is video, else a wav.

  Raises:
    OSError: the disk is full or not writable.
    ValueError: decoded pixels or sound are no numbers.
  """
  paths = []
  for row, stem in enumerate(_stems(ids)):
    wave_A, frames_THWC, path = None, None, directory / f"{stem}.wav"
    if latents.audio is not None:
      wave_A = decoder.wave(latents.audio[row : row + 1])
    if latents.video is not None:
      stride, latent_frames = geometry.VIDEO_STRIDES[0], latents.video.shape[1]
      preview = logs_lib.Preview(1 + stride * (latent_frames - 1))
      frames = decoder.frames(latents.video[row : row + 1])
      path = path.with_suffix(".mp4")
      mp4.write(path, preview.through(frames), wave_A)
      frames_THWC = np.stack(preview.kept)
    elif wave_A is not None:
      wav.write(path, wave_A)
    show(row, frames_THWC, wave_A)
    paths.append(path)
  return paths


def _stems(ids: Sequence[str]) -> list[str]:
  """A safe name for each id, no two alike on any file system."""
  taken: set[str] = set()
  stems = []
  for name in ids:
    stem = first = prompts_lib.file_stem(name)
    number = 1
    while stem.casefold() in taken:
      number += 1
      stem = f"{first}-{number}"
    taken.add(stem.casefold())
    stems.append(stem)
  return stems


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SampleEvaluator:
  """Call it with a state: every process computes, the first one writes.

  Attributes:
    model: the denoiser.
    mesh: where the state's parameters are.
    components: whose codecs decode; on one device, loaded each time.
    directory: of the run; files go to `samples` in it.
    prompts: as many as there are clips.
    null_SE: embedding of the empty prompt.
    size: latents of every clip.
    settings: how clips are made.
    logs: where clips are shown too.

  Raises:
    ValueError: the codecs or the size do not fit the model, or there are not
      as many prompts as clips.
  """

  model: fusion.FusionDiT
  mesh: jax.sharding.Mesh
  components: component_loader.Components
  directory: storage.AnyPath
  prompts: Sequence[EvalPrompt]
  null_SE: np.ndarray
  size: data_settings.Bucket
  settings: EvalSamplesConfig
  logs: logs_lib.Writer = dataclasses.field(default_factory=logs_lib.Writer)

  def __post_init__(self):
    config = self.model.config
    arch = dataclasses.replace(
      self.components.arch, fusion=config, umt5=None, clip=None
    )
    problems = list(arch.misfits)
    needed = {"video": ("video_vae",), "audio": ("audio_vae", "vocoder")}
    problems += [
      f"{self.components.weights} has no {part} to decode with"
      for name in config.present()
      for part in needed[name]
      if arch.config(part) is None
    ]
    problems += [
      f"size: expected one for {name}, got {self.size}"
      for name in config.present()
      if getattr(self.size, name) is None
    ]
    if len(self.prompts) != self.settings.num_samples:
      problems.append(
        f"expected {self.settings.num_samples} prompts, got"
        f" {len(self.prompts)};"
        " lower the count or hold more records out"
      )
    if problems:
      raise ValueError("eval_samples: " + "; ".join(problems))

  def __call__(self, state: step.TrainState) -> list[storage.AnyPath]:
    """Make the clips of a state with its EMA parameters, if there are any.

    Returns:
      The files that this process wrote.

    Raises:
      OSError: the disk is full or not writable.
    """
    with jax.set_mesh(self.mesh):
      made = denoise(
        self.model,
        state_sharding.ema_to_device(state),
        [prompt.text_SE for prompt in self.prompts],
        self.null_SE,
        self.size,
        self.settings,
      )
      made = jax.device_put(made, sharding_rules.replicated(self.mesh))
    if jax.process_index():
      return []
    latents = jax.tree.map(np.asarray, made)
    number = int(state.step)
    directory = self.directory / DIRECTORY / f"step-{number:08d}"

    def show(
      row: int, frames_THWC: np.ndarray | None, wave_A: np.ndarray | None
    ):
      # Tags hold the place, not the caption, so that steps share one.
      self.logs.clip(number, f"{DIRECTORY}/{row}", frames_THWC, wave_A)

    ids = [prompt.id for prompt in self.prompts]
    paths = write(directory, ids, latents, self._decoder(), show)
    self._describe(directory, number, paths)
    if self.settings.protocols:
      captions = [prompt.caption for prompt in self.prompts]
      scores = clip_scores.means(paths, captions, self.settings.protocols)
      self.logs.scalars(
        number, {f"{DIRECTORY}/{name}": mean for name, mean in scores.items()}
      )
    return paths

  def _decoder(self) -> decoders.Decoder:
    """Decoders on one device of this process; gone when nobody holds them."""
    alone = meshes.make(jax.local_devices()[:1])
    components = dataclasses.replace(self.components, mesh=alone)
    return decoders.Decoder.load(components, self.model.config.present())

  def _describe(
    self,
    directory: storage.AnyPath,
    number: int,
    paths: Sequence[storage.AnyPath],
  ) -> None:
    """Say in a JSON what the files are."""
    settings = dataclasses.asdict(self.settings)
    settings["guidance_scale"] = self.settings.guidance_scale._asdict()
    listed = [
      {
        "file": path.name,
        "id": prompt.id,
        "caption": prompt.caption,
        "seed": self.settings.seed + row,
      }
      for row, (path, prompt) in enumerate(zip(paths, self.prompts))
    ]
    content = {"step": number, "settings": settings, "clips": listed}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    with files.atomic_path(directory / LIST) as temporary:
      temporary.write_text(text, "utf-8")
