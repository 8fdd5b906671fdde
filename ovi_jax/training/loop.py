"""The loop: batches in, checkpoints and logs out, restartable at any moment.

The only mutable state of training lives here. A step's numbers are read while
the next one computes; nothing is saved that was not found finite.
"""

import dataclasses
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

INTERRUPTED = 75  # exit code of a run that saved because it was told to stop

Log = Callable[[str], None]


class Input(Protocol):
  """An endless iterator of batches whose place can be kept."""

  def __next__(self) -> schema.Batch: ...
  def get_state(self) -> Any: ...
  def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Intervals:
  """How often something happens, in steps; 0 = never.

  Attributes:
    log_every: a line in the logs; averages since the last.
    checkpoint_every: a checkpoint; the last step is saved anyway.
    eval_every: the loss on held-out records, before the first step too.
    sample_every: clips.
    profile_steps: at which steps a trace begins and ends (`profile_steps` in a
      config); equal for none.
  """

  log_every: int = 10
  checkpoint_every: int = 1000
  eval_every: int = 0
  sample_every: int = 0
  profile_steps: tuple[int, int] = (0, 0)

  def __post_init__(self):
    for name in ("log_every", "checkpoint_every", "eval_every", "sample_every"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"{name} must be 0 (never) or more steps, got {getattr(self, name)}"
        )
    if (
      len(steps := tuple(self.profile_steps)) != 2
      or not 0 <= steps[0] <= steps[1]
    ):
      raise ValueError(
        f"profile_steps must be (first, last), got {self.profile_steps}"
      )


class NonFiniteLossError(ValueError):
  """A loss or gradient that is no number."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainContext:
  """What a run is given.

  Attributes:
    step_config: what a step is made of.
    mesh: the devices.
    input: batches of this process' rows.
    null_SE: embedding of the empty prompt.
    manager: of the checkpoints.
    logs: of the scalars.
    directory: for traces.
    intervals: what happens when.
    encode_batch: places a batch on the mesh; encodes media, if they are read.
    cost: of a batch on the devices; `None` for a task that counts none.
    evaluate: called with the state; returns scalars to log.
    sample: called with the state.
    buckets: of how many sizes batches are; each is compiled once.
  """

  step_config: steps.TrainStepConfig
  mesh: jax.sharding.Mesh
  input: Input
  null_SE: np.ndarray
  manager: managers.Manager
  logs: logs_lib.Writer
  directory: str
  intervals: Intervals
  encode_batch: Callable[[schema.Batch, jax.sharding.Mesh], schema.Batch] = (
    state_sharding.batch
  )
  cost: Callable[[schema.Batch], flops.BatchCost] | None = None
  evaluate: Callable[[steps.TrainState], Mapping[str, float]] = lambda _: {}
  sample: Callable[[steps.TrainState], Any] = lambda _: None
  buckets: int = 1


class StepRecord(NamedTuple):
  """A finished step, still on the devices."""

  step: int  # finished steps
  metrics: steps.StepMetrics
  ids: np.ndarray
  clips: int
  cost: flops.BatchCost | None
  waited: float


def compile_step(work: TrainContext, shardings: steps.TrainState) -> Any:
  """The step as a program: state donated, kept where it is."""
  jitted = steps.jit_train_step(shardings, work.mesh)
  whole = jax.sharding.NamedSharding(work.mesh, jax.P())
  null = jax.device_put(work.null_SE, whole)
  return lambda state, batch: jitted(work.step_config, state, batch, null)


def restore(
  work: TrainContext, target: steps.TrainState, log: Log = console.log
) -> steps.TrainState | None:
  """The newest checkpoint's state, its input set to its place.

  Args:
    work: what the run is given.
    target: shapes and shardings of the state, or such a state.
    log: called with each line for the user.

  Returns:
    `None` if there is no checkpoint.

  Raises:
    ValueError: checkpoints are there, but none fits or none can be read.
  """
  restored = work.manager.restore_newest(target)
  if restored is None:
    return None
  work.input.set_state(restored.iterator)
  log(f"continuing from the checkpoint of step {restored.step}")
  return restored.state


def run(
  work: TrainContext, state: steps.TrainState, log: Log = console.log
) -> bool:
  """Train until the trainer's last step, or until told to stop.

  SIGTERM and Ctrl-C stop it; a second Ctrl-C ends the process at once.

  Args:
    work: what the run is given.
    state: on the mesh, see `placement`; donated.
    log: called with each line for the user.

  Returns:
    Whether the run is finished; `False` if it saved and left early.

  Raises:
    NonFiniteLossError: names the step and the records; the last good checkpoint
      stays.
    OSError: a checkpoint cannot be written.
  """
  with distributed.preemption_watcher() as stop, jax.set_mesh(work.mesh):
    return _loop(work, state, stop, log)


def _loop(
  work: TrainContext,
  state: steps.TrainState,
  stop: Callable[[int], bool],
  log: Log,
) -> bool:
  """`run`, stopped before the step for which `stop` is true."""
  total, number = work.step_config.num_train_steps, int(state.step)
  shardings = jax.tree.map(lambda x: x.sharding, state)
  advance = compile_step(work, shardings)
  last: StepRecord | None = None
  window, trace = MetricAccumulator(work), Profiler(work)
  sizes: list[Any] = []
  bar = console.progress(
    total=total,
    initial=number,
    unit="step",
    desc="training",
    disable=jax.process_index() > 0,
  )
  with bar:
    # What training has to improve on.
    if not number and work.intervals.eval_every:
      _judge(work, state, number, bar, log)
    while number < total and not stop(number):
      trace.at(number)
      began = time.perf_counter()
      host = next(work.input)
      waited = time.perf_counter() - began
      batch = work.encode_batch(host, work.mesh)
      if compiles := (size := _size(batch)) not in sizes:
        sizes.append(size)
        _announce(bar, log, len(sizes), work.buckets, batch)
      state, metrics = advance(state, batch)
      if compiles:
        bar.unpause()  # the time left is that of steps
      number += 1
      batch = batch._replace(ids=host.ids)
      following = _report(work, number, metrics, batch, waited)
      if last is not None:
        window.add(last)
        bar.set_postfix_str(f"loss {window.loss:.4f}", refresh=False)
      last = following
      saving = _due(number, work.intervals.checkpoint_every) and number < total
      judging = _due(number, work.intervals.eval_every)
      sampling = _due(number, work.intervals.sample_every)
      if saving or judging or sampling:
        window.add(last)
        last = None
      if saving:
        _save(work, state, number)
      if judging:
        _judge(work, state, number, bar, log)
      if sampling:
        bar.set_description("making samples")
        work.sample(state)
        bar.set_description("training")
      if judging or sampling:
        window.pause()
      bar.update()
    if last is not None:
      window.add(last)
  trace.end()
  _save(work, state, number)
  work.manager.wait()
  work.logs.flush()
  if number < total:
    log(
      f"told to stop: saved step {number} of {total}; the same command goes on"
      " from there"
    )
  return number >= total


def _judge(
  work: TrainContext, state: steps.TrainState, number: int, bar: Any, log: Log
) -> None:
  """Log the held-out loss, and print it without that of each noise level."""
  bar.set_description("held-out loss")
  values = work.evaluate(state)
  work.logs.scalars(number, values)
  shown = ", ".join(
    f"{name.removeprefix(f'{eval_loss.METRIC_PREFIX}_')} {value:.4f}"
    for name, value in values.items()
    if "_t" not in name.removeprefix(eval_loss.METRIC_PREFIX)
  )
  if shown:
    bar.clear()
    log(f"step {number}: held-out loss {shown}")
  bar.set_description("training")


def _size(batch: schema.Batch) -> Any:
  """What of a batch decides the program of its step."""
  return [(x.shape, x.dtype) for x in jax.tree.leaves(batch)]


def _announce(
  bar: Any, log: Log, number: int, count: int, batch: schema.Batch
) -> None:
  """Say that a step is about to be compiled, which may take minutes."""
  of = f"bucket {number} of {count}" if count > 1 else "the step"
  grids = ", ".join(
    f"{name} {'x'.join(map(str, latents.shape[1:-1]))}"
    for name, latents in batch.latents.present().items()
    if latents.ndim > 2
  )
  bar.clear()
  log(f"compiling {of}{f' (latents: {grids})' if grids else ''} …")
  bar.refresh()


class MetricAccumulator:
  """Sums over the steps since the last line of the log.

  Attributes:
    loss: of the last step that has ended.
  """

  def __init__(self, work: TrainContext):
    self._work = work
    kind = jax.devices()[0].device_kind
    self._device = kind, jax.device_count()
    self._rate = optimizer.learning_rate(
      work.step_config.optimizer, work.step_config.num_train_steps
    )
    self._reports: list[StepRecord] = []
    self._timed = 0  # how many of them are no first step, which compiles
    self._first = True
    self.loss = float("nan")
    self.pause()

  def pause(self) -> None:
    """Something else took time: count from now."""
    self._began, self._timed = time.perf_counter(), 0

  def add(self, report: StepRecord) -> None:
    """Wait for a step, check its numbers, write a line if one is due.

    Raises:
      NonFiniteLossError: names the step and the records.
    """
    metrics = jax.device_get(report.metrics)
    _check_finite(report, metrics)
    self.loss = float(metrics.loss)
    self._reports.append(report._replace(metrics=metrics))
    if self._first:
      self._first = False
      self.pause()
    else:
      self._timed += 1
    if _due(report.step, self._work.intervals.log_every):
      # The next window begins where this one ends, not when it is written.
      now = time.perf_counter()
      line = self._line(now - self._began)
      self._began, self._timed, self._reports = now, 0, []
      self._work.logs.scalars(report.step, line)

  def _line(self, seconds: float) -> dict[str, float | None]:
    """Averages since the last line; speeds of the steps that were timed."""
    reports = self._reports
    line: dict[str, float | None] = {
      "train/loss": float(np.mean([r.metrics.loss for r in reports])),
      "train/grad_norm": float(np.mean([r.metrics.grad_norm for r in reports])),
      "train/learning_rate": float(
        np.asarray(self._rate(reports[-1].step - 1))
      ),
    }
    if timed := reports[len(reports) - self._timed :]:
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
    for name in reports[-1].metrics.losses:
      losses = np.concatenate(
        [np.ravel(r.metrics.losses[name]) for r in reports]
      )
      # Zero stands for a record that lacks what the term is of.
      kept = losses[losses > 0]
      line[f"train/loss_{name}"] = kept.mean() if kept.size else None
    return line


def _report(
  work: TrainContext,
  number: int,
  metrics: steps.StepMetrics,
  batch: schema.Batch,
  waited: float,
) -> StepRecord:
  """What is known of a step when it has been sent off.

  Args:
    work: what the run is given.
    number: of the step.
    metrics: of the step.
    batch: of all rows, but for the ids, which are of this process' rows.
    waited: seconds, for the batch.
  """
  return StepRecord(
    step=number,
    metrics=metrics,
    ids=batch.ids,
    clips=jax.tree.leaves(batch)[0].shape[0],
    cost=None if work.cost is None else work.cost(batch),
    waited=waited,
  )


def _check_finite(report: StepRecord, metrics: steps.StepMetrics) -> None:
  """Refuse numbers that are none; name the records whose loss it was."""
  if np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm):
    return
  # Every process has the losses of all records, and the ids of its own.
  of_all = distributed.gather(np.asarray(report.ids).tolist())
  ids = np.asarray(list(dict.fromkeys(i for part in of_all for i in part)))
  bad = np.zeros(len(ids), bool)
  for losses_B in metrics.losses.values():
    if len(losses_B) == len(bad):
      bad |= ~np.isfinite(losses_B)
  which = ids[bad] if bad.any() else ids
  named = ", ".join(_name(i) for i in which[:8])
  more = f" and {len(which) - 8} more" if len(which) > 8 else ""
  raise NonFiniteLossError(
    f"step {report.step}: loss {metrics.loss}, gradient norm"
    f" {metrics.grad_norm}; records (source:index) {named}{more}. The last"
    " checkpoint is from before it; look at the records, lower"
    " optimizer.learning_rate or raise optimizer.warmup_steps"
  )


def _name(identity: Any) -> str:
  number = int(identity)
  source = number >> schema.INDEX_BITS
  return f"{source}:{number & ((1 << schema.INDEX_BITS) - 1)}"


def _save(work: TrainContext, state: steps.TrainState, number: int) -> None:
  """Save the state and the input's place together."""
  work.manager.save(number, state, work.input.get_state())


def _due(number: int, every: int) -> bool:
  return every > 0 and number % every == 0


class Profiler:
  """The profiler, on for the steps that the cadence asks for."""

  def __init__(self, work: TrainContext):
    self._steps = range(*work.intervals.profile_steps)
    self._directory, self._on = f"{work.directory}/trace", False

  def at(self, number: int) -> None:
    """Begin or end before step `number`."""
    wanted = number in self._steps
    if wanted and not self._on:
      jax.profiler.start_trace(self._directory)
    elif self._on and not wanted:
      jax.profiler.stop_trace()
    self._on = wanted

  def end(self) -> None:
    """The run ends: write what there is."""
    self.at(-1)
