"""A run: pass after pass over all shards, until there are records.

What is done is skipped, whoever did it; a shard that fails is named at the end
and does not stop the others. Jobs of a cluster share a pass by ranges of
shards.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence

import tqdm

from ovi_jax import console
from ovi_jax.curation.engine import global_stages
from ovi_jax.curation.engine import manifest
from ovi_jax.curation.engine import settings as curation_settings
from ovi_jax.curation.engine import shard as shards
from ovi_jax.curation.engine import shard_store
from ovi_jax.curation.engine import storage
from ovi_jax.curation.engine import worker_pool

_MAX_INDICES_SHOWN = 10  # numbers of shards in an error
Log = Callable[[str], None]
# Does shards of a pass, in any order.
ShardExecutor = Callable[
  [curation_settings.Settings, curation_settings.Pass, Sequence[int]],
  Iterator[shards.Result],
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSelection:
  """What of a run this process does.

  Attributes:
    only_pass: name of a pass; empty for all of them.
    shards: "" for all, "A:B" for those from A to before B, "I/N" for the part
      number I, from 0 on, of N equal ones.
    retry_failed: do shards again of which clips failed.
  """

  only_pass: str = ""
  shards: str = ""
  retry_failed: bool = False

  def indices(self, count: int) -> list[int]:
    """The shards out of `count`; ValueError if the words are none."""
    words = self.shards.replace("/", ":").split(":")
    if not self.shards:
      return list(range(count))
    if len(words) != 2 or not all(w.isdecimal() or not w for w in words):
      raise ValueError(
        f"shards: expected A:B, such as 0:100, or I/N, such as 0/8, got"
        f" {self.shards!r}"
      )
    if "/" not in self.shards:
      first, last = int(words[0] or 0), int(words[1] or count)
      return list(range(first, min(last, count)))
    part, parts = int(words[0] or -1), int(words[1] or 0)
    if not 0 <= part < parts:
      raise ValueError(f"shards: part {self.shards} is none; expected I < N")
    return list(range(count))[part::parts]


def run(
  settings: curation_settings.Settings,
  selection: ShardSelection | None = None,
  log: Log = console.log,
  executor: ShardExecutor | None = None,
) -> list[str]:
  """Do what is left to do.

  Args:
    settings: of the run.
    selection: what of it; all by default.
    log: called with each line for the user.
    executor: does shards elsewhere than in worker processes here.

  Returns:
    What could not be done, a line each; empty if all of it is done.

  Raises:
    ValueError: inputs or stages are not as they must be, before any work; or a
      file was damaged.
    OSError: the disk is full, or a folder is not writable.
  """
  selection = selection or ShardSelection()
  parts = (
    [settings.find_pass(selection.only_pass)]
    if selection.only_pass
    else settings.passes
  )
  numbers = selection.indices(manifest.load_or_create(settings))
  if selection.shards and not selection.only_pass:
    raise ValueError("shards: they are shared pass by pass; name it (only)")
  if executor is None:
    _check_requirements(settings, parts, len(numbers))
  log(f"{settings.out}: {len(numbers)} shards")
  problems = []
  for part in parts:
    if selection.retry_failed:
      _clear_failed(settings, part, numbers)
    if part.kind in (curation_settings.GLOBAL, curation_settings.SINK):
      if selection.shards:
        raise ValueError(f"pass {part.name} needs all shards; give no range")
      problems += global_stages.run_pass(
        settings, part, len(numbers), problems, log
      )
    else:
      problems += run_shards(
        settings,
        part,
        numbers,
        log,
        executor,
        require_previous=bool(selection.only_pass),
      )
  return problems


def run_shards(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  shard_indices: Sequence[int],
  log: Log = console.log,
  executor: ShardExecutor | None = None,
  require_previous: bool = False,
) -> list[str]:
  """Take shards through a pass.

  Args:
    settings: of the run.
    part: the pass.
    numbers: of the shards.
    log: called with each line for the user.
    executor: does shards elsewhere than in worker processes here.
    require_previous: shards that the pass before has not done are a problem.

  Returns:
    What could not be done.
  """
  ready = [
    n
    for n in shard_indices
    if shard_store.read_marker(settings.shard_files(part.first_stage - 1, n))
  ]
  problems = []
  missing = sorted(set(shard_indices) - set(ready))
  if missing and part.first_stage == 0:
    raise ValueError(
      f"inputs: shards {_preview(missing)} are not in {settings.out}; bring them"
      " back, or remove inputs.json there to number anew"
    )
  if missing and require_previous:
    problems.append(
      f"{part.name}: the pass before has not done {len(missing)} shards:"
      f" {_preview(missing)}"
    )
  todo = [
    n for n in ready if shards.first_pending(settings, part, n) is not None
  ]
  seconds: dict[str, float] = collections.defaultdict(float)
  given: collections.Counter[str] = collections.Counter()
  with _progress(settings, part, todo) as bar:
    for result in (executor or _local_executor(bar))(settings, part, todo):
      for name, (count, spent) in result.seconds.items():
        given[name] += count
        seconds[name] += spent
      if result.failure:
        problems.append(f"{part.name}, shard {result.shard}: {result.failure}")
      if result.unavailable:
        break  # It would be the same with the others.
  for place, each in enumerate(part.stages, part.first_stage):
    stage = each.name
    said = global_stages.summary(settings, place, shard_indices)
    if given[stage]:
      said += f"; {seconds[stage] / given[stage]:.3g} s a clip"
    log(said)
  return problems


def _local_executor(bar: tqdm.tqdm) -> ShardExecutor:
  """Worker processes of this machine."""

  def work(
    settings: curation_settings.Settings,
    part: curation_settings.Pass,
    numbers: Sequence[int],
  ) -> Iterator[shards.Result]:
    processes = min(settings.num_processes(part), max(1, len(numbers)))

    def passed(count: int) -> None:
      bar.update(count)

    with worker_pool.WorkerPool(settings, part, processes, passed) as watched:
      yield from watched.run(numbers)

  return work


def _check_requirements(
  settings: curation_settings.Settings,
  parts: Sequence[curation_settings.Pass],
  count: int,
) -> None:
  """See, before any work, that what is not done yet could be; ValueError."""
  undone = [
    settings.stages[place]
    for part in parts
    for place in range(part.first_stage, part.first_stage + len(part.stages))
    if not global_stages.is_finished(settings, part, place, count)
  ]
  missing = [
    problem for stage in undone for problem in stage.missing_requirements()
  ]
  if missing:
    raise ValueError(curation_settings.format_problems(missing))
  if undone:
    every = curation_settings.Pass(
      name="all", first_stage=0, stages=tuple(undone)
    )
    with worker_pool.WorkerPool(settings, every, 1) as watched:
      watched.check_stages_load()


def _clear_failed(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  numbers: Sequence[int],
) -> None:
  """Have shards count as not done of which clips failed.

  A shard without a mark may have failed for what was left out of it.
  """
  for place in range(part.first_stage, part.first_stage + len(part.stages)):
    for number in numbers:
      files = settings.shard_files(place, number)
      found = shard_store.read_marker(files)
      if found is None or found.failed:
        storage.remove(files.done)
        storage.remove(files.excluded)


@contextlib.contextmanager
def _progress(
  settings: curation_settings.Settings,
  part: curation_settings.Pass,
  todo: Sequence[int],
) -> Iterator[tqdm.tqdm]:
  """A line that says how many clips are through, and the time left."""
  before = [
    shard_store.read_marker(settings.shard_files(part.first_stage - 1, n))
    for n in todo
  ]
  with console.progress(
    total=sum(found.clips for found in before if found),
    desc=part.name,
    unit="clip",
    disable=not todo,
    # Numbers of an hour ago say little of the clips to come.
    smoothing=0.1,
  ) as bar:
    yield bar


def _preview(numbers: Sequence[int]) -> str:
  """The first of many numbers."""
  more = ", …" if len(numbers) > _MAX_INDICES_SHOWN else ""
  return (
    ", ".join(str(number) for number in numbers[:_MAX_INDICES_SHOWN]) + more
  )
