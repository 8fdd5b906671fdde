"""A codec's run from its settings: everything checked, then everything made.

`stage` does the same for towers; loop, checkpoints and logs are the same.
"""

import contextlib
import functools
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ovi_jax import console
from ovi_jax import runtime
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.checkpoint import directory
from ovi_jax.checkpoint import init_from
from ovi_jax.checkpoint import saved
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.modality import AV
from ovi_jax.parallel import processes
from ovi_jax.training import loop
from ovi_jax.training import placement
from ovi_jax.training import stage
from ovi_jax.training import step
from ovi_jax.training import trainable
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.codecs import settings as settings_lib
from ovi_jax.training.codecs import table

MAY_CHANGE = (
  "cadence",
  "initial",  # only what a run began with
  "keep",
  "mesh",
  "profile_steps",
  "data.sources",  # the input knows a dataset wherever it lies
  "data.workers",
  "data.prefetch",
  "steps",
)


def train(
  settings: settings_lib.Settings,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  log: loop.Log = console.log,
) -> bool:
  """Train a codec, from the beginning or from its newest checkpoint.

  Args:
    settings: of the run.
    config: the same as plain values, kept in `workdir`.
    workdir: of the run: config, checkpoints, logs.
    log: called with each line for the user.

  Returns:
    Whether the run is finished; `False` if it was told to stop and saved.

  Raises:
    ValueError: config, data or directory cannot be; before the first step.
      `loop.NonFinite` later.
    OSError: the directory cannot be written.
  """
  with processes.beginning():
    check_vocabulary(settings)
  processes.agree(config)
  log = log if jax.process_index() == 0 else lambda _: None
  mesh = stage.mesh_of(settings.mesh)
  part, parts = processes.rows(mesh)
  placement.check_batch(settings.batch, settings.parts, mesh)
  trainer = trainer_of(settings)
  source = inputs.opened(
    settings.data,
    batch=settings.batch,
    seed=settings.seed,
    process_index=part,
    process_count=parts,
  )
  with contextlib.closing(source):
    make = functools.partial(initial_state, settings, trainer)
    random = functools.partial(table.init, settings.component, trainer.task)
    # A run that goes on needs the one it began with no more.
    begun = bool(saved.steps(workdir / stage.CHECKPOINTS))
    plan = None if begun else initial_plan(settings, trainer)
    shapes = jax.eval_shape(make)
    placed: Any = placement.state_shardings(
      shapes, AV(), mesh, settings.optimizer.average_on_host
    )
    instead = (
      "A new run can start from this one: --workdir=NEW"
      f" --config.initial={shlex.quote(str(workdir))}"
    )
    workdirs.check_config(
      workdir,
      config,
      MAY_CHANGE,
      {"trains": "all"},
      instead,
      functools.partial(stage.check_input, source, workdir, instead),
    )
    trained, frozen = (
      sum(x.size for x in group.values())
      for group in (shapes.trained, shapes.frozen)
    )
    log(
      f"training {settings.component}, {trained:,} of {trained + frozen:,}"
      f" parameters, on {mesh.size} devices"
    )
    stage.note_warmup(settings.optimizer, settings.steps, log)
    for line in plan.lines() if plan else ():
      log(f"parameters: {line}")
    with stage.opened(settings.keep, workdir, log) as (manager, written):
      work = loop.Work(
        trainer=trainer,
        mesh=mesh,
        input=source,
        null_SE=np.zeros((1, 1), np.float32),
        manager=manager,
        logs=written,
        directory=str(workdir),
        cadence=settings.cadence,
      )
      target: Any = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding), shapes, placed
      )
      state = loop.resume(work, target, log)
      if state is None:
        plan = plan or initial_plan(settings, trainer)
        given = {}
        if plan is not None:
          given = init_from.load(
            plan, random, settings.seed, placed.frozen | placed.trained
          )
        state = jax.jit(make, out_shardings=placed)(given)
      log(stage.tensorboard_line(workdir))
      finished = loop.run(work, state, log)
    if finished:
      result = workdir / stage.CHECKPOINTS / str(settings.steps)
      (part,) = (p for p, c in table.PARTS.items() if c == settings.component)
      log(f"finished: step {settings.steps} is saved in {result}; next:")
      log(
        "  python -m ovi_jax.training.codecs.assemble"
        f" --{part}={shlex.quote(str(workdir))} --out=WEIGHTS"
      )
    return finished


def check_vocabulary(settings: settings_lib.Settings) -> None:
  """Hold the text encoder's table to its tokenizer.

  Raises:
    ValueError: the tokenizer has more tokens than the table has rows.
  """
  if not settings.data.tokenizer or settings.component != "umt5":
    return
  tokenizer = tokenizer_lib.Tokenizer.load(settings.data.tokenizer)
  size, rows = tokenizer.model.get_vocab_size(), settings.model.vocabulary
  if size > rows:
    raise ValueError(
      f"config.model.vocab_size {rows} is less than the {size} tokens of"
      f" {settings.data.tokenizer}; give --config.model.vocab_size={size}"
    )


def trainer_of(settings: settings_lib.Settings) -> step.Trainer:
  """The step's parts."""
  return step.Trainer(
    settings.made_task(runtime.platform()),
    settings.optimizer,
    settings.steps,
    settings.parts,
  )


def initial_plan(
  settings: settings_lib.Settings, trainer: step.Trainer
) -> init_from.Plan | None:
  """What another run, or weights, begin this one with, if they do.

  Raises:
    ValueError: they are missing, damaged, or of a codec of other sizes.
  """
  if not settings.initial:
    return None
  shapes = jax.eval_shape(
    lambda: trainable.flat(
      table.init(settings.component, trainer.task, jax.random.key(0))
    )
  )
  source = init_from.Source(
    path=settings.initial, take=(".*",), component=settings.component
  )
  head = rf"{table.HEAD}/.*"  # not in weights
  weights = (pathlib.Path(settings.initial) / directory.MANIFEST).is_file()
  fresh = (head,) if weights and any(re.match(head, p) for p in shapes) else ()
  return init_from.plan(shapes, [source], fresh)


def initial_state(
  settings: settings_lib.Settings,
  trainer: step.Trainer,
  given: Mapping[str, jax.Array] | None = None,
) -> step.State:
  """The state before the first step, of random parameters or those given."""
  params = given or trainable.flat(
    table.init(settings.component, trainer.task, jax.random.key(settings.seed))
  )
  trained, frozen = trainable.split(dict(params), settings.trains)
  return step.init(trainer, trained, frozen, settings.seed)
