"""Worker processes that are watched: no clip can hang or end a run.

The parent gives shards to workers and hears from them what they begin and end.
A worker that is too long at a clip is killed; one may also end by itself, in
the C code of a decoder. The shard is then tried once more; if it happens again
at the same clip, that is written down beside the shard (`LeftOut`), and the
shard is done with the clip as a reject. Workers end with their parent, whatever
ends it.
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

MAX_CRASHES = 2  # until a clip that ends its process is left out
_SHUTDOWN_SECONDS = (
  5.0  # seconds that workers get to clear away, when told to stop
)
# A worker is one of many: libraries shall not each take all cores.
_THREAD_VARIABLES = (
  "OMP_NUM_THREADS",
  "OPENBLAS_NUM_THREADS",
  "MKL_NUM_THREADS",
  "OPENCV_FOR_THREADS_NUM",
)
_NO_DEADLINE = float("inf")


@dataclasses.dataclass(kw_only=True, eq=False)
class _Worker:
  """A process, and what is known of it."""

  process: Any
  connection: connections.Connection
  lifeline: connections.Connection
  folder: str  # of its temporary files; killed, it does not clear them away
  ready: bool = False
  shard: int | None = None
  stage: str = ""
  clip_ids: tuple[str, ...] = ()  # of the clips it is at
  deadline: float = _NO_DEADLINE
  num_passed: int = 0  # clips of this shard


class WorkerPool:
  """Worker processes of one pass; a context manager."""

  def __init__(
    self,
    settings: curation_settings.Settings,
    part: curation_settings.Pass,
    processes: int,
    passed: Callable[[int], None] = lambda _: None,
  ):
    """Take note; workers start when there is work.

    Args:
      settings: of the run.
      part: the pass.
      processes: at most so many.
      passed: called with clips that are through, or, below 0, to be repeated.
    """
    self._settings, self._part = settings, part
    self._processes, self._passed = processes, passed
    self._workers: list[_Worker] = []
    self._waiting: collections.deque[int] = collections.deque()
    self._strikes: collections.Counter[tuple] = collections.Counter()

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
    """See that the stages load; ValueError names what one lacks."""
    while not any(worker.ready for worker in self._workers):
      if not self._workers:
        self._start()
      for _ in self._poll():
        pass

  def run(self, numbers: Sequence[int]) -> Iterator[shards.Result]:
    """Do shards, in any order.

    Raises:
      ValueError: a stage cannot be loaded, or a file is damaged.
      OSError: the disk is full, or a folder is not writable.
    """
    self._waiting.extend(numbers)
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
    """Start workers, and give a shard to each that has none."""
    idle = sum(worker.shard is None for worker in self._workers)
    room = self._processes - len(self._workers)
    for _ in range(min(len(self._waiting) - idle, room)):
      self._start()
    for worker in self._workers:
      if self._waiting and worker.ready and worker.shard is None:
        worker.shard, worker.num_passed = self._waiting.popleft(), 0
        # One that has just ended is noticed when it is listened to.
        with contextlib.suppress(BrokenPipeError):
          worker.connection.send(worker.shard)

  def _start(self) -> None:
    """Start a worker."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    lifeline, end = context.Pipe(duplex=False)
    process = context.Process(
      target=workers.serve,
      args=(theirs, lifeline, self._settings, self._part),
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
    """What workers say, until the next deadline."""
    nearest = min((w.deadline for w in self._workers), default=_NO_DEADLINE)
    left = max(0.0, nearest - time.monotonic())
    said = connections.wait(
      [worker.connection for worker in self._workers],
      timeout=None if left == _NO_DEADLINE else left,
    )
    for worker in [w for w in self._workers if w.connection in said]:
      messages, ended = _receive(worker.connection)
      for message in messages:
        yield from self._handle_message(worker, *message)
      if ended:
        worker.process.join()
        code = worker.process.exitcode
        detail = f"signal {-code}" if code < 0 else f"exit code {code}"
        yield from self._handle_exit(worker, "ended its process", detail)

  def _handle_message(
    self, worker: _Worker, kind: str, *said: Any
  ) -> Iterator[shards.Result]:
    """Take note of a message; a result is passed on."""
    if kind == workers.READY:
      worker.ready = True
    elif kind == workers.LOAD_FAILED:
      raise ValueError(said[0])
    elif kind == workers.FAILED:
      raise said[0]
    elif kind == shards.STARTED:
      worker.stage, worker.clip_ids = said
      seconds = self._settings.time_limit(worker.stage, len(worker.clip_ids))
      worker.deadline = time.monotonic() + seconds
    elif kind == shards.FINISHED:
      worker.clip_ids, worker.deadline = (), _NO_DEADLINE
    elif kind == shards.PROGRESS:
      worker.num_passed += said[0]
      self._passed(said[0])
    else:
      worker.shard = None
      yield said[0]

  def _handle_exit(
    self, worker: _Worker, reason: str, detail: str
  ) -> Iterator[shards.Result]:
    """Bury a worker, and see what becomes of its shard."""
    self._terminate(worker)
    if not worker.ready:
      self._strikes[()] += 1
      if self._strikes[()] < MAX_CRASHES:
        return
      raise ValueError(
        f"pass {self._part.name}: a worker {reason} while it loaded its stages"
        f" ({detail})"
      )
    if worker.shard is None:
      return
    self._passed(-worker.num_passed)
    strike = worker.shard, worker.stage, worker.clip_ids
    self._strikes[strike] += 1
    if self._strikes[strike] >= MAX_CRASHES:
      if not worker.clip_ids:
        problem = f"{reason} outside of any clip: {detail}"
        place = shards.first_pending(self._settings, self._part, worker.shard)
        if place is not None:
          shards.write_error(
            self._settings.shard_files(place, worker.shard), problem
          )
        yield shards.Result(shard=worker.shard, failure=problem)
        return
      self._exclude_clip(worker, reason, detail)
    self._waiting.appendleft(worker.shard)

  def _exclude_clip(self, worker: _Worker, reason: str, detail: str) -> None:
    """Have the stage not given the clip again, or first find which it is."""
    names = [stage.name for stage in self._part.stages]
    place = self._part.first_stage + names.index(worker.stage)
    assert worker.shard is not None
    files = self._settings.shard_files(place, worker.shard)
    known = shards.ExcludedClips.read(files)
    if len(worker.clip_ids) > 1:
      found = dataclasses.replace(known, one_by_one=True)
    else:
      single = next(iter(worker.clip_ids))
      why = {single: (reason, detail)}
      found = dataclasses.replace(known, clips={**known.clips, **why})
    found.write(files)

  def _terminate(self, worker: _Worker) -> None:
    """End a worker's process, if it has not, and forget it."""
    worker.process.kill()
    worker.process.join()
    worker.connection.close()
    worker.lifeline.close()
    shutil.rmtree(worker.folder, ignore_errors=True)
    self._workers.remove(worker)


def _receive(
  connection: connections.Connection,
) -> tuple[list[tuple], bool]:
  """The messages that have come, and whether there can be no more."""
  messages = []
  try:
    while connection.poll():
      messages.append(connection.recv())
  except (EOFError, OSError):
    return messages, True
  return messages, False


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
  """Variables that are set for processes started meanwhile."""
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
