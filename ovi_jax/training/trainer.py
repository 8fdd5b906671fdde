"""A training run, of a stage or a codec.

The order matters: all checks of config, data, weights and workdir come before
memory is allocated and before the workdir is changed. `task` has what differs
between stages and codecs.
"""

import contextlib
import dataclasses
import functools
import logging
import shlex
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from ovi_jax.checkpoint import manager as managers
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.data import record_ids
from ovi_jax.sharding import distributed
from ovi_jax.training import goodput
from ovi_jax.training import logs
from ovi_jax.training import loop
from ovi_jax.training import optimizer
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import task as tasks

CHECKPOINTS = "checkpoints"
BASE = "base"  # digest of the frozen parameters that a checkpoint lacks
_log = logging.getLogger(__name__)


def train(
  settings: settings_lib.RunSettings,
  config: Mapping[str, Any],
  workdir: epath.PathLike,
  timer: goodput.Timer | None = None,
) -> bool:
  """Train from the beginning, or from the newest checkpoint in `workdir`.

  Args:
    settings: settings of a stage or a codec, see `settings.from_config`.
    config: the same as plain values; stored in `workdir`.
    workdir: directory of the run, for config, checkpoints and logs; may be in
      an object store (`gs://bucket/run`).
    timer: made by the command after its imports; by default it starts now.

  Returns:
    Whether the run is finished; `False` if it was interrupted and saved.

  Raises:
    ValueError: config, data, weights or workdir are invalid; raised before the
      first step. During training, `loop.BadStepError`.
    OSError: the directory cannot be written.
  """
  timer = timer or goodput.Timer()
  task = tasks.make(settings)
  with distributed.collective_errors():
    workdir = workdirs.locate(workdir)
    task.check()
  excluded = record_ids.parse(settings.data.exclude_records)
  distributed.assert_equal_across_hosts(
    {**config, "excluded records": list(excluded)}
  )
  mesh = task.make_mesh()
  step_config = task.step_config
  with distributed.collective_errors():
    opened = task.open_evaluators(mesh)
  with contextlib.closing(task.open_input(mesh)) as source:
    target = task.target_state(mesh)
    # A resumed run does not need the weights it was initialized from.
    resumed = bool(known_steps(workdir))
    plan = None
    if not resumed or task.has_base:
      plan = task.init_plan()
    if not resumed:
      task.check_data(opened)
    base = plan.digest if plan and task.has_base else ""
    hint = task.new_run_hint(workdir)
    changes = workdirs.check_config(
      workdir,
      config,
      settings.mutable_fields,
      instead=hint,
      also=functools.partial(check_input, source, workdir, hint, base),
    )
    _log_size(task.name, target, mesh)
    _log_warmup(settings)
    with _open_workdir(settings, workdir) as (manager, writer):
      context = task.setup(
        loop.TrainContext(
          step_config=step_config,
          mesh=mesh,
          input=source,
          manager=manager,
          logs=writer,
          directory=str(workdir),
          intervals=settings.intervals,
          skip_bad_steps=settings.bad_steps.skip_bad_steps,
          step_timeout_seconds=settings.step_timeout_seconds,
          timer=timer,
          in_checkpoint=task.in_checkpoint,
          checkpoint_metadata={BASE: base} if base else {},
        ),
        opened,
      )
      state = loop.restore(
        context, target, functools.partial(check_base, workdir, hint, base)
      )
      step = 0 if state is None else int(state.step)
      for line in workdirs.change_lines(changes, step):
        _log.info(f"config: {line}")
      with distributed.collective_errors():
        if jax.process_index() == 0:
          timer.resume(logs.read(workdir), step)
      if state is None:
        plan = plan or task.init_plan()
        for line in plan.lines():
          _log.info(f"parameters: {line}")
        state = task.initial_state(plan, target)
      elif task.has_base:
        assert plan is not None
        state = task.add_base(plan, target, state)
      _log.info(tensorboard_line(workdir))
      # Not before: a run that ends while it compiles has changed nothing.
      finished = loop.run(
        context,
        state,
        functools.partial(
          workdirs.record_changes, workdir, config, changes, step
        ),
      )
    if finished:
      for line in next_lines(task, workdir):
        _log.info(line)
    return finished


def rollback(workdir: epath.PathLike, step: int) -> None:
  """Let a run resume from an earlier checkpoint.

  Newer checkpoints are renamed, not deleted; the config change log names them.

  Args:
    workdir: directory of a run that is not running.
    step: step of the checkpoint.

  Raises:
    ValueError: there is no such checkpoint (lists those that exist), or its
      description is damaged.
  """
  workdir = workdirs.locate(workdir)
  directory = workdir / CHECKPOINTS
  workdirs.read_config(workdir)
  found = reader.steps(directory)
  if step not in found:
    listed = ", ".join(map(str, sorted(found))) or "none"
    raise ValueError(
      f"{directory} has no checkpoint of step {step}; it has {listed}"
    )
  reader.read_info(directory / str(step))
  names = managers.set_aside(directory, step, "rolled_back")
  if names:
    workdirs.add_config_change(workdir, {"step": step, "rolled_back": names})
  _log.info(
    f"{workdir} resumes from step {step}; {len(names)} newer checkpoints are"
    " renamed (a name without .rolled_back is used again) and may be deleted"
  )


@contextlib.contextmanager
def _open_workdir(
  settings: settings_lib.RunSettings, workdir: epath.Path
) -> Iterator[tuple[managers.Manager, logs.Writer]]:
  """Open the checkpoints and logs of a run; only process 0 writes logs."""
  keep = dataclasses.asdict(settings.checkpoints)
  with distributed.collective_errors():
    writer = logs.Writer() if jax.process_index() else logs.Logs(workdir)
  with managers.Manager(workdir / CHECKPOINTS, **keep) as manager, writer:
    yield manager, writer


def _log_size(name: str, target: Any, mesh: jax.sharding.Mesh) -> None:
  """Log the number of trained parameters and of devices."""
  trained, frozen = (
    sum(x.size for x in params.values())
    for params in (target.trained_params, target.frozen_params)
  )
  _log.info(
    f"training {name}: {trained:,} of {trained + frozen:,} parameters on"
    f" {mesh.size} devices"
  )


def _log_warmup(settings: settings_lib.RunSettings) -> None:
  """Log that the warm-up was shortened because it is longer than the run."""
  wanted, steps = settings.optimizer.warmup_steps, settings.num_train_steps
  used = optimizer.warmup_of(settings.optimizer, steps)
  if used != wanted:
    _log.info(
      f"note: optimizer.warmup_steps {wanted} is not less than the {steps}"
      f" steps of the run; {used} are used"
    )


def tensorboard_line(workdir: epath.Path) -> str:
  """A line with the command that shows a run's logs."""
  events = shlex.quote(str(workdir / logs.EVENTS))
  return f"logs: tensorboard --logdir={events}  (pip install tensorboard)"


def known_steps(workdir: epath.Path) -> list[int]:
  """Steps of the checkpoints that process 0 finds, newest first."""
  return distributed.broadcast(lambda: reader.steps(workdir / CHECKPOINTS))


def check_input(
  source: loop.Input,
  workdir: epath.Path,
  instead: str,
  base: str = "",
) -> None:
  """Check data and base against those of the newest checkpoint.

  Raises:
    ValueError: names the differences, before anything is written.
    OSError: the object store cannot be used.
  """
  for number in known_steps(workdir)[:1]:
    with distributed.collective_errors():
      _check_input(source, workdir, number, instead, base)


def _check_input(
  source: loop.Input,
  workdir: epath.Path,
  number: int,
  instead: str,
  base: str,
) -> None:
  """As `check_input`, for this process and the checkpoint of a step."""
  try:
    found = reader.read_info(workdir / CHECKPOINTS / str(number))
  except ValueError:
    return  # damaged: resuming names it and restores an earlier one
  check_base(workdir, instead, base, found.metadata)
  try:
    source.set_state(found.iterators[0])
  except ValueError as error:
    raise ValueError(
      f"{workdir}: {error}. To continue the run, use the datasets that it"
      f" had{_datasets_of(workdir)}. {instead}"
    ) from error


def check_base(
  workdir: epath.Path, instead: str, base: str, metadata: Mapping[str, Any]
) -> None:
  """Check that a LoRA's base is that of a checkpoint.

  Args:
    workdir: of the run.
    instead: how to start another run, for the message.
    base: digest of the base; empty if the run has none.
    metadata: of the checkpoint.

  Raises:
    ValueError: the checkpoint's LoRA was trained on another base model.
  """
  if base and metadata.get(BASE) != base:
    raise ValueError(
      f"{workdir}: config.init_from does not match the base model of this LoRA"
      f" (digest {base}, expected {metadata.get(BASE)}); point init_from to the"
      f" original weights, in the same dtype and format. {instead}"
    )


def _datasets_of(workdir: epath.Path) -> str:
  """The flag with the datasets of a run's stored config, in parentheses."""
  data = workdirs.read_config(workdir).get("data")
  sources = data.get("sources") if isinstance(data, dict) else None
  if not isinstance(sources, list):
    return ""
  return f" ({workdirs.flag('data.sources', sources)})"


def next_lines(task: tasks.Task, workdir: epath.Path) -> list[str]:
  """Log lines at the end of a run: its result and the next commands."""
  # The newest step may be larger, if the run was longer before.
  steps = known_steps(workdir)
  newest = max([*steps, task.settings.num_train_steps])
  result = workdir / CHECKPOINTS / str(newest)
  return [
    f"finished: step {newest} is saved in {result}; next:",
    *task.next_commands(workdir),
  ]
