"""Makes clips of jobs: one thread owns the devices, others ask it for clips.

Requests are checked whole before they are accepted (`requests`). Jobs of the
same size and settings are made in one batch. What goes wrong with a job is
recorded with it, and the next one is made.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import pathlib
import secrets
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from typing import Any
from typing import Protocol
from typing import TypeVar

from ovi_jax.modality import AV
from ovi_jax.sampling import attention_maps
from ovi_jax.sampling import clips as clips_lib
from ovi_jax.sampling import denoise
from ovi_jax.sampling import denoiser as denoisers
from ovi_jax.sampling import opening
from ovi_jax.sampling import outputs
from ovi_jax.sampling import planning
from ovi_jax.sampling import previews
from ovi_jax.sampling import requests as requests_lib
from ovi_jax.sampling import settings as settings_lib
from ovi_jax.sampling import tracking
from ovi_jax.studio import adapters as adapters_lib
from ovi_jax.studio import jobs
from ovi_jax.studio import progress as progress_lib
from ovi_jax.studio import requests

_log = logging.getLogger(__name__)
T = TypeVar("T")

_RETRY = 1.0  # seconds
_MAX_CALLS = 8  # of `Engine.call` that wait


class QueueFullError(requests.RequestError):
  """As many jobs as allowed wait already."""


class _ClosedError(Exception):
  """The engine is being closed; its jobs go back to the queue."""


class Pipeline(Protocol):
  """What the engine needs of a `sampling.pipeline.Pipeline`."""

  @property
  def components(self) -> denoisers.SamplingComponents: ...

  def set_lora(self, lora: str = "") -> None: ...

  def generate(
    self,
    jobs: Sequence[planning.Job],
    settings: settings_lib.Settings,
    finish: Any,
    *,
    track: tracking.Track | None = None,
  ) -> Any: ...

  def restricted(self, generate: str) -> "Pipeline": ...

  def maps(
    self, job: planning.Job, latents: AV[Any]
  ) -> attention_maps.Maps: ...

  def preview(
    self, progress: denoise.Progress, row: int
  ) -> previews.Preview: ...


# A function of the pipeline, and who waits for its result.
_Call = tuple[Callable[[Pipeline], Any], "futures.Future[Any]"]


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
    limits: requests.Limits | None = None,
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
    self.save_latents, self.limits = save_latents, limits or requests.Limits()
    self.lora = self._applied_lora = lora
    self.adapters = adapters or adapters_lib.Adapters()
    outputs.check_directory(store.folder)
    self.planner = requests.Planner(
      pipeline,
      store,
      batch_size=batch_size,
      limits=self.limits,
      adapters=self.adapters,
    )
    # No clip is deleted between being found and being given to a job.
    self._clips = threading.Lock()
    self._wake, self._closing = threading.Event(), threading.Event()
    # Guards what follows; notified of every change of a job.
    self._changed = threading.Condition()
    self._version = 0
    self._live: dict[str, progress_lib.Live] = {}
    self._watched: set[str] = set()
    self._cancelled: set[str] = set()
    self._pace: progress_lib.Pace | None = None
    self._calls: collections.deque[_Call] = collections.deque()
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
    with self._changed:
      waiting, self._calls = self._calls, collections.deque()
    for _, future in waiting:
      future.set_exception(requests.RequestError("the server is stopping"))
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
    seconds: float | None = None,
    generate: str = denoisers.BOTH,
    lora: str | None = None,
  ) -> jobs.Job:
    """Check a request and queue it.

    Args:
      prompt: what to see, say and hear.
      settings: of `requests.SETTINGS`; those left out, or `None`, are what the
        weights recommend, and the seed is random.
      given: of `requests.GIVEN`; files are a `requests.Source` each and are
        copied. `trim` has the start and end that are used of a file, in
        seconds, by its name.
      seconds: length of the clip, see `sampling.requests.Request`.
      generate: video with sound, or one alone: a key of `denoiser.NEEDS`.
      lora: files and strengths; `None` for those of `set_lora`.

    Returns:
      The job, which is stored: it is made even if the process is restarted.

    Raises:
      QueueFullError: too many jobs wait.
      requests.RequestError: something about the request is wrong.
      jobs.StorageError: it cannot be stored.
    """
    if self.store.count(jobs.QUEUED) >= self.limits.queued:
      raise QueueFullError(
        f"{self.limits.queued} clips are queued already; try again later"
      )
    settings = {n: v for n, v in (settings or {}).items() if v is not None}
    given = {n: v for n, v in (given or {}).items() if v is not None}
    settings.setdefault("seed", secrets.randbelow(requests_lib.SEEDS))
    lora = self.lora if lora is None else lora
    asked = jobs.ClipRequest(
      prompt=prompt,
      settings=settings,
      given=given,
      seconds=seconds,
      generate=generate,
      lora=lora,
    )
    id, new_lora = jobs.new_id(), lora != self.lora
    with self.planner.checked(id, asked, new_lora=new_lora) as checked:
      job = self.store.add(id, checked.request, **checked.facts)
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
      **settings: of `requests.SETTINGS`, such as another seed.

    Raises:
      jobs.UnknownJobError: there is none of this id.
      requests.RequestError: as `submit`, like all other errors.
    """
    request = self.store.get(id).request
    return self.repeat(
      request, self.store.given_folder(id), prompt=prompt, **settings
    )

  def repeat(
    self,
    request: jobs.ClipRequest,
    folder: pathlib.Path,
    prompt: str | None = None,
    **settings: Any,
  ) -> jobs.Job:
    """Queue a request once more, with changes.

    Args:
      request: as it was accepted.
      folder: of its given files, which are copied.
      prompt: see `again`.
      **settings: see `again`.

    Raises:
      requests.RequestError: as `submit`, like all other errors.
    """
    given = {
      name: folder / value if name in requests.FILES else value
      for name, value in request.given.items()
    }
    return self.submit(
      request.prompt if prompt is None else prompt,
      {**request.settings, **settings},
      given,
      seconds=request.seconds,
      generate=request.generate,
      lora=request.lora,
    )

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

  def kept_clips(self) -> contextlib.AbstractContextManager[Any]:
    """While it is entered, no clip is deleted and no name is claimed."""
    return self._clips

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
    with self.planner.public_errors():
      opening.with_loras(self.pipeline.components, lora)
    self.lora = lora

  def call(self, function: Callable[[Pipeline], T]) -> T:
    """Run a function on the thread that owns the devices, between batches.

    Args:
      function: of the pipeline; its LoRAs are those of `set_lora`'s argument of
        the latest batch.

    Raises:
      requests.RequestError: too many wait, or the engine is being closed.
    """
    future: futures.Future[T] = futures.Future()
    with self._changed:
      if self._closing.is_set() or len(self._calls) >= _MAX_CALLS:
        raise requests.RequestError("the server is busy; try again later")
      self._calls.append((function, future))
    self._wake.set()
    return future.result()

  def apply_lora(self, lora: str) -> None:
    """Make the pipeline have these LoRAs; of the engine's thread alone."""
    if lora != self._applied_lora:
      self.pipeline.set_lora(lora)
      self._applied_lora = lora

  def _answer_calls(self) -> None:
    """Run what `call` was asked for."""
    while not self._closing.is_set():
      with self._changed:
        if not self._calls:
          return
        function, future = self._calls.popleft()
      try:
        future.set_result(function(self.pipeline))
      except Exception as error:  # of whoever called
        future.set_exception(error)

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
        self._answer_calls()
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
      clip, settings = self.planner.plan(request, self.store.folder)
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
        self._live[job.id] = progress_lib.Live(
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
    self.apply_lora(request.lora)
    folder = self.store.given_folder(job.id)
    clip, settings = self.planner.plan(request, folder)
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
    recipe = self.relative(clip.recipe)
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
        # Of a clip that was removed without them.
        attention_maps.remove_stale(path)
        self.store.claim(id, path.name)
        owns_clip = True
      clip = dataclasses.replace(clip, path=path, recipe=recipe)
      return _Planned(id=id, clip=clip, settings=settings, owns_clip=owns_clip)
    raise AssertionError

  def relative(self, recipe: dict[str, Any]) -> dict[str, Any]:
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

    def finish(made: clips_lib.Made) -> None:
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
      self.pipeline.restricted(batch[0].clip.generates).generate(
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

  def _write(self, planned: _Planned, made: clips_lib.Made) -> None:
    """Write a clip and end its job, unless it is cancelled."""
    if planned.id in self._cancelled:
      return
    path = planned.clip.path
    made.write(path, save_latents=self.save_latents)
    if not self.store.finish(
      planned.id, path.name, owns_clip=planned.owns_clip
    ):
      if planned.owns_clip:
        with self._clips:
          self._remove_clip(path)
      return
    _log.info("wrote %s", path)
    now = time.monotonic()
    with self._changed:
      live = self._live[planned.id]
      if step := live.pace():
        self._pace = progress_lib.Pace(
          before=max(0.0, live.first_step_at - live.started - step),
          step=step,
          after=now - live.last_step_at,
        )
    self._notify()

  def _remove_clip(self, path: Any) -> None:
    """Remove the files of a clip, the mp4 first."""
    for each in (path, path.with_suffix(".json"), outputs.latents_of(path)):
      each.unlink(missing_ok=True)
    attention_maps.remove_stale(path)

  def _fail(self, id: str, error: Exception) -> None:
    """End a job with an error."""
    if isinstance(error, (ValueError, OSError)):
      said = self.planner.public_message(error)
      _log.warning("%s failed: %s", id, error)
    else:
      said = f"internal error ({type(error).__name__}); see the server's log"
      _log.error("%s failed", id, exc_info=error)
    self.store.fail(id, said)
    self._notify()
