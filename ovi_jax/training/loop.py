"""The training loop: steps, checkpoints, logs and evaluation.

All mutable state of training is here. The metrics of a step are fetched while
the next step computes. A state is saved only if its loss and gradient norm are
finite.
"""

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
from ovi_jax.checkpoint import manager as managers
from ovi_jax.data import schema
from ovi_jax.sharding import distributed
from ovi_jax.training import logs as logs_lib
from ovi_jax.training import optimizer
from ovi_jax.training import state_sharding
from ovi_jax.training import step as steps
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
      even if its last checkpoint is not complete; the newest complete one is
      resumed. Give a little less than the platform's notice; 0 = no limit.
    eval_every: compute the held-out loss; also before the first step. Needs a
      held-out split, see `eval.split`.
    sample_every: generate samples for held-out prompts. Needs a held-out split
      and `pretrained`.
    profile_steps: first step of a profiler trace and the step that ends it (not
      included); equal for no trace.
  """

  log_every: int = 10
  checkpoint_every: int = 1000
  checkpoint_every_minutes: float = 0.0
  preemption_grace_seconds: float = 0.0
  eval_every: int = 0
  sample_every: int = 0
  profile_steps: tuple[int, int] = (0, 0)

  def __post_init__(self):
    for name in ("log_every", "checkpoint_every", "eval_every", "sample_every"):
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


class NonFiniteLossError(ValueError):
  """A loss or gradient norm that is NaN or infinite."""


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


class StepRecord(NamedTuple):
  """A step that was dispatched; its metrics are still on the devices."""

  step: int  # finished steps
  metrics: steps.StepMetrics
  ids: np.ndarray
  clips: int
  cost: flops.BatchCost | None
  waited: float


def compile_step(context: TrainContext, shardings: steps.TrainState) -> Any:
  """The jitted train step; the state is donated and keeps its shardings."""
  jitted = steps.jit_train_step(shardings, context.mesh)
  whole = jax.sharding.NamedSharding(context.mesh, jax.P())
  null = jax.device_put(context.null_SE, whole)
  return lambda state, batch: jitted(context.step_config, state, batch, null)


def restore(
  context: TrainContext, target: steps.TrainState
) -> steps.TrainState | None:
  """Restore the state and the position of the input from a checkpoint.

  The newest checkpoint that can be read is used.

  Args:
    context: context of the run.
    target: shapes and shardings of the state, or such a state.

  Returns:
    `None` if there is no checkpoint.

  Raises:
    ValueError: there are checkpoints, but none fits or none can be read.
  """
  restored = context.manager.restore_newest(target)
  if restored is None:
    return None
  context.input.set_state(restored.iterator)
  _log.info(f"continuing from the checkpoint of step {restored.step}")
  return restored.state


def run(context: TrainContext, state: steps.TrainState) -> bool:
  """Train until the last step, or until the process is interrupted.

  On SIGTERM or Ctrl-C, training stops after saving a checkpoint; a second
  Ctrl-C ends the process at once.

  Args:
    context: context of the run.
    state: state on the mesh, see `state_sharding`; donated.

  Returns:
    Whether the run is finished; `False` if it was interrupted and saved.

  Raises:
    NonFiniteLossError: names the step and the records; the last good checkpoint
      is kept.
    OSError: a checkpoint cannot be written.
  """
  grace = context.intervals.preemption_grace_seconds
  watcher = distributed.preemption_watcher(grace, INTERRUPTED)
  with watcher as stop, jax.set_mesh(context.mesh):
    return _loop(context, state, stop)


def _loop(
  context: TrainContext,
  state: steps.TrainState,
  stop: Callable[[int], bool],
) -> bool:
  """The loop of `run`; stops before the step for which `stop` is true."""
  total, number = context.step_config.num_train_steps, int(state.step)
  intervals = context.intervals
  shardings = jax.tree.map(lambda x: x.sharding, state)
  train_step = compile_step(context, shardings)
  last: StepRecord | None = None
  accumulator, profiler = MetricAccumulator(context), Profiler(context)
  clock = CheckpointClock(intervals.checkpoint_every_minutes)
  compiled: list[Any] = []
  bar = console.progress(
    total=total,
    initial=number,
    unit="step",
    desc="training",
    disable=jax.process_index() > 0,
  )
  with bar:
    # The baseline for later losses.
    if not number and intervals.eval_every:
      _evaluate(context, state, number, bar)
    while number < total and not stop(number):
      profiler.at(number)
      began = time.perf_counter()
      host = next(context.input)
      waited = time.perf_counter() - began
      batch = context.encode_batch(host, context.mesh)
      if compiles := (shapes := _shapes(batch)) not in compiled:
        compiled.append(shapes)
        _log_compilation(bar, len(compiled), context.num_buckets, batch)
      state, metrics = train_step(state, batch)
      if compiles:
        bar.unpause()  # exclude compilation from the estimate of the time left
      number += 1
      following = StepRecord(
        step=number,
        metrics=metrics,
        ids=host.ids,
        clips=jax.tree.leaves(batch)[0].shape[0],
        cost=None if context.cost is None else context.cost(batch),
        waited=waited,
      )
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
        _save(context, state, number)
        clock.restart()
      if evaluating:
        _evaluate(context, state, number, bar)
      if sampling:
        bar.set_description("making samples")
        context.sample(state)
        bar.set_description("training")
      if evaluating or sampling:
        accumulator.pause()
      bar.update()
    if last is not None:
      accumulator.add(last)
  profiler.end()
  _save(context, state, number)
  context.manager.wait()
  context.logs.flush()
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
      NonFiniteLossError: names the step and the records.
    """
    metrics = jax.device_get(record.metrics)
    _check_finite(record, metrics)
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
    records = self._records
    line: dict[str, float | None] = {
      "train/loss": float(np.mean([r.metrics.loss for r in records])),
      "train/grad_norm": float(np.mean([r.metrics.grad_norm for r in records])),
      "train/learning_rate": float(
        np.asarray(self._rate(records[-1].step - 1))
      ),
    }
    if timed := records[len(records) - self._timed :]:
      line |= {
        "perf/step_time": seconds / len(timed),
        "perf/clips_per_second": sum(r.clips for r in timed) / seconds,
        "perf/data_wait_frac": sum(r.waited for r in timed) / seconds,
      }
    if costs := [r.cost for r in timed if r.cost is not None]:
      line |= {
        "perf/tokens_per_second": sum(c.tokens for c in costs) / seconds,
        "perf/mfu": flops.mfu(
          sum(c.flops for c in costs), seconds, *self._device
        ),
      }
    for name in records[-1].metrics.losses:
      losses = np.concatenate(
        [np.ravel(r.metrics.losses[name]) for r in records]
      )
      # Zero marks a record that lacks the term's modality.
      kept = losses[losses > 0]
      line[f"train/loss_{name}"] = kept.mean() if kept.size else None
    return line


def _check_finite(record: StepRecord, metrics: steps.StepMetrics) -> None:
  """Raise NonFiniteLossError if loss or gradient norm is not finite."""
  if np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm):
    return
  # Every process has the losses of all records, but only its own ids.
  of_all = distributed.gather(np.asarray(record.ids).tolist())
  ids = np.asarray(list(dict.fromkeys(i for part in of_all for i in part)))
  bad = np.zeros(len(ids), bool)
  for losses_B in metrics.losses.values():
    if len(losses_B) == len(bad):
      bad |= ~np.isfinite(losses_B)
  which = ids[bad] if bad.any() else ids
  named = ", ".join(_name(i) for i in which[:8])
  more = f" and {len(which) - 8} more" if len(which) > 8 else ""
  raise NonFiniteLossError(
    f"step {record.step}: loss {metrics.loss}, gradient norm"
    f" {metrics.grad_norm}; records (source:index) {named}{more}. The last"
    " checkpoint is from before it; look at the records, lower"
    " optimizer.learning_rate or raise optimizer.warmup_steps"
  )


def _name(identity: Any) -> str:
  number = int(identity)
  source = number >> schema.INDEX_BITS
  return f"{source}:{number & ((1 << schema.INDEX_BITS) - 1)}"


def _save(context: TrainContext, state: steps.TrainState, number: int) -> None:
  """Save the state together with the position of the input."""
  context.manager.save(number, state, context.input.get_state())


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
  """Traces the steps given by `Intervals.profile_steps`."""

  def __init__(self, context: TrainContext):
    self._steps = range(*context.intervals.profile_steps)
    self._directory, self._on = f"{context.directory}/trace", False

  def at(self, number: int) -> None:
    """Start or stop the trace before step `number`."""
    wanted = number in self._steps
    if wanted and not self._on:
      jax.profiler.start_trace(self._directory)
    elif self._on and not wanted:
      jax.profiler.stop_trace()
    self._on = wanted

  def end(self) -> None:
    """Stop the trace if one is running."""
    self.at(-1)
