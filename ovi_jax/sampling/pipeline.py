"""The Python API: prompts in, clips with sound out.

  pipe = ovi_jax.Pipeline.from_pretrained()
  clip = pipe("A red ball bounces on a wooden floor. Audio: dull knocks.")
  clip.save("ball.mp4")

`sample.py` runs the same `Pipeline.generate`, so that both give the same clip
for the same settings.
"""

import base64
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax import console
from ovi_jax import geometry
from ovi_jax import synthetic
from ovi_jax.modality import AV
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import encoders
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import outputs
from ovi_jax.sampling import planning
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib

T = TypeVar("T")
# Called with the number of finished steps of a clip.
OnStep = Callable[[int], Any]
Track = Callable[[int, planning.Job], AbstractContextManager[OnStep]]
# Settings of the loaded weights, which a call cannot change.
LOADED = ("variant", "dtype", "attention", "mesh", "context_parallelism")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Clip:
  """A video with its sound.

  Attributes:
    video: uint8 RGB frames [T, H, W, 3].
    audio: float32 samples [A] in [-1, 1], mono.
    fps: frames a second.
    sample_rate: samples a second.
    latents: video_THWC and audio_TC that the clip was decoded from, float32.
    metadata: all that decides what the clip is, as in the JSON of `sample.py`.
  """

  video: np.ndarray
  audio: np.ndarray
  fps: float = geometry.FPS
  sample_rate: int = geometry.SAMPLE_RATE
  latents: AV[np.ndarray]
  metadata: Mapping[str, Any]

  def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
    """Write an mp4 (H.264, AAC) and, beside it, the metadata as JSON.

    Args:
      path: of the mp4; its folder is created.

    Returns:
      The path.

    Raises:
      ValueError: the name does not end in .mp4.
      OSError: it cannot be written; no mp4 is left half written.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() != ".mp4":
      raise ValueError(f"expected a name that ends in .mp4, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    outputs.write(path, self.metadata, iter([self.video]), self.audio, None)
    return path

  def __repr__(self) -> str:
    count, height, width, _ = self.video.shape
    return (
      f"Clip({width}x{height}, {count} frames at {self.fps:g} fps,"
      f" {len(self.audio) / self.sample_rate:.2f} s of sound,"
      f" seed {self.metadata.get('seed')})"
    )

  def _repr_html_(self) -> str:
    """A player, with the file inside: how a notebook shows a clip."""
    with tempfile.TemporaryDirectory() as folder:
      data = self.save(pathlib.Path(folder) / "clip.mp4").read_bytes()
    encoded = base64.b64encode(data).decode("ascii")
    return (
      f'<video controls loop src="data:video/mp4;base64,{encoded}"></video>'
    )


class Generated(NamedTuple):
  """A clip as it is being made; frames are decoded when they are read.

  Attributes:
    job: what was asked for.
    latents: video_BTHWC and audio_BTC, B = 1, float32, on the devices.
    frames: uint8 [T, H, W, 3], a few at a time.
    wave: float32 [A].
    maps: the attention maps of some heads.
  """

  job: planning.Job
  latents: AV[jax.Array]
  frames: Iterator[np.ndarray]
  wave: np.ndarray
  maps: Callable[[attention_maps.Heads], attention_maps.Maps]

  @property
  def metadata(self) -> dict[str, Any]:
    """The job's, and the device and version that made it."""
    return self.job.recipe | {
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
    }

  def host_latents(self) -> AV[np.ndarray]:
    """video_THWC and audio_TC."""
    return jax.tree.map(lambda a: np.asarray(a[0]), self.latents)


class Pipeline:
  """Weights, opened for sampling; components are loaded when first needed.

  Attributes:
    components: the directory of weights, its devices and dtype.
    keep_loaded: whether loaded components stay on the devices between calls.
      Without, the text encoder is freed before the DiT is loaded, which lowers
      the peak memory, and each call loads all again.
  """

  def __init__(
    self,
    components: denoisers.SamplingComponents,
    *,
    keep_loaded: bool = True,
  ):
    self.components = components
    self.keep_loaded = keep_loaded
    self._loaded: dict[str, Any] = {}

  @classmethod
  def from_pretrained(
    cls,
    weights: str | os.PathLike[str] | None = None,
    *,
    keep_loaded: bool = True,
    **settings: Any,
  ) -> "Pipeline":
    """Open a directory of converted weights.

    Args:
      weights: the directory; `None` for the small Ovi in the package.
      keep_loaded: see the class.
      **settings: any of `LOADED`, as in `configs/sample.py`.

    Raises:
      ValueError: the weights are missing, damaged or lack a component, or a
        setting is unknown or cannot be; nothing is loaded yet.
    """
    cli.setup_jax()
    if strange := sorted(settings.keys() - set(LOADED)):
      raise ValueError(
        f"{', '.join(strange)}: from_pretrained takes {', '.join(LOADED)}; give"
        " other settings when the pipeline is called"
      )
    if weights is None:
      weights = synthetic.WEIGHTS
    chosen = settings_lib.Settings.from_overrides(settings)
    opened = planning.open_components(pathlib.Path(weights), chosen)
    return cls(opened, keep_loaded=keep_loaded)

  def __call__(
    self,
    prompt: str | Sequence[str],
    *,
    image: str | os.PathLike[str] | None = None,
    noise: str | os.PathLike[str] = "",
    progress: bool | Callable[[int, int], Any] = True,
    log: planning.Log = console.log,
    **settings: Any,
  ) -> Any:
    """Make a clip, or one for each prompt.

    Args:
      prompt: what to see, say and hear; or several. Prompts that are equal are
        made once.
      image: picture of the first frame, for all prompts.
      noise: .npz to start from, see `sample.py --noise`.
      progress: whether to draw a bar; or a function that is called with the
        finished steps and the total over all clips.
      log: called with each note for the user.
      **settings: the fields of `configs/sample.py` that are not of `LOADED`;
        those left out are what the weights recommend. `guidance_scale` and
        `negative_prompt` are one value for both modalities, or a mapping.

    Returns:
      A `Clip` for one prompt and one sample, else a list of them.

    Raises:
      ValueError: something about the input is wrong; before weights are loaded.
    """
    if fixed := sorted(settings.keys() & set(LOADED)):
      raise ValueError(
        f"{', '.join(fixed)}: of the loaded weights; give it to from_pretrained"
      )
    recommended = settings_lib.recommended_of(self.components.manifest)
    chosen = settings_lib.Settings.from_overrides(settings, recommended)
    one = isinstance(prompt, str)
    requests = [
      dataclasses.replace(request, index=number)
      for number, text in enumerate([prompt] if one else prompt, 1)
      for request in requests_lib.from_prompt(text, image, chosen.mode)
    ]
    if not requests:
      raise ValueError("expected a prompt or several, got none")
    jobs, given = planning.plan(
      requests, chosen, self.components, pathlib.Path(), noise, log
    )
    track = _track(progress, len(jobs), chosen.num_steps)
    clips = [
      Clip(
        video=np.concatenate(list(made.frames)),
        audio=made.wave,
        latents=made.host_latents(),
        metadata=made.metadata,
      )
      for made in self.generate(jobs, chosen, given, track=track)
    ]
    return clips[0] if one and len(clips) == 1 else clips

  def generate(
    self,
    jobs: Sequence[planning.Job],
    settings: settings_lib.Settings,
    noise: AV[np.ndarray] | None = None,
    *,
    track: Track | None = None,
    log: planning.Log = lambda _: None,
  ) -> Iterator[Generated]:
    """Make planned clips, one after another.

    Args:
      jobs: see `planning.plan`.
      settings: that they were planned with.
      noise: that all of them start from; `None` for that of their seeds.
      track: opened for each clip by its number (from 1); gives the function
        that is called after each step.
      log: called when components are loaded.

    Raises:
      denoise.NonFiniteLatentsError: a step ended in NaN or infinity.
      ValueError: an image cannot be read, or decoded values are not finite.
    """
    components, track = self.components, track or _silent
    log(f"encoding {len({job.text for job in jobs})} prompts")
    negative = settings.negative_prompt
    encoder = self._load("text", lambda: encoders.TextEncoder.load(components))
    embedded = encoder.texts([*(job.text for job in jobs), *negative])
    del encoder  # freed before the DiT is loaded, unless it is kept
    first = self._encode_images(
      [job.request.image for job in jobs if job.request.image is not None]
    )
    log(f"loading the denoiser on {components.mesh.size} device(s)")
    denoiser = self._load("denoiser", components.denoiser)
    decoder = self._load("decoder", lambda: decoders.Decoder.load(components))
    for number, job in enumerate(jobs, 1):
      start = noise
      if start is None:
        seed = job.request.seed
        assert seed is not None, "expand gives each a seed"
        start = noises.sample_noise(seed, job.clip, components.channels)
      image = None if job.request.image is None else first[job.request.image]
      with track(number, job) as on_step:
        latents = denoiser.sample(
          start,
          embedded[job.text],
          AV(*(embedded[n] for n in negative)),
          settings,
          image,
          on_step,
        )
      yield Generated(
        job=job,
        latents=latents,
        frames=decoder.frames(latents.video),
        wave=decoder.wave(latents.audio),
        maps=functools.partial(
          denoiser.maps, latents, start, embedded[job.text], image
        ),
      )

  def _load(self, name: str, make: Callable[[], T]) -> T:
    """A component, made unless an earlier call kept it."""
    if name in self._loaded:
      return self._loaded[name]
    made = make()
    if self.keep_loaded:
      self._loaded[name] = made
    return made

  def _encode_images(
    self, paths: Sequence[pathlib.Path]
  ) -> dict[pathlib.Path, np.ndarray]:
    """First latent frame [1, H, W, C] of each picture, on the host."""
    if not paths:
      return {}
    components = self.components
    encoder = self._load(
      "images", lambda: encoders.VideoEncoder.load(components)
    )
    return components.encode_images(paths, encoder)


@contextlib.contextmanager
def _silent(number: int, job: planning.Job) -> Iterator[OnStep]:
  """Progress that nobody watches."""
  yield lambda _: None


def _track(
  progress: bool | Callable[[int, int], Any], count: int, steps: int
) -> Track:
  """Progress as a caller of the pipeline asks for it."""
  if progress is False:
    return _silent
  if progress is True:
    return bar

  @contextlib.contextmanager
  def report(number: int, job: planning.Job) -> Iterator[OnStep]:
    before = (number - 1) * steps
    yield lambda step: progress(before + step, count * steps)

  return report


def bar(
  number: int, job: planning.Job, count: int = 0, hidden: bool = False
) -> AbstractContextManager[OnStep]:
  """A progress bar of a clip's denoising steps."""
  steps = job.recipe["config"]["num_steps"]
  title = f"[{number}/{count}] {job.path.stem}" if count else job.path.stem

  @contextlib.contextmanager
  def opened() -> Iterator[OnStep]:
    with console.progress(
      total=steps, desc=title, unit="step", disable=hidden
    ) as drawn:
      yield lambda _: drawn.update()

  return opened()
