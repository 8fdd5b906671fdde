"""The training loop: steps, checkpoints, logs and evaluation.

All mutable state of training is here. The metrics of a step are fetched while
the next step computes. Bad steps (`bad_steps`) make no update, so a state is
always finite; the loop logs them and ends the run if there are too many.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import Protocol

import jax
import numpy as np

from ovi_jax import console
from ovi_jax import flops
from ovi_jax import storage
from ovi_jax.checkpoint import manager as managers
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.sharding import distributed
from ovi_jax.training import goodput
from ovi_jax.training import host_times
from ovi_jax.training import logs as logs_lib
from ovi_jax.training import optimizer
from ovi_jax.training import state_sharding
from ovi_jax.training import step as steps
from ovi_jax.training import watchdog as watchdogs
from ovi_jax.training.evaluators import eval_loss

INTERRUPTED = 75  # exit code of a run that was interrupted and saved
_log = logging.getLogger(__name__)


class Input(Protocol):
  """An endless iterator of batches whose position can be saved."""

  def __next__(self) -> schema.Batch: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
  """Intervals in steps; 0 = never.

  Attributes:
    log_every: write metrics, averaged since the last time.
    checkpoint_every: save a checkpoint; the last step is always saved.
    checkpoint_every_minutes: also save when so many minutes have passed since
      the last checkpoint.
    preemption_grace_seconds: seconds after SIGTERM at which the process exits
      with `INTERRUPTED` even if its last checkpoint is not complete; the newest
      complete one is resumed. With several processes, the timer starts when
      they agree to stop: a step or two after SIGTERM, or after an evaluation or
      save in progress. Give the platform's notice minus two steps and minus the
      longest evaluation or save; 0 = no limit.
    eval_every: compute the held-out loss; also before the first step. Needs a
      held-out split, see `eval.split`.
    sample_every: generate samples for held-out prompts. Needs a held-out split
      and `pretrained`.
    profile_steps: first step of a profiler trace and the step that ends it (not
      included); equal for no trace.
    sdc_check_every: run a step that the compiler extended with checks for
      silent data corruption (XLA's SDC checker); the chip halts if one fails.
      TPUs only. Such a step is compiled in addition and is slower.
  """

  log_every: int = 10
  checkpoint_every: int = 1000
  checkpoint_every_minutes: float = 0.0
  preemption_grace_seconds: float = 0.0
  eval_every: int = 0
  sample_every: int = 0
  profile_steps: tuple[int, int] = (0, 0)
  sdc_check_every: int = 0

  def __post_init__(self):
    for name in (
      "log_every",
      "checkpoint_every",
      "eval_every",
      "sample_every",
      "sdc_check_every",
    ):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name} must be 0 (never) or more steps, got {getattr(self, name)}"
        )
    for name in ("checkpoint_every_minutes", "preemption_grace_seconds"):
      if not 0 <= getattr(self, name) < float("inf"):
        raise ValueError(
          f"{name} must be 0 (none) or more, got {getattr(self, name)}"
        )
    if (
      len(steps := tuple(self.profile_steps)) != 2
      or not 0 <= steps[0] <= steps[1]
    ):
      raise ValueError(
        f"profile_steps must be (first, last), got {self.profile_steps}"
      )


class BadStepError(ValueError):
  """More bad steps than may be skipped: non-finite ones, or spikes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainContext:
  """The objects and functions that the loop uses.

  Attributes:
    step_config: static arguments of the train step.
    mesh: the devices.
    input: batches of this process's rows.
    manager: manager of the checkpoints.
    logs: writer of the scalars.
    directory: directory of the run; profiler traces go to its folder `trace`.
    intervals: intervals of logging, checkpoints and evaluation.
    null_SE: embedding of the empty prompt; a single zero if there is none.
    encode_batch: places a batch on the mesh, and encodes media and captions.
    cost: FLOPs and tokens of a batch on the devices; `None` for no such
      metrics.
    evaluate: called with the state; returns scalars to log.
    sample: called with the state.
    num_buckets: number of batch shapes; a step is compiled for each.
    skip_bad_steps: number of bad steps that are skipped before the run ends.
    step_timeout_seconds: time limit of a step, except of the first of each
      batch shape, which compiles and waits for all hosts; 0 = none.
    timer: measures how the time of the run is spent.
    in_checkpoint: which frozen parameters a checkpoint has, by path.
    checkpoint_metadata: JSON values that are saved with the state.
  """

  step_config: steps.TrainStepConfig
  mesh: jax.sharding.Mesh
  input: Input
  manager: managers.Manager
  logs: logs_lib.Writer
  directory: str
  intervals: Intervals
  null_SE: np.ndarray = dataclasses.field(
    default_factory=lambda: np.zeros((1, 1), np.float32)
  )
  encode_batch: Callable[[schema.Batch, jax.sharding.Mesh], schema.Batch] = (
    state_sharding.batch
  )
  cost: Callable[[schema.Batch], flops.BatchCost] | None = None
  evaluate: Callable[[steps.TrainState], Mapping[str, float]] = lambda _: {}
  sample: Callable[[steps.TrainState], Any] = lambda _: None
  num_buckets: int = 1
  skip_bad_steps: int = 0
  step_timeout_seconds: float = 0.0
  timer: goodput.Timer = dataclasses.field(default_factory=goodput.Timer)
  in_checkpoint: Callable[[str], bool] = lambda path: True
  checkpoint_metadata: Mapping[str, Any] = dataclasses.field(
    default_factory=dict
  )

  def checkpointed(self, state: steps.TrainState) -> steps.TrainState:
    """The checkpointed subset of a state; a LoRA run omits the frozen base."""
    frozen = state.frozen_params.items()
    kept = {path: x for path, x in frozen if self.in_checkpoint(path)}
    return state._replace(frozen_params=kept)


class StepRecord(NamedTuple):
  """A step that was dispatched; its metrics are still on the devices."""

  step: int  # finished steps
  metrics: steps.StepMetrics
  ids: np.ndarray
  clips: int
  cost: flops.BatchCost | None
  waited: float  # seconds for the batch
  host_time: float  # seconds until it was dispatched, `waited` included


def compile_step(
  context: TrainContext, shardings: steps.TrainState, check_sdc: bool = False
) -> Any:
  """The jitted train step; the state is donated and keeps its shardings."""
  jitted = steps.jit_train_step(shardings, context.mesh, check_sdc)
  whole = jax.sharding.NamedSharding(context.mesh, jax.P())
  null = jax.device_put(context.null_SE, whole)
  return lambda state, batch: jitted(context.step_config, state, batch, null)


def restore(
  context: TrainContext,
  target: steps.TrainState,
  check: Callable[[Mapping[str, Any]], None] = lambda metadata: None,
) -> steps.TrainState | None:
  """Restore the state and the position of the input from a checkpoint.

  The newest checkpoint that can be read is used.

  Args:
    context: context of the run.
    target: shapes and shardings of the state, or such a state.
    check: called with the metadata of the checkpoint; raises ValueError if the
      run cannot continue from it.

  Returns:
    `None` if there is no checkpoint; else the state, without the frozen
    parameters that checkpoints lack.

  Raises:
    ValueError: there are checkpoints, but none fits or none can be read.
  """
  restored = context.manager.restore_newest(context.checkpointed(target))
  if restored is None:
    return None
  check(restored.metadata)
  context.input.set_state(restored.iterator)
  _log.info(f"continuing from the checkpoint of step {restored.step}")
  return restored.state


def run(
  context: TrainContext,
  state: steps.TrainState,
  on_first_step: Callable[[], None] = lambda: None,
) -> bool:
  """Train until the last step, or until the process is interrupted.

  On SIGTERM or Ctrl-C, training stops after saving a checkpoint; a second
  signal ends the process at once.

  Args:
    context: context of the run.
    state: state on the mesh, see `state_sharding`; donated.
    on_first_step: called when the first step is compiled and started.

  Returns:
    Whether the run is finished; `False` if it was interrupted and saved.

  Raises:
    BadStepError: names the step and the records; checkpoints are kept.
    OSError: a checkpoint cannot be written.
  """
  grace = context.intervals.preemption_grace_seconds
  with (
    distributed.preemption_watcher(grace, INTERRUPTED) as stop,
    jax.set_mesh(context.mesh),
    watchdogs.Watchdog(context.step_timeout_seconds) as watchdog,
  ):
    return _loop(context, state, stop, watchdog, on_first_step)


def _loop(
  context: TrainContext,
  state: steps.TrainState,
  stop: Callable[[int], bool],
  watchdog: watchdogs.Watchdog,
  on_first_step: Callable[[], None] = lambda: None,
) -> bool:
  """The loop of `run`; stops before the step for which `stop` is true."""
  total, number = context.step_config.num_train_steps, int(state.step)
  begin = number
  intervals, timer = context.intervals, context.timer
  shardings = jax.tree.map(lambda x: x.sharding, state)
  train_steps = {
    checked: compile_step(context, shardings, checked)
    for checked in {False, intervals.sdc_check_every > 0}
  }
  last: StepRecord | None = None
  accumulator, profiler = MetricAccumulator(context), Profiler(context)
  clock = CheckpointClock(intervals.checkpoint_every_minutes)
  encoded: list[Any] = []
  compiled: list[Any] = []
  bar = console.progress(
    total=total,
    initial=number,
    unit="step",
    desc="training",
    disable=jax.process_index() > 0,
  )
  timer.loop_begins()
  with bar:
    # The baseline for later losses.
    if not number and intervals.eval_every:
      with timer.measure(goodput.EVALUATION):
        _evaluate(context, state, number, bar)
    while number < total and not stop(number):
      if profiler.due(number):
        if last is not None:
          accumulator.add(last)
          last = None
        with watchdog.unlimited("starting or storing a profiler trace"):
          profiler.at(number)
        accumulator.pause()
      watchdog.begin(number)
      began = time.perf_counter()
      watchdog.at("waiting for data")
      with timer.measure(goodput.DATA_WAIT):
        host = next(context.input)
      waited = time.perf_counter() - began
      batch = _encode(context, host, encoded, watchdog)
      checked = _due(number + 1, intervals.sdc_check_every)
      watchdog.at("dispatching the step")
      if compiles := (shapes := (checked, _shapes(batch))) not in compiled:
        compiled.append(shapes)
        _log_compilation(bar, len(compiled), context.num_buckets, batch)
        with (
          timer.measure(goodput.COMPILE),
          watchdog.unlimited("compiling the step"),
        ):
          state, metrics = train_steps[checked](state, batch)
          distributed.barrier("compiled")  # all hosts start the timer together
        bar.unpause()  # exclude compilation from the estimate of the time left
      else:
        state, metrics = train_steps[checked](state, batch)
      if number == begin:
        on_first_step()
      number += 1
      following = StepRecord(
        step=number,
        metrics=metrics,
        ids=host.ids,
        clips=jax.tree.leaves(batch)[0].shape[0],
        cost=None if context.cost is None else context.cost(batch),
        waited=waited,
        host_time=waited if compiles else time.perf_counter() - began,
      )
      watchdog.at(watchdogs.DEVICES)
      if last is not None:
        accumulator.add(last)
        bar.set_postfix_str(f"loss {accumulator.loss:.4f}", refresh=False)
      last = following
      saving = (
        _due(number, intervals.checkpoint_every) or clock.due(number)
      ) and number < total
      evaluating = _due(number, intervals.eval_every)
      sampling = _due(number, intervals.sample_every)
      if saving or evaluating or sampling:
        accumulator.add(last)
        last = None
      if saving:
        with (
          timer.measure(goodput.CHECKPOINT),
          watchdog.unlimited("saving a checkpoint"),
        ):
          _save(context, state, number)
        clock.restart()
      if evaluating or sampling:
        with (
          timer.measure(goodput.EVALUATION),
          watchdog.unlimited("evaluating"),
        ):
          if evaluating:
            _evaluate(context, state, number, bar)
          if sampling:
            bar.set_description("making samples")
            context.sample(state)
            bar.set_description("training")
        accumulator.pause()
      bar.update()
    if last is not None:
      accumulator.add(last)
  with (
    timer.measure(goodput.CHECKPOINT),
    watchdog.unlimited("saving a checkpoint"),
  ):
    _save(context, state, number)
    context.manager.wait()
  context.logs.flush()
  # Last: the upload must not take the time in which an interrupted run saves.
  with watchdog.unlimited("storing a profiler trace"):
    profiler.end()
  _log.info(timer.line())
  accumulator.log_slowest_host()
  if number < total:
    _log.info(
      f"interrupted at step {number} of {total}; checkpoint saved; run the"
      " same command to resume"
    )
  return number >= total


def _evaluate(
  context: TrainContext, state: steps.TrainState, number: int, bar: Any
) -> None:
  """Log the held-out loss; the console omits the timestep bins."""
  bar.set_description("held-out loss")
  values = context.evaluate(state)
  context.logs.scalars(number, values)
  shown = ", ".join(
    f"{name.removeprefix(f'{eval_loss.METRIC_PREFIX}_')} {value:.4f}"
    for name, value in values.items()
    if "_t" not in name.removeprefix(eval_loss.METRIC_PREFIX)
  )
  if shown:
    bar.clear()
    _log.info(f"step {number}: held-out loss {shown}")
  bar.set_description("training")


def _encode(
  context: TrainContext,
  host: schema.Batch,
  encoded: list[Any],
  watchdog: watchdogs.Watchdog,
) -> schema.Batch:
  """Put a batch on the devices and encode it.

  Compilation of the encoders is exempt from the step timeout.

  Args:
    context: context of the run.
    host: the batch as it was read.
    encoded: shapes of the batches before, for which they are compiled.
    watchdog: of the step.
  """
  watchdog.at("placing and encoding the batch")
  if (shapes := _shapes(host)) in encoded:
    return context.encode_batch(host, context.mesh)
  encoded.append(shapes)
  with watchdog.unlimited("compiling the encoders"):
    return context.encode_batch(host, context.mesh)


def _shapes(batch: schema.Batch) -> Any:
  """The shapes and dtypes of a batch; each new combination is compiled."""
  return [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]


def _log_compilation(
  bar: Any, number: int, count: int, batch: schema.Batch
) -> None:
  """Log that a step is about to be compiled, which may take minutes."""
  what = f"bucket {number} of {count}" if count > 1 else "the step"
  grids = ", ".join(
    f"{name} {'x'.join(map(str, latents.shape[1:-1]))}"
    for name, latents in batch.latents.present().items()
    if latents.ndim > 2
  )
  bar.clear()
  _log.info(f"compiling {what}{f' (latents: {grids})' if grids else ''} …")
  bar.refresh()


class MetricAccumulator:
  """Metrics of the steps since the last log line.

  Attributes:
    loss: loss of the last finished step.
  """

  def __init__(self, context: TrainContext):
    self._context = context
    kind = jax.devices()[0].device_kind
    self._device = kind, jax.device_count()
    self._rate = optimizer.learning_rate(
      context.step_config.optimizer, context.step_config.num_train_steps
    )
    self._records: list[StepRecord] = []
    self._spent = np.zeros(4)  # steps; seconds: all, host, waiting for data
    self._timed = 0  # how many of them are timed; not the first, which compiles
    self._first = True
    self.loss = float("nan")
    self.pause()

  def pause(self) -> None:
    """Restart the clock after time that was not spent on steps."""
    self._began, self._timed = time.perf_counter(), 0

  def add(self, record: StepRecord) -> None:
    """Wait for a step, check its metrics, and write a log line if due.

    Raises:
      BadStepError: names the step and the records.
    """
    metrics = jax.device_get(record.metrics)
    if metrics.is_bad:
      _report_bad(self._context, record, metrics)
    else:
      self.loss = float(metrics.loss)
    self._records.append(record._replace(metrics=metrics))
    if self._first:
      self._first = False
      self.pause()
    else:
      self._timed += 1
    if _due(record.step, self._context.intervals.log_every):
      # The next interval begins now, not after the line is written.
      now = time.perf_counter()
      line = self._line(now - self._began)
      self._began, self._timed, self._records = now, 0, []
      self._context.logs.scalars(record.step, line)

  def _line(self, seconds: float) -> dict[str, float | None]:
    """Averages since the last line; throughput of the timed steps."""
    records, newest = self._records, self._records[-1]
    good = [r for r in records if not r.metrics.is_bad]
    skipped = int(newest.metrics.skipped)
    line: dict[str, float | None] = {
      "train/loss": _mean([r.metrics.loss for r in good]),
      "train/grad_norm": _mean([r.metrics.grad_norm for r in good]),
      # Skipped steps do not advance the schedule.
      "train/learning_rate": float(
        np.asarray(self._rate(max(0, newest.step - 1 - skipped)))
      ),
      "train/skipped_steps": skipped,
    }
    if timed := records[len(records) - self._timed :]:
      line |= {
        "perf/step_time": seconds / len(timed),
        "perf/clips_per_second": sum(r.clips for r in timed) / seconds,
        "perf/data_wait_frac": sum(r.waited for r in timed) / seconds,
      }
      self._spent += np.asarray(
        [
          len(timed),
          seconds,
          sum(r.host_time for r in timed),
          sum(r.waited for r in timed),
        ]
      )
      if jax.process_count() > 1:
        line |= self._host_times(seconds, timed)
    line |= self._context.timer.scalars()
    if costs := [r.cost for r in timed if r.cost is not None]:
      line |= {
        "perf/tokens_per_second": sum(c.tokens for c in costs) / seconds,
        "perf/mfu": flops.mfu(
          sum(c.flops for c in costs), seconds, *self._device
        ),
      }
    for name in records[-1].metrics.losses:
      losses = np.concatenate(
        [np.zeros(0)] + [np.ravel(r.metrics.losses[name]) for r in good]
      )
      # Zero marks a record that lacks the term's modality.
      kept = losses[losses > 0]
      line[f"train/loss_{name}"] = kept.mean() if kept.size else None
    return line

  def _host_times(
    self, seconds: float, timed: list[StepRecord]
  ) -> dict[str, float]:
    """Times of each host for the log line; the console names a slow one."""
    times = host_times.gather(
      seconds / len(timed),
      sum(r.host_time for r in timed) / len(timed),
      sum(r.waited for r in timed) / len(timed),
    )
    if said := host_times.warning(times):
      _log.info(said)
    return host_times.scalars(times)

  def log_slowest_host(self) -> None:
    """Log the slowest host since this restart; every process must call it."""
    if jax.process_count() == 1:
      return
    count, *seconds = self._spent.tolist()
    times = host_times.gather(*(each / max(count, 1) for each in seconds))
    _log.info(host_times.line(host_times.slowest(times)))


def _mean(values: list[Any]) -> float | None:
  return float(np.mean(values)) if values else None


def _report_bad(
  context: TrainContext, record: StepRecord, metrics: steps.StepMetrics
) -> None:
  """Log a skipped step with its records; raise BadStepError if too many."""
  # Every process has the losses of all records, but only the ids of its part
  # of the batch; several processes may read the same part.
  part, _ = distributed.data_shard(context.mesh)
  parts = dict(distributed.gather([part, np.asarray(record.ids).tolist()]))
  ids = np.asarray([i for _, those in sorted(parts.items()) for i in those])
  losses = [x for x in metrics.losses.values() if len(x) == len(ids)]
  suspects, culprits = ids, ""
  if losses:
    worst_B = np.max([np.where(np.isfinite(x), x, np.inf) for x in losses], 0)
    bad = ~np.isfinite(worst_B)
    # Of a spike, the records with the largest losses come first.
    suspects = ids[bad] if bad.any() else ids[np.argsort(-worst_B)]
    suspects = list(dict.fromkeys(suspects.tolist()))
    if bad.any() and not bad.all():
      culprits = f" (add {record_ids.names(suspects)})"
  skipped, limit = int(metrics.skipped), context.skip_bad_steps
  finite = np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm)
  kind = "a spike" if finite else "not finite"
  what = (
    f"step {record.step}: loss {metrics.loss}, gradient norm"
    f" {metrics.grad_norm} ({kind}); records (source:index)"
    f" {record_ids.names(suspects)}"
  )
  context.logs.event(
    record.step,
    "skipped_step",
    {
      "loss": str(metrics.loss),
      "grad_norm": str(metrics.grad_norm),
      "reason": kind,
      "suspects": [record_ids.name(i) for i in suspects],
      "records": [record_ids.name(i) for i in ids],
    },
  )
  if skipped <= limit:
    _log.warning(
      f"{what}. The step made no update ({skipped} of at most {limit} skipped)"
    )
    return
  raise BadStepError(
    f"{what}. {skipped - 1} bad steps were skipped before, skip_bad_steps is"
    f" {limit}. The last checkpoint is from before it. Resume with a larger"
    " --config.skip_bad_steps, leave records out with"
    f" --config.data.exclude_records{culprits}, lower"
    " --config.optimizer.learning_rate, or go back to an earlier checkpoint"
    " with --rollback_to"
  )


def _save(context: TrainContext, state: steps.TrainState, number: int) -> None:
  """Save the state together with the position of the input."""
  context.manager.save(
    number,
    context.checkpointed(state),
    context.input.get_state(),
    context.checkpoint_metadata,
  )
  context.logs.flush()


def _due(number: int, every: int) -> bool:
  return every > 0 and number % every == 0


class CheckpointClock:
  """Time since the last checkpoint, as process 0 measures it.

  With several processes, they agree on every eighth step: agreeing waits for
  the steps that were dispatched.
  """

  def __init__(self, minutes: float):
    self._seconds = 60 * minutes
    self._every = 8 if jax.process_count() > 1 else 1
    self.restart()

  def restart(self) -> None:
    """Count from now."""
    self._began = time.monotonic()

  def due(self, number: int) -> bool:
    """Whether to save after step `number`; the same in all processes."""
    if not self._seconds or number % self._every:
      return False
    return distributed.broadcast(
      lambda: time.monotonic() - self._began >= self._seconds
    )


class Profiler:
  """Traces the steps given by `Intervals.profile_steps`.

  For a run in an object store a trace is written to a local folder and
  uploaded when it ends.
  """

  def __init__(self, context: TrainContext):
    self._steps = range(*context.intervals.profile_steps)
    self._directory, self._on = f"{context.directory}/trace", False
    self._spool = contextlib.ExitStack()

  def due(self, number: int) -> bool:
    """Whether the trace starts or stops before step `number`."""
    return (number in self._steps) != self._on

  def at(self, number: int) -> None:
    """Start or stop the trace before step `number`."""
    wanted = number in self._steps
    if wanted and not self._on:
      self._folder = self._directory
      if storage.is_remote(self._directory):
        self._folder = self._spool.enter_context(storage.spool())
      jax.profiler.start_trace(self._folder)
    elif self._on and not wanted:
      jax.profiler.stop_trace()
      self._upload()
    self._on = wanted

  def _upload(self) -> None:
    if isinstance(self._folder, str):
      return
    with self._spool:
      try:
        storage.upload_folder(self._folder, self._directory)
      except OSError as error:
        _log.warning("the profiler trace is lost: %s", error)

  def end(self) -> None:
    """Stop the trace if one is running."""
    self.at(-1)
