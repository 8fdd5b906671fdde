"""Supervised worker processes: no clip can hang or crash a run.

The parent sends shard indices to workers and receives their messages. A worker
that exceeds the time limit of a clip is killed; a worker may also crash, for
example in a decoder. The shard is then retried once. If the same clip fails
again, it is excluded (`ExcludedClips`) and the shard completes with the clip as
a reject. Workers exit with their parent.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from multiprocessing import connection as connections
from typing import Any

from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import worker as workers

MAX_CRASHES = 2  # of a clip, before it is excluded
_SHUTDOWN_SECONDS = 5.0  # for workers to clean up after SIGTERM
# One thread per worker: libraries must not each use all cores.
_THREAD_VARIABLES = (
  "OMP_NUM_THREADS",
  "OPENBLAS_NUM_THREADS",
  "MKL_NUM_THREADS",
  "OPENCV_FOR_THREADS_NUM",
)
_NO_DEADLINE = float("inf")


@dataclasses.dataclass(kw_only=True, eq=False)
class _Worker:
  """A worker process and its state."""

  process: Any
  connection: connections.Connection
  lifeline: connections.Connection
  folder: str  # for temporary files; removed by the parent
  ready: bool = False
  shard: int | None = None
  stage: str = ""
  clip_ids: tuple[str, ...] = ()  # clips in progress
  deadline: float = _NO_DEADLINE
  num_passed: int = 0  # completed clips of the current shard


class WorkerPool:
  """Worker processes of one pass; a context manager."""

  def __init__(
    self,
    settings: curation_settings.Settings,
    pass_: curation_settings.Pass,
    processes: int,
    on_progress: Callable[[int], None] = lambda _: None,
  ):
    """Store the settings; workers start on demand.

    Args:
      settings: settings of the run.
      pass_: the pass.
      processes: maximum number of processes.
      on_progress: called with the number of completed clips; negative when
        clips must be repeated.
    """
    self._settings, self._pass = settings, pass_
    self._processes, self._on_progress = processes, on_progress
    self._workers: list[_Worker] = []
    self._waiting: collections.deque[int] = collections.deque()
    self._crash_counts: collections.Counter[tuple] = collections.Counter()

  def __enter__(self) -> "WorkerPool":
    return self

  def __exit__(self, *_: object) -> None:
    for worker in self._workers:
      worker.process.terminate()
    until = time.monotonic() + _SHUTDOWN_SECONDS
    for worker in list(self._workers):
      worker.process.join(max(0.0, until - time.monotonic()))
      self._terminate(worker)

  def check_stages_load(self) -> None:
    """Load the stages in a worker; ValueError if a requirement is missing."""
    while not any(worker.ready for worker in self._workers):
      if not self._workers:
        self._start()
      for _ in self._poll():
        pass

  def run(self, shard_indices: Sequence[int]) -> Iterator[shards.Result]:
    """Process shards, in any order.

    Raises:
      ValueError: a stage cannot be loaded, or a file is damaged.
      OSError: the disk is full, or a folder is not writable.
    """
    self._waiting.extend(shard_indices)
    while self._waiting or any(w.shard is not None for w in self._workers):
      self._dispatch()
      yield from self._poll()
      for worker in list(self._workers):
        if time.monotonic() > worker.deadline:
          limit = self._settings.time_limit(worker.stage)
          yield from self._handle_exit(
            worker, "timed out", f"more than {limit:g} s"
          )

  def _dispatch(self) -> None:
    """Start workers and assign a shard to each idle one."""
    idle = sum(worker.shard is None for worker in self._workers)
    room = self._processes - len(self._workers)
    for _ in range(min(len(self._waiting) - idle, room)):
      self._start()
    for worker in self._workers:
      if self._waiting and worker.ready and worker.shard is None:
        worker.shard, worker.num_passed = self._waiting.popleft(), 0
        # `_poll` notices a worker that has just exited.
        with contextlib.suppress(BrokenPipeError):
          worker.connection.send(worker.shard)

  def _start(self) -> None:
    """Start a worker."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    lifeline, end = context.Pipe(duplex=False)
    process = context.Process(
      target=workers.serve,
      args=(theirs, lifeline, self._settings, self._pass),
      daemon=True,
    )
    shared = _THREAD_VARIABLES if self._processes > 1 else ()
    values = {name: "1" for name in shared if name not in os.environ}
    folder = tempfile.mkdtemp(prefix="ovi_jax-")
    with _environment({**values, "TMPDIR": folder}):
      process.start()
    theirs.close()
    lifeline.close()
    self._workers.append(
      _Worker(process=process, connection=ours, lifeline=end, folder=folder)
    )

  def _poll(self) -> Iterator[shards.Result]:
    """Handle messages until the next deadline; yield results."""
    nearest = min((w.deadline for w in self._workers), default=_NO_DEADLINE)
    left = max(0.0, nearest - time.monotonic())
    ready = connections.wait(
      [worker.connection for worker in self._workers],
      timeout=None if left == _NO_DEADLINE else left,
    )
    for worker in [w for w in self._workers if w.connection in ready]:
      messages, ended = _receive(worker.connection)
      for message in messages:
        yield from self._handle_message(worker, *message)
      if ended:
        worker.process.join()
        code = worker.process.exitcode
        detail = f"signal {-code}" if code < 0 else f"exit code {code}"
        yield from self._handle_exit(worker, "crashed", detail)

  def _handle_message(
    self, worker: _Worker, kind: str, *payload: Any
  ) -> Iterator[shards.Result]:
    """Handle a message; yield a result."""
    if kind == workers.READY:
      worker.ready = True
    elif kind == workers.LOAD_FAILED:
      raise ValueError(payload[0])
    elif kind == workers.FAILED:
      raise payload[0]
    elif kind == shards.STARTED:
      worker.stage, worker.clip_ids = payload
      seconds = self._settings.time_limit(worker.stage, len(worker.clip_ids))
      worker.deadline = time.monotonic() + seconds
    elif kind == shards.FINISHED:
      worker.clip_ids, worker.deadline = (), _NO_DEADLINE
    elif kind == shards.PROGRESS:
      worker.num_passed += payload[0]
      self._on_progress(payload[0])
    else:
      worker.shard = None
      yield payload[0]

  def _handle_exit(
    self, worker: _Worker, reason: str, detail: str
  ) -> Iterator[shards.Result]:
    """Remove a worker, and retry or fail its shard."""
    self._terminate(worker)
    if not worker.ready:
      self._crash_counts[()] += 1
      if self._crash_counts[()] < MAX_CRASHES:
        return
      raise ValueError(
        f"pass {self._pass.name}: a worker {reason} while it loaded its stages"
        f" ({detail})"
      )
    if worker.shard is None:
      return
    self._on_progress(-worker.num_passed)
    crash = worker.shard, worker.stage, worker.clip_ids
    self._crash_counts[crash] += 1
    if self._crash_counts[crash] >= MAX_CRASHES:
      if not worker.clip_ids:
        problem = f"worker {reason} outside of any clip: {detail}"
        stage_index = shards.first_pending(
          self._settings, self._pass, worker.shard
        )
        if stage_index is not None:
          shards.write_error(
            self._settings.shard_files(stage_index, worker.shard), problem
          )
        yield shards.Result(shard=worker.shard, failure=problem)
        return
      self._exclude_clip(worker, reason, detail)
    self._waiting.appendleft(worker.shard)

  def _exclude_clip(self, worker: _Worker, reason: str, detail: str) -> None:
    """Exclude the clip, or switch the shard to single clips to find it."""
    names = [stage.name for stage in self._pass.stages]
    stage_index = self._pass.first_stage + names.index(worker.stage)
    assert worker.shard is not None
    files = self._settings.shard_files(stage_index, worker.shard)
    excluded = shards.ExcludedClips.read(files)
    if len(worker.clip_ids) > 1:
      excluded = dataclasses.replace(excluded, one_by_one=True)
    else:
      single = next(iter(worker.clip_ids))
      why = {single: (reason, detail)}
      excluded = dataclasses.replace(excluded, clips={**excluded.clips, **why})
    excluded.write(files)

  def _terminate(self, worker: _Worker) -> None:
    """Kill a worker and remove it from the pool."""
    worker.process.kill()
    worker.process.join()
    worker.connection.close()
    worker.lifeline.close()
    shutil.rmtree(worker.folder, ignore_errors=True)
    self._workers.remove(worker)


def _receive(
  connection: connections.Connection,
) -> tuple[list[tuple], bool]:
  """Pending messages, and whether the connection is closed."""
  messages = []
  try:
    while connection.poll():
      messages.append(connection.recv())
  except (EOFError, OSError):
    return messages, True
  return messages, False


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
  """Set environment variables for processes started in this context."""
  before = {name: os.environ.get(name) for name in values}
  os.environ.update(values)
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value
