"""The Python API: prompts in, clips with sound out.

  pipe = ovi_jax.Pipeline.from_pretrained()
  clip = pipe("A red ball bounces on a wooden floor. Audio: dull knocks.")
  clip.save("ball.mp4")

`sample.py` runs the same `Pipeline.generate`, so that both give the same clip
for the same settings.
"""

import contextlib
import dataclasses
import functools
import logging
import operator
import os
import pathlib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from typing import Any
from typing import TypeVar

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax import storage
from ovi_jax import synthetic
from ovi_jax.modality import AV
from ovi_jax.pretrained import decoders
from ovi_jax.pretrained import encoders
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import background
from ovi_jax.sampling import clips as clips_lib
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import first_frames
from ovi_jax.sampling import given_encoder
from ovi_jax.sampling import job_errors
from ovi_jax.sampling import noise as noises
from ovi_jax.sampling import opening
from ovi_jax.sampling import planning
from ovi_jax.sampling import previews
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import tracking
from ovi_jax.sampling import windows as windows_lib

_log = logging.getLogger(__name__)
T = TypeVar("T")
_ADAPTED = "denoiser with LoRAs"  # a loaded component


# Settings of the loaded weights, which a call cannot change.
LOADED = (
  "variant",
  "dtype",
  "attention",
  "mesh",
  "context_parallelism",
  "shard_clips_over_hosts",
)


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
    if components is None or isinstance(components, str | os.PathLike):
      raise ValueError(
        "expected weights that are opened; open a directory with"
        " Pipeline.from_pretrained(DIR)"
      )
    self._components = components
    self.keep_loaded = keep_loaded
    self._loaded: dict[str, Any] = {}
    self._whole: Pipeline | None = None

  @property
  def components(self) -> denoisers.SamplingComponents:
    """The opened weights; those of one tower have the LoRAs of the whole."""
    if self._whole is None:
      return self._components
    loras = self._whole.components.loras
    return dataclasses.replace(self._components, loras=loras)

  @classmethod
  def from_pretrained(
    cls,
    weights: str | os.PathLike[str] | None = None,
    *,
    keep_loaded: bool = True,
    lora: str = "",
    generate: str = denoisers.BOTH,
    **settings: Any,
  ) -> "Pipeline":
    """Open a directory of converted weights.

    Args:
      weights: the directory; `None` for the small Ovi in the package.
      lora: see `set_lora`.
      generate: "both", or "video" or "audio" for that tower alone.
      keep_loaded: see the class.
      **settings: any of `LOADED`, as in `configs/sample.py`.

    Raises:
      ValueError: the weights are missing, damaged or lack a component, or a
        setting is unknown or cannot be; nothing is loaded yet.
    """
    cli.setup_jax()
    if strange := sorted(settings.keys() - set(LOADED)):
      raise ValueError(
        f"{', '.join(strange)}: from_pretrained takes {', '.join(LOADED)}; pass"
        " other settings when the pipeline is called"
      )
    if weights is None:
      weights = synthetic.WEIGHTS
    chosen = settings_lib.Settings.from_overrides(settings)
    opened = opening.open_components(
      storage.locate(weights), chosen, lora, generate
    )
    return cls(opened, keep_loaded=keep_loaded)

  def set_lora(self, lora: str = "") -> None:
    """Apply other LoRAs from now on; the loaded weights stay loaded.

    Args:
      lora: FILE[:STRENGTH] with commas between them, or FILE:VIDEO/AUDIO with
        the strength of each tower; empty for none.

    Raises:
      ValueError: a file is missing or damaged, or does not fit the weights, or
        this pipeline is one of `restricted`; the LoRAs are then as they were.
    """
    if self._whole is not None:
      raise ValueError(
        "set_lora: expected the pipeline of the whole weights, got one of"
        " `restricted`, which has the LoRAs of the whole; call set_lora there"
      )
    self._components = opening.with_loras(self.components, lora)
    self._loaded.pop(_ADAPTED, None)

  def restricted(self, generate: str) -> "Pipeline":
    """These weights for one tower; loaded components and LoRAs are shared.

    `set_lora` of this pipeline changes both.

    Args:
      generate: "both", or "video" or "audio" for that tower alone.

    Raises:
      ValueError: it is unknown, or this pipeline is of another tower.
    """
    components = opening.restricted(self.components, generate)
    if components.generates == self.components.generates:
      return self
    made = Pipeline(components, keep_loaded=self.keep_loaded)
    made._loaded, made._whole = self._loaded, self
    return made

  def __call__(
    self,
    prompt: str | Sequence[str | Sequence[str]],
    *,
    image: str | os.PathLike[str] | None = None,
    last_image: str | os.PathLike[str] | None = None,
    video: str | os.PathLike[str] | None = None,
    audio: str | os.PathLike[str] | None = None,
    extend: str | os.PathLike[str] | None = None,
    voice: str | os.PathLike[str] | None = None,
    seconds: float | None = None,
    keep: str | Sequence[tuple[float, float]] | None = None,
    keep_audio_until: float | None = None,
    noise: str | os.PathLike[str] = "",
    first_frame_endpoint: str = "",
    first_frame_model: str = "",
    first_frame_key_env: str = "",
    first_frame_dir: str | os.PathLike[str] = first_frames.FOLDER,
    progress: bool | Callable[[int, int], Any] = True,
    **settings: Any,
  ) -> Any:
    """Make a clip, or one for each prompt.

    Args:
      prompt: what to see, say and hear; or several. Prompts that are equal are
        made once. With `seconds` or `extend`, a sequence in the place of one
        has a prompt for each window of a long clip, as has a text with `|`
        between them.
      image: picture of the first frame, for all prompts, as all files.
      last_image: picture of the last frame.
      video: file whose picture is given; its sound is generated.
      audio: file whose sound is given; the picture is generated.
      extend: file that is continued: its end is given.
      voice: file with the voice that speaks, 1 to 3 s of it.
      seconds: length of the clip; with `extend`, of what is generated. More
        than the weights' clips have is made in windows, see `windows`.
      keep: intervals in which the picture and sound of `video`, or the sound of
        `audio`, are given, and not outside of them: "0-2,4-5", or pairs of
        seconds.
      keep_audio_until: seconds up to which the sound of `video` is given.
      noise: .npz to start from, see `sample.py --noise`.
      first_frame_endpoint: URL of an OpenAI-compatible API that makes the first
        frames of clips without one.
      first_frame_model: its model.
      first_frame_key_env: environment variable with its API key.
      first_frame_dir: folder in which these pictures are kept.
      progress: whether to draw bars; or a function that is called with the
        finished steps and the total over all clips.
      **settings: the fields of `configs/sample.py` that are not of `LOADED`;
        those left out are what the weights recommend. `guidance_scale` and
        `negative_prompt` are one value for both modalities, or a mapping.
        `batch_size` clips of the same size are made in one batch.

    Returns:
      A `Clip` for one prompt and one sample, else a list of them, in the order
      of prompts and samples.

    Raises:
      ValueError: something about the input is wrong; before weights are loaded.
      denoise.NonFiniteLatentsError: a step ended in NaN or infinity.
    """
    if fixed := sorted(settings.keys() & set(LOADED)):
      raise ValueError(
        f"{', '.join(fixed)}: of the loaded weights; pass it to from_pretrained"
      )
    components = self.components
    recommended = opening.recommended_of(components)
    chosen = settings_lib.Settings.from_overrides(settings, recommended)
    one = isinstance(prompt, str)
    asked = _prompts(prompt)
    if seconds is None and extend is None:
      windows_lib.check_one_prompt(asked)
    requests = [
      dataclasses.replace(request, index=number if len(asked) > 1 else 0)
      for number, text in enumerate(asked, 1)
      for request in requests_lib.from_prompt(
        windows_lib.joined_prompt(text),
        image,
        chosen.mode,
        seconds,
        last_image=last_image,
        video=video,
        audio=audio,
        extend=extend,
        voice=voice,
        keep=keep,
        keep_audio_until=keep_audio_until,
      )
    ]
    if not requests:
      raise ValueError("expected a prompt or several, got none")
    endpoint = first_frames.from_values(
      first_frame_endpoint, first_frame_model, first_frame_key_env
    )
    if endpoint is not None:
      first_frames.check(requests, chosen.mode, components.generates)
      requests = first_frames.fetch(
        requests,
        endpoint,
        storage.locate(first_frame_dir),
        seed=chosen.seed,
        samples_per_prompt=chosen.samples_per_prompt,
        size=opening.clip_size(chosen, components.manifest),
        area=components.geometry.area,
      )
      chosen = dataclasses.replace(chosen, samples_per_prompt=1)
    jobs, given = planning.plan(
      requests, chosen, self.components, pathlib.Path(), noise
    )
    windows = sum(job.num_windows for job in jobs)
    track = tracking.from_progress(
      progress, len(jobs), chosen.num_steps, windows
    )
    clips = self.generate(
      jobs, chosen, lambda made: made.clip, given, track=track
    )
    return clips[0] if one and len(clips) == 1 else clips

  def generate(
    self,
    jobs: Sequence[planning.Job],
    settings: settings_lib.Settings,
    finish: Callable[[clips_lib.Made], T],
    noise: AV[np.ndarray] | None = None,
    *,
    heads: attention_maps.Heads | None = None,
    track: tracking.Track | None = None,
  ) -> list[T]:
    """Make planned clips, batch by batch.

    While a batch is denoised, a background thread finishes the clips of the
    one before. On one CPU device it decodes them, too. Otherwise this thread
    does: a device runs one program after another in any case, needs no memory
    for two at a time, and devices that work together get them in one order.

    Args:
      jobs: see `planning.plan`.
      settings: that they were planned with.
      finish: called with each clip in the background, in the order of batches
        (see `planning.batches`), to write its files for instance. With a clip
        in windows, it is called here: they are denoised while it reads frames.
      noise: video_THWC and audio_TC that all of them start from; `None` for
        that of their seeds.
      heads: measure attention maps, see `attention_maps.measure`; `None` for
        none.
      track: opened for each batch by the number of its first clip (from 1);
        gives the function that is called after each step. It may raise
        `denoise.CancelledError` to drop clips of the batch; other batches go
        on.

    Returns:
      What `finish` returned, in the order of `jobs`, without dropped ones.

    Raises:
      denoise.NonFiniteLatentsError: a step ended in NaN or infinity.
      ValueError: a given file cannot be read, or decoded values are not
        finite; names the clip.
      Exception: of `finish`, at the next step. An exception ends the run: the
        clip that is being finished is completed, the others are dropped.
    """
    components, track = self.components, track or tracking.silent
    negative = settings.negative_prompt
    prompts = {text for job in jobs for text in job.texts}
    _log.info("encoding %d prompts", len(prompts))
    encoder = self._load("text", lambda: encoders.TextEncoder.load(components))
    embedded = encoder.texts([*sorted(prompts), *negative])
    del encoder  # freed before the DiT is loaded, unless it is kept
    with given_encoder.GivenEncoder(components, self._load).encoded(
      jobs
    ) as encoded_of:
      _log.info("loading the DiT on %d device(s)", components.mesh.size)
      denoiser = self._denoiser()
      decoder = self._decoder()
      decodes_here = components.mesh.size > 1 or cli.platform() != "cpu"
      finished: dict[storage.AnyPath, futures.Future[T]] = {}
      number = 1
      with background.Worker(settings.batch_size) as worker:
        for batch in planning.batches(jobs, settings.batch_size):
          if batch[0].windows:
            (job,) = batch
            with track(number, batch) as on_step, job_errors.rows_named(batch):
              number += 1
              made = self._long(
                *(job, settings, embedded, denoiser, decoder),
                *(encoded_of(job), worker.checked(on_step)),
              )
              # Here: its windows are denoised while it is written.
              with contextlib.suppress(denoise.CancelledError):
                finished[job.path] = _done(_finish(finish, made))
            continue
          starts = [noise or self._noise_of(job) for job in batch]
          texts = [embedded[job.text] for job in batch]
          encoded = [encoded_of(job) for job in batch]
          given = [
            conditions.arrays(job.given, files.given, start, job.conditioning)
            for job, files, start in zip(batch, encoded, starts)
          ]
          voices = [f.voice_RC for f in encoded if f.voice_RC is not None]
          # All clips of a batch have one, or none has.
          voices_BRC = np.stack(voices) if voices else None
          dropped: set[int] = set()
          with track(number, batch) as on_step, job_errors.rows_named(batch):
            number += len(batch)
            try:
              latents = denoiser.sample(
                jax.tree.map(lambda *rows: np.stack(rows), *starts),
                texts,
                self._negative(settings, embedded),
                settings,
                conditions.stack(given),
                worker.checked(tracking.dropping(on_step, dropped, len(batch))),
                voices_BRC=voices_BRC,
              )
            except denoise.CancelledError:
              continue
          for row, job in enumerate(batch):
            if row in dropped:
              continue
            own = jax.tree.map(
              operator.itemgetter(slice(row, row + 1)), latents
            )
            measure = None
            if heads is not None:
              measure = functools.partial(
                denoiser.maps,
                own,
                starts[row],
                texts[row],
                conditions.stack(given[row : row + 1]),
                heads,
                None if voices_BRC is None else voices_BRC[row : row + 1],
                job.conditioning,
              )
            made = clips_lib.Made(
              job=job, latents=own, decoder=decoder, measure=measure
            )
            if decodes_here:
              with job_errors.named(job):
                _ = made.clip, made.maps
            finished[job.path] = worker.submit(_finish, finish, made)
    return [finished[j.path].result() for j in jobs if j.path in finished]

  def preview(self, progress: denoise.Progress, row: int) -> previews.Preview:
    """Decode what a step predicts, small.

    Args:
      progress: of the step; see `denoise.Progress.predict` for when.
      row: of the batch.

    Raises:
      ValueError: decoded values are not finite.
    """
    own = jax.tree.map(
      operator.itemgetter(slice(row, row + 1)), progress.predict()
    )
    return previews.decode(self._decoder(), own, progress.finished)

  def maps(
    self,
    job: planning.Job,
    latents: AV[np.ndarray],
    heads: attention_maps.Heads = (),
  ) -> attention_maps.Maps:
    """Attention maps of a clip that is made, from its saved latents.

    Args:
      job: of the clip, of one window.
      latents: video_THWC and audio_TC of the clip.
      heads: see `attention_maps.measure`.
    """
    components = self.components
    encoder = self._load("text", lambda: encoders.TextEncoder.load(components))
    text_SE = encoder.texts([job.text])[job.text]
    noise = self._noise_of(job)
    given = conditions.arrays(job.given, latents, noise, job.conditioning)
    return self._denoiser().maps(
      jax.tree.map(lambda a: jax.numpy.asarray(a[None]), latents),
      noise,
      text_SE,
      conditions.stack([given]),
      heads,
    )

  def _denoiser(self) -> denoisers.Denoiser:
    """The denoiser, with LoRAs."""
    if self._whole is not None:
      return self._whole._denoiser().restricted(self.components)
    components = self.components
    base = self._load("denoiser", components.denoiser)
    if not components.loras:
      return base
    return self._load(_ADAPTED, lambda: base.with_loras(components.loras))

  def _decoder(self) -> decoders.Decoder:
    if self._whole is not None:
      return self._whole._decoder()
    names = self.components.channels.present()
    load = functools.partial(decoders.Decoder.load, self.components, names)
    return self._load("decoder", load)

  def _long(
    self,
    job: planning.Job,
    settings: settings_lib.Settings,
    embedded: Mapping[str, np.ndarray],
    denoiser: denoisers.Denoiser,
    decoder: decoders.Decoder,
    files: given_encoder.Encoded,
    on_step: denoise.OnStep,
  ) -> clips_lib.Made:
    """A clip that is made in windows while it is read.

    Args:
      job: of the clip.
      settings: that it was planned with.
      embedded: text_SE of all prompts.
      denoiser: of the windows.
      decoder: of their latents.
      files: clean latents that the first window is given, and the voice, which
        all windows are given.
      on_step: called with the finished steps of all windows.
    """
    negative = self._negative(settings, embedded)
    encoder: list[encoders.VideoEncoder] = []

    def denoise_window(
      number: int, mask: AV[Any] | None, clean: AV[Any] | None
    ) -> AV[np.ndarray]:
      noise = self._noise_of(job, number)
      given = conditions.arrays(
        job.given if mask is None else mask,
        files.given if clean is None else clean,
        noise,
        job.conditioning,
      )
      latents = denoiser.sample(
        jax.tree.map(lambda a: a[None], noise),
        [embedded[job.texts[number]]],
        negative,
        settings,
        conditions.stack([given]),
        lambda step: on_step(
          dataclasses.replace(
            step,
            finished=number * settings.num_steps + step.finished,
            total=job.num_windows * settings.num_steps,
          )
        ),
        voices_BRC=None if files.voice_RC is None else files.voice_RC[None],
      )
      return jax.tree.map(lambda a: np.asarray(a[0]), latents)

    def encode_frame(frame_HWC: np.ndarray) -> np.ndarray:
      if not encoder:
        load = functools.partial(encoders.VideoEncoder.load, self.components)
        encoder.append(self._load("video_encoder", load))
      latents_BTHWC = encoder[0].encode(frame_HWC[None, None])
      latent_HWC = np.asarray(latents_BTHWC)[0, 0]
      return self.components.require_finite(latent_HWC, "video_vae")

    steps = windows_lib.Steps(
      denoise=denoise_window,
      encode_frame=encode_frame,
      decode_video=decoder.frames_of,
      decode_audio=lambda latents_TC: decoder.wave(
        jax.numpy.asarray(latents_TC[None])
      ),
    )
    long = windows_lib.LongClip(
      job.windows, job.clip, steps, given_encoder.before(job)
    )
    return clips_lib.Made(job=job, decoder=decoder, long=long)

  def _negative(
    self, settings: settings_lib.Settings, embedded: Mapping[str, np.ndarray]
  ) -> AV[np.ndarray]:
    """text_SE of the negative prompt of each tower that is there."""
    return self.components.channels.map(
      lambda name, _: embedded[getattr(settings.negative_prompt, name)]
    )

  def _noise_of(self, job: planning.Job, window: int = 0) -> AV[np.ndarray]:
    """The noise of its seed, video_THWC and audio_TC."""
    seed, channels = job.request.seed, self.components.channels
    assert seed is not None, "expand gives each a seed"
    return noises.sample_noise(seed, job.clip, channels, window)

  def _load(self, name: str, make: Callable[[], T]) -> T:
    """A component, made unless an earlier call kept it."""
    if name in self._loaded:
      return self._loaded[name]
    made = make()
    if self.keep_loaded:
      self._loaded[name] = made
    return made


def _done(result: T) -> "futures.Future[T]":
  """A future that is done."""
  future: futures.Future[T] = futures.Future()
  future.set_result(result)
  return future


def _finish(finish: Callable[[clips_lib.Made], T], made: clips_lib.Made) -> T:
  with job_errors.named(made.job):
    return finish(made)


def _prompts(prompt: Any) -> list[str | Sequence[str]]:
  """The prompts of a call, one for each clip.

  Raises:
    ValueError: it is not text, or several.
  """
  several = [prompt]
  if isinstance(prompt, Iterable) and not isinstance(
    prompt, str | bytes | Mapping | os.PathLike
  ):
    several = list(prompt)
  for each in several:
    windows = each if isinstance(each, list | tuple) else [each]
    for text in windows:
      if not isinstance(text, str):
        raise ValueError(
          "prompt: expected text, or a list with a text for each clip, got"
          f" {type(text).__name__}"
        )
  return several
