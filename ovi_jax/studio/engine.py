"""Makes clips of jobs: one thread owns the devices, others ask it for clips.

Requests are checked whole before they are accepted. Jobs of the same size and
settings are made in one batch. What goes wrong with a job is recorded with it,
and the next one is made. All messages are safe to show to a user: one line, and
no path of this machine.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import BinaryIO
from typing import Protocol

import jax

from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import untrusted
from ovi_jax.media import images
from ovi_jax.media import probe
from ovi_jax.modality import AV
from ovi_jax.sampling import conditions
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import outputs
from ovi_jax.sampling import pipeline as pipelines
from ovi_jax.sampling import planning
from ovi_jax.sampling import previews
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.studio import adapters as adapters_lib
from ovi_jax.studio import jobs

_log = logging.getLogger(__name__)

# Fields of `configs/sample.py` that a request may set.
SETTINGS = (
  "height",
  "width",
  "seed",
  "num_steps",
  "solver",
  "flow_shift",
  "guidance_scale",
  "slg_layer",
  "negative_prompt",
  "conditioning",
)
FILES = ("image", "last_image", "video", "audio", "extend")
GIVEN = (*FILES, "keep", "keep_audio_until")
_PICTURES = ("image", "last_image")
_CHUNK = 1 << 20
_RETRY = 1.0  # seconds
_MAX_MESSAGE = 1000  # characters
# Absolute paths of POSIX and Windows; their last part stays.
_PATH = re.compile(
  r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\\/\s:;,'\"]+){2,}[\\/]?"
)

# A file that is given: its path, or an open file, read from its beginning.
Source = str | os.PathLike[str] | BinaryIO


class RequestError(ValueError):
  """A request that cannot be fulfilled; one line, without paths."""


class QueueFullError(RequestError):
  """As many jobs as allowed wait already."""


class _ClosedError(Exception):
  """The engine is being closed; its jobs go back to the queue."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Bounds of what is accepted.

  Attributes:
    file_bytes: of each given file.
    pixels: of a given picture, or of a frame of a given video.
    seconds: of given video or sound.
    prompt_length: characters.
    queued: jobs that wait.
  """

  file_bytes: int = 64 << 20
  pixels: int = 50_000_000
  seconds: float = 300.0
  prompt_length: int = 10_000
  queued: int = 1000


class Pipeline(Protocol):
  """What the engine needs of a `sampling.pipeline.Pipeline`."""

  components: denoisers.SamplingComponents

  def set_lora(self, lora: str = "") -> None: ...

  def generate(
    self,
    jobs: Sequence[planning.Job],
    settings: settings_lib.Settings,
    finish: Any,
    *,
    track: pipelines.Track | None = None,
  ) -> Any: ...

  def preview(
    self, progress: denoise.Progress, row: int
  ) -> previews.Preview: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pace:
  """Seconds that the latest batch took: before its steps, for each, after."""

  before: float
  step: float
  after: float


@dataclasses.dataclass(kw_only=True)
class _Live:
  """What is known of a running job besides its row."""

  num_steps: int
  started: float
  step: int = 0
  first_step_at: float = 0.0
  last_step_at: float = 0.0
  preview: previews.Preview | None = None

  def pace(self) -> float | None:
    """Seconds a step, without the first, which may compile the program."""
    if self.step < 2:
      return None
    return (self.last_step_at - self.first_step_at) / (self.step - 1)

  def seconds_left(self, latest: _Pace | None) -> float | None:
    """Estimated time until the clip is written; `None` if unknown."""
    step = self.pace() or (latest and latest.step)
    if step is None:
      return None
    left = (self.num_steps - self.step) * step
    if latest is not None:
      left += latest.after
      if not self.step:
        elapsed = time.monotonic() - self.started
        left += max(0.0, latest.before - elapsed)
    return left


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Planned:
  """A running job, and the clip that it is."""

  id: str
  clip: planning.Job
  settings: settings_lib.Settings
  owns_clip: bool


class Engine:
  """Makes the clips of a store's jobs. Its methods may be called by any thread.

  It is a context manager: the thread that makes clips runs within it.
  """

  def __init__(
    self,
    pipeline: Pipeline,
    store: jobs.JobStore,
    *,
    batch_size: int = 1,
    preview_every: int = 4,
    save_latents: bool = True,
    lora: str = "",
    adapters: adapters_lib.Adapters | None = None,
    limits: Limits | None = None,
    warm_up: bool = False,
  ):
    """Start no thread yet.

    Args:
      pipeline: see `Pipeline`; used by the engine's thread alone, but for
        `components`.
      store: of jobs; its folder is where clips are written.
      batch_size: clips that are made at once, at most.
      preview_every: steps between previews.
      save_latents: whether latents are written beside each clip.
      lora: that `pipeline` has.
      adapters: LoRA files that clients may ask for.
      limits: of requests.
      warm_up: load and compile what a clip needs before one is asked for.
    """
    self._warms_up = warm_up
    self.pipeline, self.store = pipeline, store
    self.batch_size, self.preview_every = batch_size, preview_every
    self.save_latents, self.limits = save_latents, limits or Limits()
    self.lora = self._applied_lora = lora
    self.adapters = adapters or adapters_lib.Adapters()
    outputs.check_directory(store.folder)
    self._validating = threading.Lock()  # decoded pictures are large
    # No clip is deleted between being found and being given to a job.
    self._clips = threading.Lock()
    self._wake, self._closing = threading.Event(), threading.Event()
    # Guards what follows; notified of every change of a job.
    self._changed = threading.Condition()
    self._version = 0
    self._live: dict[str, _Live] = {}
    self._watched: set[str] = set()
    self._cancelled: set[str] = set()
    self._pace: _Pace | None = None
    # Of the thread: jobs that are taken no more, whether their end is stored or
    # not.
    self._unended: set[str] = set()
    self._thread = threading.Thread(
      target=self._run, name="ovi_jax_engine", daemon=True
    )

  def start(self) -> None:
    """Start the thread that makes clips."""
    self._thread.start()

  def close(self) -> None:
    """End the thread after its step; running jobs are queued again."""
    self._closing.set()
    self._wake.set()
    if self._thread.is_alive():
      self._thread.join()
    self._notify()

  def __enter__(self) -> "Engine":
    self.start()
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def submit(
    self,
    prompt: str,
    settings: Mapping[str, Any] | None = None,
    given: Mapping[str, Any] | None = None,
    *,
    lora: str | None = None,
  ) -> jobs.Job:
    """Check a request and queue it.

    Args:
      prompt: what to see, say and hear.
      settings: of `SETTINGS`; those left out, or `None`, are what the weights
        recommend, and the seed is random.
      given: of `GIVEN`; files are a `Source` each and are copied.
      lora: files and strengths; `None` for those of `set_lora`.

    Returns:
      The job, which is stored: it is made even if the process is restarted.

    Raises:
      QueueFullError: too many jobs wait.
      RequestError: something about the request is wrong.
      jobs.StorageError: it cannot be stored.
    """
    if self.store.count(jobs.QUEUED) >= self.limits.queued:
      raise QueueFullError(
        f"{self.limits.queued} clips wait already; try again later"
      )
    settings = {n: v for n, v in (settings or {}).items() if v is not None}
    given = {n: v for n, v in (given or {}).items() if v is not None}
    settings.setdefault("seed", secrets.randbelow(requests_lib.SEEDS))
    for name in ("guidance_scale", "negative_prompt"):
      if isinstance(settings.get(name), AV):
        settings[name] = settings[name].present()
    id = jobs.new_id()
    folder = self.store.given_folder(id)
    with self._public_errors(), contextlib.ExitStack() as stack:
      _check_names("settings", settings, SETTINGS)
      _check_names("given", given, GIVEN)
      if len(prompt) > self.limits.prompt_length:
        raise ValueError(
          f"expected a prompt of at most {self.limits.prompt_length}"
          f" characters, got {len(prompt)}"
        )
      stack.callback(shutil.rmtree, folder, ignore_errors=True)
      copied = self._copy(given, folder)
      with self._validating:
        self._check_files(copied, folder)
        if lora is None:
          lora = self.lora
        elif lora != self.lora:
          planning.with_loras(self.pipeline.components, lora)
        request = jobs.ClipRequest(
          prompt=prompt, settings=settings, given=copied, lora=lora
        )
        planned, chosen = self._plan(request, folder)
      height, width = planned.clip.pixels
      job = self.store.add(
        id,
        request,
        batch_key=_batch_key(request, planned),
        num_steps=chosen.num_steps,
        height=height,
        width=width,
        seconds=_seconds(planned),
      )
      stack.pop_all()
    self._wake.set()
    self._notify()
    return self._estimated(job)

  def again(
    self, id: str, prompt: str | None = None, **settings: Any
  ) -> jobs.Job:
    """Queue the request of a job once more, with changes.

    Args:
      id: of the job; its given files are copied.
      prompt: another one; `None` for the same.
      **settings: of `SETTINGS`, such as another seed.

    Raises:
      jobs.UnknownJobError: there is none of this id.
      RequestError: as `submit`, like all other errors.
    """
    request, folder = self.store.get(id).request, self.store.given_folder(id)
    given = {
      name: folder / value if name in FILES else value
      for name, value in request.given.items()
    }
    return self.submit(
      request.prompt if prompt is None else prompt,
      {**request.settings, **settings},
      given,
      lora=request.lora,
    )

  def _copy(
    self, given: Mapping[str, Any], folder: pathlib.Path
  ) -> dict[str, Any]:
    """Copy given files into a folder; their names there take their places."""
    copied = dict(given)
    if "keep" in given:
      copied["keep"] = [list(x) for x in conditions.intervals(given["keep"])]
    for name in FILES:
      if name in given:
        folder.mkdir(parents=True, exist_ok=True)
        _copy_file(name, given[name], folder / name, self.limits.file_bytes)
        copied[name] = name
    return copied

  def _check_files(
    self, given: Mapping[str, Any], folder: pathlib.Path
  ) -> None:
    """ValueError if a given file is larger than allowed, by its header."""
    for name in given.keys() & set(FILES):
      path, area = folder / name, 0
      try:
        if name in _PICTURES:
          rows, columns = images.stored_size(path)
          area = rows * columns
        else:
          facts = probe.read(path, video=name != "audio")
          area = facts.width * facts.height
          seconds = max(facts.duration, probe.seconds(path))
          if not seconds <= self.limits.seconds:
            raise ValueError(
              f"expected at most {self.limits.seconds:g} seconds, found"
              f" {seconds:.0f}; cut it"
            )
      except ValueError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{name}: {said}") from error
      if area > self.limits.pixels:
        raise ValueError(
          f"{name}: expected at most {self.limits.pixels} pixels, found {area};"
          " make it smaller"
        )

  def _plan(
    self, request: jobs.ClipRequest, folder: pathlib.Path
  ) -> tuple[planning.Job, settings_lib.Settings]:
    """The clip that a request asks for; reads given files.

    Raises:
      ValueError: the request cannot be fulfilled.
    """
    components = self.pipeline.components
    chosen = settings_lib.Settings.from_overrides(
      {**request.settings, "batch_size": self.batch_size},
      planning.recommended_of(components),
    )
    given = {
      name: folder / value if name in FILES else value
      for name, value in request.given.items()
    }
    image = given.pop("image", None)
    asked = requests_lib.from_prompt(
      request.prompt, image, chosen.mode, **given
    )
    (planned,), _ = planning.plan(
      asked, chosen, components, self.store.folder, ""
    )
    return planned, chosen

  def get(self, id: str) -> jobs.Job:
    """A job as it is now.

    Raises:
      jobs.UnknownJobError: there is none of this id.
    """
    return self._estimated(self.store.get(id))

  def query(self, **arguments: Any) -> list[jobs.Job]:
    """Jobs as they are now, see `jobs.JobStore.query`."""
    return [self._estimated(job) for job in self.store.query(**arguments)]

  def cancel(self, id: str) -> jobs.Job:
    """Cancel a job; a running one ends with its step.

    Returns:
      The job; one that has ended stays as it is.

    Raises:
      jobs.UnknownJobError: there is none of this id.
    """
    if self.store.cancel(id):
      with self._changed:
        if id in self._live:
          self._cancelled.add(id)
        else:
          self._watched.discard(id)
      self._notify()
    return self.get(id)

  def delete(self, id: str) -> None:
    """Forget a job, its given files, and its clip if it alone has made it.

    Raises:
      jobs.UnknownJobError: there is none of this id.
    """
    self.cancel(id)
    with self._clips:
      if clip := self.store.delete(id):
        self._remove_clip(self.store.folder / clip)
    self._notify()

  def preview(self, id: str) -> previews.Preview | None:
    """The latest preview of a running job; `None` if there is none.

    Previews are made of jobs that somebody asks for: from the first call, or
    from `events`, on.

    Raises:
      jobs.UnknownJobError: there is none of this id.
    """
    status = self.store.get(id).status
    with self._changed:
      live = self._live.get(id) if status == jobs.RUNNING else None
      if live is not None or status == jobs.QUEUED:
        self._watched.add(id)
      return None if live is None else live.preview

  def events(self, id: str, *, seconds: float = 10.0) -> Iterator[jobs.Job]:
    """Follow a job: yields it now and whenever it has changed, to its end.

    Args:
      id: of the job.
      seconds: yield the job at least as often, changed or not.

    Raises:
      jobs.UnknownJobError: there is none of this id, or it is deleted.
    """
    last, shown_at = None, 0.0
    while True:
      with self._changed:
        version = self._version
      preview, job = self.preview(id), self.get(id)
      shown = job.status, job.step, job.position, preview and preview.step
      if shown != last or time.monotonic() - shown_at >= seconds:
        last, shown_at = shown, time.monotonic()
        yield job
      if job.has_ended or self._closing.is_set():
        return
      self._await_change(version, seconds)

  def wait(self, id: str, seconds: float | None = None) -> jobs.Job:
    """Wait until a job has ended.

    Args:
      id: of the job.
      seconds: wait no longer.

    Returns:
      The job as it then is.

    Raises:
      jobs.UnknownJobError: there is none of this id, or it is deleted.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while True:
      with self._changed:
        version = self._version
      job = self.get(id)
      left = None if end is None else end - time.monotonic()
      late = left is not None and left <= 0
      if job.has_ended or late or self._closing.is_set():
        return job
      self._await_change(version, left)

  def set_lora(self, lora: str = "") -> None:
    """Make requests from now on with other LoRAs.

    Args:
      lora: see `Pipeline.set_lora`.

    Raises:
      ValueError: a file is missing or damaged, or does not fit the weights; the
        LoRAs are then as they were.
    """
    with self._public_errors():
      planning.with_loras(self.pipeline.components, lora)
    self.lora = lora

  def _notify(self) -> None:
    with self._changed:
      self._version += 1
      self._changed.notify_all()

  def _await_change(self, version: int, seconds: float | None) -> None:
    with self._changed:
      self._changed.wait_for(
        lambda: self._version != version or self._closing.is_set(), seconds
      )

  def _estimated(self, job: jobs.Job) -> jobs.Job:
    """A job with its step, and how long it will take."""
    with self._changed:
      pace, live = self._pace, self._live.get(job.id)
      running = max(
        (x.seconds_left(pace) or 0.0 for x in self._live.values()), default=0.0
      )
      if job.status == jobs.RUNNING and live is not None:
        return dataclasses.replace(
          job, step=live.step, seconds_left=live.seconds_left(pace)
        )
    if job.status != jobs.QUEUED or job.position is None or pace is None:
      return job
    rest = pace.before + pace.after
    ahead = self.store.steps_ahead(job.id) * pace.step
    ahead += (job.position - 1) * rest
    left = running + ahead / self.batch_size + job.num_steps * pace.step + rest
    return dataclasses.replace(job, seconds_left=left)

  def _run(self) -> None:
    """The engine's thread: take jobs and make them until it is closed."""
    if self._warms_up and not self.store.count(jobs.QUEUED):
      self._warm_up()
    while True:
      self._wake.clear()
      if self._closing.is_set():  # set before it wakes this thread
        return
      try:
        for id in list(self._unended):
          self.store.interrupt(id)
          self._unended.discard(id)
        taken = self.store.take(self.batch_size)
        if not taken:
          self._wake.wait()
          continue
        self._make_live(taken)
      except Exception as error:  # a full disk; later jobs can be made
        _log.error("the queue stands still", exc_info=error)
        self._closing.wait(_RETRY)

  def _warm_up(self) -> None:
    """Make a short run whose clip is not kept."""
    request = jobs.ClipRequest(
      prompt="Rain.", settings={"seed": 0, "num_steps": 2}, lora=self.lora
    )

    @contextlib.contextmanager
    def track(*_: Any) -> Iterator[denoise.OnStep]:
      def on_step(progress: denoise.Progress) -> None:
        if self._closing.is_set():
          raise _ClosedError
        if progress.finished == 1:
          self.pipeline.preview(progress, 0)

      yield on_step

    _log.info("loading and compiling; clips that are asked for now wait")
    start = time.monotonic()
    try:
      clip, settings = self._plan(request, self.store.folder)
      self.pipeline.generate(
        [clip], settings, lambda made: made.clip, track=track
      )
      _log.info("ready after %.0f s", time.monotonic() - start)
    except _ClosedError:
      pass
    except Exception as error:  # the jobs to come have reasons of their own
      _log.error("the first run failed", exc_info=error)

  def _make_live(self, taken: Sequence[jobs.Job]) -> None:
    """Make the clips of jobs, with what is known of them while they run."""
    with self._changed:
      for job in taken:
        self._live[job.id] = _Live(
          num_steps=job.num_steps, started=time.monotonic()
        )
    self._notify()
    try:
      self._make([job for job in taken if self.store.is_running(job.id)])
    finally:
      with self._changed:
        for job in taken:
          self._live.pop(job.id, None)
          self._watched.discard(job.id)
          self._cancelled.discard(job.id)
      self._unended.update(job.id for job in taken)
      self._notify()

  def _make(self, taken: Sequence[jobs.Job]) -> None:
    """Make the clips of running jobs, and end each of them."""
    ready: dict[str, _Planned] = {}
    for job in taken:
      try:
        planned = self._prepared(job, [x.clip.path for x in ready.values()])
      except jobs.StorageError:
        raise  # the jobs are queued again once that can be stored
      except Exception as error:  # of this job alone
        self._fail(job.id, error)
        continue
      if planned is not None:
        ready[job.id] = planned
    self._generate(list(ready.values()))

  def _prepared(
    self, job: jobs.Job, reserved: Sequence[Any]
  ) -> _Planned | None:
    """Plan a running job; `None` if its clip is there, or will be.

    Args:
      job: the job.
      reserved: paths of other clips of its batch.
    """
    request = job.request
    if request.lora != self._applied_lora:
      self.pipeline.set_lora(request.lora)
      self._applied_lora = request.lora
    folder = self.store.given_folder(job.id)
    clip, settings = self._plan(request, folder)
    with self._clips:
      return self._claimed(job.id, clip, settings, reserved)

  def _claimed(
    self,
    id: str,
    clip: planning.Job,
    settings: settings_lib.Settings,
    reserved: Sequence[Any],
  ) -> _Planned | None:
    """Choose the name of a planned clip, see `_prepared`."""
    recipe = self._relative(clip.recipe)
    for number in itertools.count(1):
      path = clip.path
      if number > 1:
        path = path.with_name(f"{path.stem}_{number}{path.suffix}")
      if path in reserved:
        # The same clip, or one of the same name; see when that one is there.
        self.store.put_back(id)
        return None
      beside = [outputs.latents_of(path)] if self.save_latents else []
      try:
        complete = outputs.is_complete(path, recipe, beside)
      except ValueError:  # another clip has this name
        continue
      # Written by this job before its process was killed, maybe.
      owns_clip = self.store.has_claimed(id, path.name)
      if complete:
        self.store.finish(id, path.name, owns_clip=owns_clip)
        return None
      if not path.exists():
        self.store.claim(id, path.name)
        owns_clip = True
      clip = dataclasses.replace(clip, path=path, recipe=recipe)
      return _Planned(id=id, clip=clip, settings=settings, owns_clip=owns_clip)
    raise AssertionError

  def _relative(self, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe with paths that begin at the output folder, or are names."""

    def shown(path: str) -> str:
      with contextlib.suppress(ValueError):
        return pathlib.Path(path).relative_to(self.store.folder).as_posix()
      return pathlib.Path(path).name

    def walk(value: Any) -> Any:
      if isinstance(value, Mapping):
        return {
          name: shown(part)
          if name == "path" and isinstance(part, str)
          else walk(part)
          for name, part in value.items()
        }
      return [walk(x) for x in value] if isinstance(value, list) else value

    return walk(recipe)

  def _generate(self, batch: Sequence[_Planned]) -> None:
    """Make a batch; if it fails, each of its clips alone."""
    if not batch:
      return
    by_path = {planned.clip.path: planned for planned in batch}

    def finish(made: pipelines.Made) -> None:
      planned = by_path[made.job.path]
      try:
        self._write(planned, made)
      except (denoise.CancelledError, _ClosedError):
        raise  # a clip in windows is denoised while it is written
      except jobs.StorageError:
        raise  # the clip is there, and found when its job is taken again
      except Exception as error:  # of this job alone
        self._fail(planned.id, error)

    try:
      self.pipeline.generate(
        [planned.clip for planned in batch],
        batch[0].settings,
        finish,
        track=lambda _, clips: self._track([by_path[c.path] for c in clips]),
      )
    except _ClosedError:
      for planned in batch:
        self.store.put_back(planned.id)
    except jobs.StorageError:
      raise
    except Exception as error:  # jobs that come after these can be made
      if len(batch) == 1:
        self._fail(batch[0].id, error)
        return
      _log.warning("a batch failed, its clips are made one by one: %s", error)
      for planned in batch:
        if self.store.is_running(planned.id):
          self._generate([planned])

  @contextlib.contextmanager
  def _track(self, batch: Sequence[_Planned]) -> Iterator[denoise.OnStep]:
    """Progress, previews and cancellation of a batch."""
    for planned in batch:
      with self._changed:
        live = self._live[planned.id]
        live.step, live.preview = 0, None

    def on_step(progress: denoise.Progress) -> None:
      if self._closing.is_set():
        raise _ClosedError
      now = time.monotonic()
      with self._changed:
        for planned in batch:
          live = self._live[planned.id]
          if progress.finished == 1:
            live.first_step_at = now
          live.step, live.last_step_at = progress.finished, now
        cancelled = [x.id in self._cancelled for x in batch]
        watched = [x.id in self._watched for x in batch]
      due = (
        progress.finished % self.preview_every == 0
        and progress.finished < progress.total
      )
      for row, planned in enumerate(batch):
        if due and watched[row] and not cancelled[row]:
          self._show(planned, progress, row)
      self._notify()
      if any(cancelled):
        raise denoise.CancelledError(
          [row for row, is_cancelled in enumerate(cancelled) if is_cancelled]
        )

    yield on_step

  def _show(
    self, planned: _Planned, progress: denoise.Progress, row: int
  ) -> None:
    """Make a preview."""
    try:
      preview = self.pipeline.preview(progress, row)
    except Exception as error:  # no memory for it; the clip can be made
      _log.warning("no preview of %s", planned.id, exc_info=error)
      return
    with self._changed:
      self._live[planned.id].preview = preview

  def _write(self, planned: _Planned, made: pipelines.Made) -> None:
    """Write a clip and end its job, unless it is cancelled."""
    if planned.id in self._cancelled:
      return
    path = planned.clip.path
    made.write(path, save_latents=self.save_latents)
    if not self.store.finish(
      planned.id, path.name, owns_clip=planned.owns_clip
    ):
      if planned.owns_clip:
        self._remove_clip(path)
      return
    _log.info("wrote %s", path)
    now = time.monotonic()
    with self._changed:
      live = self._live[planned.id]
      if step := live.pace():
        self._pace = _Pace(
          before=max(0.0, live.first_step_at - live.started - step),
          step=step,
          after=now - live.last_step_at,
        )
    self._notify()

  def _remove_clip(self, path: Any) -> None:
    """Remove the files of a clip, the mp4 first."""
    for each in (path, path.with_suffix(".json"), outputs.latents_of(path)):
      each.unlink(missing_ok=True)

  def _fail(self, id: str, error: Exception) -> None:
    """End a job with an error."""
    if isinstance(error, (ValueError, OSError)):
      said = self.public_message(error)
      _log.warning("%s failed: %s", id, error)
    else:
      said = f"internal error ({type(error).__name__}); see the server's log"
      _log.error("%s failed", id, exc_info=error)
    self.store.fail(id, said)
    self._notify()

  @contextlib.contextmanager
  def _public_errors(self) -> Iterator[None]:
    """Errors of requests in one line, without paths of this machine."""
    try:
      yield
    except ValueError as error:
      raise RequestError(self.public_message(error)) from error
    except OSError as error:
      raise jobs.StorageError(self.public_message(error)) from error

  def public_message(self, error: Exception) -> str:
    """What an error says, in one line, without paths of this machine."""
    if isinstance(error, OSError):
      return untrusted.printable(error.strerror or type(error).__name__)
    said = str(error).removeprefix("unfit files:\n  row 1: ")
    given = self.store.folder / jobs.FOLDER / "given"
    said = re.sub(
      rf"{re.escape(str(given))}[\\/]\w+[\\/]", "", said.replace("\n", " ")
    )
    weights = self.pipeline.components.weights
    roots = (weights, self.store.folder, self.adapters.folder)
    for root in map(str, filter(None, roots)):
      said = said.replace(root + os.sep, "")
      if os.sep in root:  # others, such as `samples`, are words, too
        said = said.replace(root, "…")
    said = _PATH.sub(lambda m: re.split(r"[\\/]", m[0].rstrip("\\/"))[-1], said)
    return untrusted.printable(" ".join(said.split()), _MAX_MESSAGE)


def _check_names(
  what: str, values: Mapping[str, Any], known: Sequence[str]
) -> None:
  """ValueError if a name is unknown."""
  if strange := sorted(values.keys() - set(known)):
    near = config_lib.nearest(strange[0], known)
    raise ValueError(
      f"{what}: {strange[0]!r:.60} is unknown{near}; known are"
      f" {', '.join(known)}"
    )


def _copy_file(
  name: str, source: Source, target: pathlib.Path, limit: int
) -> None:
  """Copy a given file.

  Raises:
    ValueError: there is none, it is no regular file, or larger than the limit.
  """
  try:
    with contextlib.ExitStack() as stack:
      if isinstance(source, (str, os.PathLike)):
        if kind := untrusted.irregular(source):
          raise ValueError(f"{name}: expected a regular file, found {kind}")
        file = stack.enter_context(open(source, "rb"))
      else:
        source.seek(0)
        file = source
      written, left = stack.enter_context(target.open("wb")), limit
      while part := file.read(min(_CHUNK, left + 1)):
        left -= len(part)
        if left < 0:
          raise ValueError(
            f"{name}: expected a file of at most {limit / 2**20:g} MiB, found a"
            " larger one"
          )
        written.write(part)
  except FileNotFoundError as error:
    raise ValueError(f"{name}: there is no such file") from error


def _seconds(planned: planning.Job) -> float:
  """Length of a clip, with what is shown of an extended file before it."""
  before = planned.extended.start if planned.extended else 0.0
  return before + planned.clip.frames / geometry.FPS


def _batch_key(request: jobs.ClipRequest, planned: planning.Job) -> str:
  """Equal for requests that can be made in one batch."""
  settings = {n: v for n, v in request.settings.items() if n != "seed"}
  parts = conditions.split(planned.given, planned.conditioning)
  kinds = str(jax.tree.structure(parts))
  return json.dumps(
    [settings, request.lora, str(planned.clip), kinds], sort_keys=True
  )
