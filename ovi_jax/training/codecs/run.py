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

from ovi_jax import cli
from ovi_jax import console
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import distributed
from ovi_jax.training import init_from
from ovi_jax.training import loop
from ovi_jax.training import param_filter
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training import trainer
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.codecs import settings as settings_lib
from ovi_jax.training.codecs import table

MUTABLE_FIELDS = (
  "log_every",
  "checkpoint_every",
  "eval_every",
  "sample_every",
  "init_from",  # read at the first step only
  "max_to_keep",
  "keep_period",
  "mesh",
  "profile_steps",
  "data.sources",  # the input knows a dataset wherever it lies
  "data.num_workers",
  "data.prefetch_batches",
  "num_train_steps",
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
      `loop.NonFiniteLossError` later.
    OSError: the directory cannot be written.
  """
  with distributed.collective_errors():
    check_vocabulary(settings)
  distributed.assert_equal_across_hosts(config)
  log = log if jax.process_index() == 0 else lambda _: None
  mesh = trainer.make_mesh(settings.mesh)
  part, parts = distributed.data_shard(mesh)
  state_sharding.check_batch(
    settings.batch_size, settings.grad_accum_steps, mesh
  )
  step_config = make_step_config(settings)
  source = inputs.opened(
    settings.data,
    batch=settings.batch_size,
    seed=settings.seed,
    process_index=part,
    process_count=parts,
  )
  with contextlib.closing(source):
    make = functools.partial(initial_state, settings, step_config)
    random = functools.partial(
      table.init, settings.component, step_config.objective
    )
    # A run that goes on needs the one it began with no more.
    begun = bool(reader.steps(workdir / trainer.CHECKPOINTS))
    plan = None if begun else init_plan(settings, step_config)
    shapes = jax.eval_shape(make)
    placed: Any = state_sharding.state_shardings(
      shapes, AV(), mesh, settings.optimizer.ema_on_host
    )
    instead = (
      "A new run can start from this one: --workdir=NEW"
      f" --config.init_from={shlex.quote(str(workdir))}"
    )
    workdirs.check_config(
      workdir,
      config,
      MUTABLE_FIELDS,
      instead,
      functools.partial(trainer.check_input, source, workdir, instead),
    )
    trained, frozen = (
      sum(x.size for x in group.values())
      for group in (shapes.trained_params, shapes.frozen_params)
    )
    log(
      f"training {settings.component}, {trained:,} of {trained + frozen:,}"
      f" parameters, on {mesh.size} devices"
    )
    trainer.note_warmup(settings.optimizer, settings.num_train_steps, log)
    for line in plan.lines() if plan else ():
      log(f"parameters: {line}")
    with trainer.open_workdir(settings.checkpoints, workdir) as (
      manager,
      written,
    ):
      work = loop.TrainContext(
        step_config=step_config,
        mesh=mesh,
        input=source,
        null_SE=np.zeros((1, 1), np.float32),
        manager=manager,
        logs=written,
        directory=str(workdir),
        intervals=settings.intervals,
      )
      target: Any = jax.tree.map(
        lambda x, sharding: x.update(sharding=sharding), shapes, placed
      )
      state = loop.restore(work, target, log)
      if state is None:
        plan = plan or init_plan(settings, step_config)
        given = {}
        if plan is not None:
          given = init_from.load(
            plan,
            random,
            settings.seed,
            placed.frozen_params | placed.trained_params,
          )
        state = jax.jit(make, out_shardings=placed)(given)
      log(trainer.tensorboard_line(workdir))
      finished = loop.run(work, state, log)
    if finished:
      result = workdir / trainer.CHECKPOINTS / str(settings.num_train_steps)
      (part,) = (p for p, c in table.PARTS.items() if c == settings.component)
      log(
        f"finished: step {settings.num_train_steps} is saved in {result}; next:"
      )
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
  size, rows = tokenizer.model.get_vocab_size(), settings.model.vocab_size
  if size > rows:
    raise ValueError(
      f"config.model.vocab_size {rows} is less than the {size} tokens of"
      f" {settings.data.tokenizer}; give --config.model.vocab_size={size}"
    )


def make_step_config(settings: settings_lib.Settings) -> step.TrainStepConfig:
  """The step's parts."""
  return step.TrainStepConfig(
    settings.make_objective(cli.platform()),
    settings.optimizer,
    settings.num_train_steps,
    settings.grad_accum_steps,
  )


def init_plan(
  settings: settings_lib.Settings, step_config: step.TrainStepConfig
) -> init_from.Plan | None:
  """What another run, or weights, begin this one with, if they do.

  Raises:
    ValueError: they are missing, damaged, or of a codec of other sizes.
  """
  if not settings.init_from:
    return None
  shapes = jax.eval_shape(
    lambda: param_filter.flat(
      table.init(settings.component, step_config.objective, jax.random.key(0))
    )
  )
  source = init_from.Source(
    path=settings.init_from, include=(".*",), component=settings.component
  )
  head = rf"{table.HEAD}/.*"  # not in weights
  weights = (pathlib.Path(settings.init_from) / weights_dir.MANIFEST).is_file()
  scratch = (
    (head,) if weights and any(re.match(head, p) for p in shapes) else ()
  )
  return init_from.plan(shapes, [source], scratch)


def initial_state(
  settings: settings_lib.Settings,
  step_config: step.TrainStepConfig,
  given: Mapping[str, jax.Array] | None = None,
) -> step.TrainState:
  """The state before the first step, of random parameters or those given."""
  params = given or param_filter.flat(
    table.init(
      settings.component, step_config.objective, jax.random.key(settings.seed)
    )
  )
  trained, frozen = param_filter.split(dict(params), settings.trainable)
  return step.init_state(step_config, trained, frozen, settings.seed)
