"""A run from its settings: everything checked, then everything made.

Order is the point: what can be wrong with config, data, towers or directory is
found before memory is taken and before the directory is touched.
"""

import contextlib
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax import console
from ovi_jax import flops
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.attention import attention
from ovi_jax.attention import context as contexts
from ovi_jax.checkpoint import manager as managers
from ovi_jax.checkpoint import reader
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.data import loader
from ovi_jax.data import quality
from ovi_jax.models import architecture
from ovi_jax.models import fusion
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import distributed
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import batch_encoder
from ovi_jax.training import init_from
from ovi_jax.training import logs
from ovi_jax.training import loop
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.evaluators import evaluators
from ovi_jax.training.objectives import flow_matching

CHECKPOINTS = "checkpoints"
MUTABLE_FIELDS = (
  "init_from",
  "log_every",
  "checkpoint_every",
  "eval_every",
  "sample_every",
  "max_to_keep",
  "keep_period",
  "mesh",
  "pretrained",
  "eval",
  "eval_samples",
  "profile_steps",
  "data.sources",  # the loader knows a dataset wherever it lies
  "data.num_workers",
  "data.prefetch_batches",
  "data.max_unknown_words",
  "data.min_codec_psnr",
  "data.max_codec_mel_error",
  "num_train_steps",
  "attention",
  "context_parallelism",
  "remat",
)
Log = Callable[[str], None]


def train(
  settings: settings_lib.Settings,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  log: Log = console.log,
) -> bool:
  """Run a stage, from the beginning or from its newest checkpoint.

  Args:
    settings: of the run.
    config: the same as plain values, kept in `workdir`.
    workdir: of the run: config, checkpoints, logs.
    log: called with each line for the user.

  Returns:
    Whether the run is finished; `False` if it was told to stop and saved.

  Raises:
    ValueError: config, data, towers or directory cannot be; before the first
      step. `loop.NonFiniteLossError` later.
    OSError: the directory cannot be written.
  """
  with distributed.collective_errors():
    settings.check_sources()
  distributed.assert_equal_across_hosts(config)
  log = log if jax.process_index() == 0 else lambda _: None
  mesh = make_mesh(settings.mesh)
  check_mesh(settings, mesh)
  step_config = make_step_config(settings)
  components = batch_encoder.open_pretrained(settings, mesh)
  held_out = evaluators.Evaluators.opened(settings, mesh)
  part, parts = distributed.data_shard(mesh)
  source = loader.load(
    settings.data,
    batch=settings.batch_size,
    seed=settings.seed,
    process_index=part,
    process_count=parts,
  )
  with contextlib.closing(source):
    for rows in source.rows:
      state_sharding.check_batch(rows, settings.grad_accum_steps, mesh)
    target = target_state(settings, step_config, mesh)
    # A run that goes on needs its towers no more.
    begun = bool(reader.steps(workdir / CHECKPOINTS))
    plan = None if begun else init_plan(settings)
    if not begun:
      check_quality(settings, components, log)
    instead = init_from_hint(settings, workdir)
    workdirs.check_config(
      workdir,
      config,
      MUTABLE_FIELDS,
      instead=instead,
      also=functools.partial(check_input, source, workdir, instead),
    )
    trained = sum(x.size for x in target.trained_params.values())
    whole = trained + sum(x.size for x in target.frozen_params.values())
    log(f"training {trained:,} of {whole:,} parameters on {mesh.size} devices")
    note_warmup(settings.optimizer, settings.num_train_steps, log)
    with open_workdir(settings.checkpoints, workdir) as (manager, written):
      ready = batch_encoder.load(settings, components)
      null_SE = ready.null_text(np.asarray(source.null_text))
      shown = step_config.objective.model, ready, null_SE
      work = loop.TrainContext(
        step_config=step_config,
        mesh=mesh,
        input=source,
        null_SE=null_SE,
        manager=manager,
        logs=written,
        directory=str(workdir),
        intervals=settings.intervals,
        encode_batch=ready,
        evaluate=held_out.loss_evaluator(*shown),
        sample=held_out.sample_evaluator(*shown, components, workdir, written),
        buckets=len(settings.data.buckets),
        cost=lambda batch: flops.batch_cost(
          settings.model,
          jax.tree.map(np.shape, batch.latents),
          attention_only=settings.trainable == param_filter.ATTENTION,
        ),
      )
      state = loop.restore(work, target, log)
      if state is None:
        plan = plan or init_plan(settings)
        for line in plan.lines():
          log(f"parameters: {line}")
        state = initial_state(settings, step_config, plan, target)
      log(tensorboard_line(workdir))
      finished = loop.run(work, state, log)
    if finished:
      for line in next_lines(settings, workdir):
        log(line)
    return finished


def tensorboard_line(workdir: pathlib.Path) -> str:
  """The command that shows a run's logs."""
  events = shlex.quote(str(workdir / logs.EVENTS))
  return f"logs: tensorboard --logdir={events}  (pip install tensorboard)"


def note_warmup(
  settings: optimizer.OptimizerConfig, steps: int, log: Log
) -> None:
  """Say that a run is too short for its warm-up."""
  used = optimizer.warmup_of(settings, steps)
  if used != settings.warmup_steps:
    log(
      f"note: optimizer.warmup_steps {settings.warmup_steps} is not less than"
      f" the {steps} steps of the run; {used} are used"
    )


def init_from_hint(
  settings: settings_lib.Settings, workdir: pathlib.Path
) -> str:
  """How to start another run from the result of this one."""
  given = " ".join(
    f"--config.init_from.{name}={shlex.quote(str(workdir))}"
    for name in settings.model.present()
  )
  return f"A new run can start from this one: --workdir=NEW {given}"


def check_quality(
  settings: settings_lib.Settings,
  components: component_loader.Components | None,
  log: Log,
) -> None:
  """Say what tokenizer and codecs lose of the data.

  Of cached latents and embeddings it was measured when they were made.

  Raises:
    ValueError: it is beyond the limits of `data`.
  """
  data, found = settings.data, quality.Quality()
  splits = loader.open_sources(data)
  tokenizer = pathlib.Path(data.tokenizer or "")
  if not data.tokenizer and settings.pretrained:
    tokenizer = pathlib.Path(settings.pretrained) / weights_dir.TOKENIZER
  parts = ()
  if data.encode_on_the_fly and data.min_codec_psnr:
    parts = tuple(settings.model.present())
    if components is not None and "vocoder" not in components.manifest.digests:
      parts = tuple(part for part in parts if part != "audio")
  if components is not None and parts:
    log("measuring the codecs on a few clips …")
    found = quality.reconstruction(components, splits, parts)
  kept = [
    quality.Quality.read(pathlib.Path(split.path) / quality.FILE)
    for split in splits
  ]
  if tokenizer.is_file() and not all(k and k.coverage for k in kept):
    covered = quality.coverage(
      tokenizer_lib.Tokenizer.load(tokenizer),
      quality.captions_of(splits),
      data.max_text_len,
    )
    found = dataclasses.replace(found, coverage=covered)
    kept = [dataclasses.replace(k, coverage=None) if k else None for k in kept]
  measured = [("", found)]
  if not data.encode_on_the_fly:
    measured += [(f"{s.path}: ", k) for s, k in zip(splits, kept) if k]
  for where, each in measured:
    for line in each.lines():
      log(f"{where}{line}")
  for where, each in measured:
    try:
      each.check(
        data.limits,
        "Use weights whose tokenizer and codecs suit the data, or raise the"
        " limit with --config.data.NAME=VALUE",
      )
    except ValueError as error:
      raise ValueError(f"{where}{error}") from error


def check_input(
  source: loop.Input, workdir: pathlib.Path, instead: str
) -> None:
  """Refuse data that a run's newest checkpoint was not saved with.

  Raises:
    ValueError: says what differs, before anything is written.
  """
  for number in reader.steps(workdir / CHECKPOINTS)[:1]:
    try:
      found = reader.read_info(workdir / CHECKPOINTS / str(number))
    except ValueError:
      return  # it is damaged: resuming names it, and takes an earlier one
    try:
      source.set_state(found.iterators[0])
    except ValueError as error:
      raise ValueError(
        f"{workdir}: {error}. To go on with the run, give the datasets that it"
        f" had{_datasets_of(workdir)}. {instead}"
      ) from error


def _datasets_of(workdir: pathlib.Path) -> str:
  """The flag that gives a run the datasets of its config, in brackets."""
  data = workdirs.read_config(workdir).get("data")
  sources = data.get("sources") if isinstance(data, dict) else None
  if not isinstance(sources, list):
    return ""
  return f" ({workdirs.flag('data.sources', sources)})"


def next_lines(
  settings: settings_lib.Settings, workdir: pathlib.Path
) -> list[str]:
  """Where the result of a finished run is, and what comes next."""
  # A run that is longer already is not shortened.
  newest = max([*reader.steps(workdir / CHECKPOINTS), settings.num_train_steps])
  result = workdir / CHECKPOINTS / str(newest)
  lines = [f"finished: step {newest} is saved in {result}; next:"]
  quoted, weights = shlex.quote(str(workdir)), shlex.quote(f"{workdir}/weights")
  if len(settings.model.present()) == 1:
    (name,) = settings.model.present()
    lines.append(f"  a run with --config.init_from.{name}={quoted}")
    return lines
  rest = "" if settings.pretrained else " --pretrained=WEIGHTS"
  return [
    *lines,
    f"  python -m ovi_jax.training.export --workdir={quoted}{rest}"
    f" --out={weights}",
    f'  python sample.py --weights={weights} --prompt="…"',
  ]


@contextlib.contextmanager
def open_workdir(
  keep: settings_lib.CheckpointPolicy, workdir: pathlib.Path
) -> Iterator[tuple[managers.Manager, logs.Writer]]:
  """Checkpoints and logs of a run's directory."""
  directory = workdir / CHECKPOINTS
  first = jax.process_index() == 0
  written = logs.Logs(workdir) if first else logs.NullWriter()
  with (
    managers.Manager(directory, keep.max_to_keep, keep.keep_period) as manager,
    written,
  ):
    yield manager, written


def make_mesh(
  sizes: Mapping[str, int], devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh of a run; one axis may take the devices that are left over.

  Raises:
    ValueError: the axes do not multiply to the devices.
  """
  devices = jax.devices() if devices is None else devices
  return meshes.make(devices, **meshes.resolve_sizes(sizes, len(devices)))


def check_mesh(
  settings: settings_lib.Settings, mesh: jax.sharding.Mesh
) -> None:
  """Refuse a mesh that cannot divide the batch or the heads.

  Raises:
    ValueError: says what would do.
  """
  state_sharding.check_batch(
    settings.batch_size, settings.grad_accum_steps, mesh
  )
  for tower in settings.model.present().values():
    contexts.check(mesh.shape, tower.num_heads, settings.context_parallelism)


def make_step_config(
  settings: settings_lib.Settings,
) -> step.TrainStepConfig[flow_matching.FlowMatching]:
  """The step's parts."""
  platform = cli.platform()
  dtype = settings.compute_dtype(platform)
  tower = next(iter(settings.model.present().values()))
  backend = attention.resolve(
    settings.attention, platform, dtype, tower.head_size
  )
  fusion.apply_remat(lambda x: x, settings.remat)
  model = fusion.FusionDiT(
    settings.model,
    dtype,
    backend,
    remat=settings.remat,
    unroll=fusion.should_unroll(settings.model, platform),
    context_parallelism=settings.context_parallelism,
  )
  step_config = step.TrainStepConfig(
    flow_matching.FlowMatching(model, settings.objective),
    settings.optimizer,
    settings.num_train_steps,
    settings.grad_accum_steps,
  )
  return step_config


def parameter_shapes(
  settings: settings_lib.Settings,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Parameters by path; trained ones float32, frozen ones as stored."""
  params = param_filter.flat(
    architecture.parameter_shapes("fusion", settings.model)
  )
  trained, _ = param_filter.split(params, settings.trainable)
  stored = settings.stored_dtype(cli.platform())
  return {
    path: jax.ShapeDtypeStruct(
      x.shape, np.dtype("float32") if path in trained else stored
    )
    for path, x in params.items()
  }


def target_state(
  settings: settings_lib.Settings,
  step_config: step.TrainStepConfig,
  mesh: jax.sharding.Mesh,
) -> step.TrainState:
  """Shapes, dtypes and shardings of the state; nothing is made."""
  shapes = jax.eval_shape(
    functools.partial(_state, settings, step_config), parameter_shapes(settings)
  )
  placed = state_sharding.state_shardings(
    shapes, settings.model, mesh, settings.optimizer.ema_on_host
  )
  target: Any = jax.tree.map(
    lambda x, sharding: x.update(sharding=sharding), shapes, placed
  )
  return target


def init_plan(settings: settings_lib.Settings) -> init_from.Plan:
  """Where every parameter comes from, checked against the towers' files."""
  check_sizes(settings)
  towers: dict[str, list[str]] = {}
  for name in settings.model.present():
    towers.setdefault(getattr(settings.init_from, name), []).append(name)
  scratch = [
    pattern
    for name in towers.pop(settings_lib.SCRATCH, [])
    for pattern in init_from.tower(name)
  ]
  if len(towers) == len(settings.model.present()) == 2:
    scratch.append(init_from.FUSION_LAYERS)  # towers alone do not bring them
  # A tower alone may come out of a fusion model.
  alone = len(settings.model.present()) == 1
  sources = [
    init_from.Source(
      path=path,
      include=tuple(p for n in names for p in init_from.tower(n)),
      exclude=(init_from.FUSION_LAYERS,) if alone else (),
    )
    for path, names in towers.items()
  ]
  return init_from.plan(parameter_shapes(settings), sources, scratch)


def check_sizes(settings: settings_lib.Settings) -> None:
  """Hold the towers' sizes to those of converted weights they start from.

  Raises:
    ValueError: they differ; names the config that takes sizes from weights.
  """
  for name, tower in settings.model.present().items():
    path = pathlib.Path(getattr(settings.init_from, name))
    if not (path / weights_dir.MANIFEST).is_file():
      continue
    found = getattr(weights_dir.manifest_of(path).architecture.fusion, name)
    if found is None:
      raise ValueError(
        f"init_from.{name}: the weights in {path} have no {name}"
      )
    theirs, ours = dataclasses.asdict(found), dataclasses.asdict(tower)
    if different := [
      f"{name}.{key}: {theirs[key]} in the weights, {ours[key]} in the config"
      for key in ours
      if ours[key] != theirs[key]
    ]:
      raise ValueError(
        f"config.model does not fit the weights in {path}"
        f" ({'; '.join(different)}); --config=configs/fine_tune.py:{path} takes"
        " sizes, codecs and text encoder from them"
      )


def initial_state(
  settings: settings_lib.Settings,
  step_config: step.TrainStepConfig,
  plan: init_from.Plan,
  target: step.TrainState,
) -> step.TrainState:
  """The state before the first step, straight into its shardings."""
  placed: Any = jax.tree.map(lambda x: x.sharding, target)

  def scratch(key: jax.Array) -> Any:
    return architecture.init("fusion", settings.model, key)

  params = init_from.load(
    plan, scratch, settings.seed, placed.frozen_params | placed.trained_params
  )
  make = functools.partial(_state, settings, step_config)
  return jax.jit(make, out_shardings=placed, donate_argnums=0)(params)


def _state(
  settings: settings_lib.Settings,
  step_config: step.TrainStepConfig,
  params: dict[str, jax.Array],
) -> step.TrainState:
  trained, frozen = param_filter.split(params, settings.trainable)
  return step.init_state(step_config, trained, frozen, settings.seed)
