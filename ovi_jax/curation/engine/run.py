"""Runs the passes in order over all shards.

Completed shards are skipped. A failed shard is reported at the end and does not
stop the others. Cluster jobs divide a pass by shard ranges.
"""

import collections
import contextlib
import dataclasses
import logging
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

_MAX_INDICES_SHOWN = 10  # shard indices in an error message
_log = logging.getLogger(__name__)
# Processes shards of a pass, in any order.
ShardExecutor = Callable[
  [curation_settings.Settings, curation_settings.Pass, Sequence[int]],
  Iterator[shards.Result],
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardSelection:
  """The passes and shards that this process runs.

  Attributes:
    only_pass: name of a pass; empty for all passes.
    shards: "" for all; "A:B" for shards A to B - 1; "I/N" for part I (from 0)
      of N equal parts.
    retry_failed: rerun shards that have failed clips.
  """

  only_pass: str = ""
  shards: str = ""
  retry_failed: bool = False

  def indices(self, count: int) -> list[int]:
    """The selected shard indices; ValueError if `shards` is malformed."""
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
      raise ValueError(f"shards: expected I < N, got {self.shards}")
    return list(range(count))[part::parts]


def run(
  settings: curation_settings.Settings,
  selection: ShardSelection | None = None,
  executor: ShardExecutor | None = None,
) -> list[str]:
  """Run all pending work.

  Args:
    settings: settings of the run.
    selection: passes and shards to run; all by default.
    executor: processes shards; local worker processes by default.

  Returns:
    One line per problem; empty if everything completed.

  Raises:
    ValueError: invalid inputs or missing requirements, before any work; or a
      damaged file.
    OSError: the disk is full, or a folder is not writable.
  """
  selection = selection or ShardSelection()
  passes = (
    [settings.find_pass(selection.only_pass)]
    if selection.only_pass
    else settings.passes
  )
  shard_indices = selection.indices(manifest.load_or_create(settings))
  if selection.shards and not selection.only_pass:
    raise ValueError(
      "shards: a range needs a single pass; give --only_pass=NAME"
    )
  if executor is None:
    _check_requirements(settings, passes, len(shard_indices))
  _log.info(f"{settings.out}: {len(shard_indices)} shards")
  problems = []
  for pass_ in passes:
    if selection.retry_failed:
      _clear_failed(settings, pass_, shard_indices)
    if pass_.kind in (curation_settings.GLOBAL, curation_settings.SINK):
      if selection.shards:
        raise ValueError(f"pass {pass_.name} needs all shards; remove --shards")
      problems += global_stages.run_pass(
        settings, pass_, len(shard_indices), problems
      )
    else:
      problems += run_shards(
        settings,
        pass_,
        shard_indices,
        executor,
        require_previous=bool(selection.only_pass),
      )
  return problems


def run_shards(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  shard_indices: Sequence[int],
  executor: ShardExecutor | None = None,
  require_previous: bool = False,
) -> list[str]:
  """Run a pass over shards.

  Args:
    settings: settings of the run.
    pass_: the pass.
    shard_indices: shards to process.
    executor: processes shards; local worker processes by default.
    require_previous: report shards that the previous pass has not completed.

  Returns:
    One line per problem.
  """
  ready = [
    n
    for n in shard_indices
    if shard_store.read_marker(settings.shard_files(pass_.first_stage - 1, n))
  ]
  problems = []
  missing = sorted(set(shard_indices) - set(ready))
  if missing and pass_.first_stage == 0:
    raise ValueError(
      f"inputs: shards {_preview(missing)} are missing in {settings.out};"
      " restore them, or remove inputs.json there to assign shards again"
    )
  if missing and require_previous:
    problems.append(
      f"{pass_.name}: the previous pass has not completed {len(missing)}"
      f" shards: {_preview(missing)}"
    )
  todo = [
    n for n in ready if shards.first_pending(settings, pass_, n) is not None
  ]
  seconds: dict[str, float] = collections.defaultdict(float)
  counts: collections.Counter[str] = collections.Counter()
  with _progress(settings, pass_, todo) as bar:
    for result in (executor or _local_executor(bar))(settings, pass_, todo):
      for name, (count, spent) in result.seconds.items():
        counts[name] += count
        seconds[name] += spent
      if result.failure:
        problems.append(f"{pass_.name}, shard {result.shard}: {result.failure}")
      if result.unavailable:
        break  # The other shards would fail in the same way.
  for stage_index, stage in enumerate(pass_.stages, pass_.first_stage):
    line = global_stages.summary(settings, stage_index, shard_indices)
    if counts[stage.name]:
      line += f"; {seconds[stage.name] / counts[stage.name]:.3g} s per clip"
    _log.info(line)
  return problems


def _local_executor(bar: tqdm.tqdm) -> ShardExecutor:
  """Runs shards in worker processes on this machine."""

  def execute(
    settings: curation_settings.Settings,
    pass_: curation_settings.Pass,
    shard_indices: Sequence[int],
  ) -> Iterator[shards.Result]:
    processes = min(settings.num_processes(pass_), max(1, len(shard_indices)))

    def on_progress(count: int) -> None:
      bar.update(count)

    with worker_pool.WorkerPool(
      settings, pass_, processes, on_progress
    ) as pool:
      yield from pool.run(shard_indices)

  return execute


def _check_requirements(
  settings: curation_settings.Settings,
  passes: Sequence[curation_settings.Pass],
  count: int,
) -> None:
  """ValueError, before any work, if a pending stage lacks a requirement."""
  pending = [
    settings.stages[stage_index]
    for pass_ in passes
    for stage_index in range(
      pass_.first_stage, pass_.first_stage + len(pass_.stages)
    )
    if not global_stages.is_finished(settings, pass_, stage_index, count)
  ]
  missing = [
    problem for stage in pending for problem in stage.missing_requirements()
  ]
  if missing:
    raise ValueError(curation_settings.format_problems(missing))
  if pending:
    all_pending = curation_settings.Pass(
      name="all", first_stage=0, stages=tuple(pending)
    )
    with worker_pool.WorkerPool(settings, all_pending, 1) as pool:
      pool.check_stages_load()


def _clear_failed(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  shard_indices: Sequence[int],
) -> None:
  """Remove the markers of shards that have failed clips.

  A shard without a marker may have failed because of its excluded clips.
  """
  for stage_index in range(
    pass_.first_stage, pass_.first_stage + len(pass_.stages)
  ):
    for shard_index in shard_indices:
      files = settings.shard_files(stage_index, shard_index)
      marker = shard_store.read_marker(files)
      if marker is None or marker.failed:
        storage.remove(files.done)
        storage.remove(files.excluded)


@contextlib.contextmanager
def _progress(
  settings: curation_settings.Settings,
  pass_: curation_settings.Pass,
  todo: Sequence[int],
) -> Iterator[tqdm.tqdm]:
  """A progress bar of clips, with the remaining time."""
  markers = [
    shard_store.read_marker(settings.shard_files(pass_.first_stage - 1, n))
    for n in todo
  ]
  with console.progress(
    total=sum(marker.clips for marker in markers if marker),
    desc=pass_.name,
    unit="clip",
    disable=not todo,
    # The recent rate predicts the remaining time best.
    smoothing=0.1,
  ) as bar:
    yield bar


def _preview(shard_indices: Sequence[int]) -> str:
  """The first shard indices, for a message."""
  more = ", …" if len(shard_indices) > _MAX_INDICES_SHOWN else ""
  return (
    ", ".join(str(index) for index in shard_indices[:_MAX_INDICES_SHOWN]) + more
  )
