"""A run from its settings: everything checked, then everything made.

Order is the point: what can be wrong with config, data, towers or directory is
found before memory is taken and before the directory is touched.
"""

import contextlib
import pathlib
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ovi_jax import runtime
from ovi_jax.checkpoint import init_from
from ovi_jax.checkpoint import manager as managers
from ovi_jax.checkpoint import workdir as workdirs
from ovi_jax.data import loader
from ovi_jax.models import architecture
from ovi_jax.models import attention
from ovi_jax.models import fusion
from ovi_jax.parallel import mesh as meshes
from ovi_jax.training import logs
from ovi_jax.training import loop
from ovi_jax.training import placement
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import step
from ovi_jax.training import trainable

CHECKPOINTS = "checkpoints"
MAY_CHANGE = ("cadence", "keep", "mesh", "steps", "attention", "remat")
# What two towers that were alone do not bring.
FUSION_LAYERS = r"blocks/(video|audio)/cross_attention/fusion_.*"

Log = Callable[[str], None]


def train(
  settings: settings_lib.Settings,
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  log: Log = print,
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
      step. `loop.NonFinite` later.
    OSError: the directory cannot be written.
  """
  mesh = mesh_of(settings)
  placement.check_batch(settings.batch, settings.parts, mesh)
  trainer = trainer_of(settings)
  source = loader.load(
    settings.data,
    batch=settings.batch,
    seed=settings.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  with contextlib.closing(source):
    plan = initial_plan(settings)
    workdirs.check_config(workdir, config, MAY_CHANGE)
    state = initial_state(settings, trainer, plan, mesh)
    trained = sum(x.size for x in state.trained.values())
    whole = trained + sum(x.size for x in state.frozen.values())
    log(f"training {trained:,} of {whole:,} parameters on {mesh.size} devices")
    for line in plan.lines():
      log(f"parameters: {line}")
    with _opened(settings, workdir, log) as (manager, written):
      work = loop.Work(
        trainer=trainer,
        mesh=mesh,
        input=source,
        null_SE=np.asarray(source.null_text),
        manager=manager,
        logs=written,
        directory=str(workdir),
        cadence=settings.cadence,
        attention_only=settings.trains == trainable.ATTENTION,
      )
      return loop.run(work, loop.resume(work, state, log), log)


@contextlib.contextmanager
def _opened(
  settings: settings_lib.Settings, workdir: pathlib.Path, log: Log
) -> Iterator[tuple[managers.Manager, logs.Logs]]:
  """Checkpoints and logs of a run's directory."""
  config = managers.Config(
    directory=str(workdir / CHECKPOINTS),
    keep_last=settings.keep.last,
    keep_every=settings.keep.every,
  )
  with managers.Manager(config, log) as manager, logs.Logs(workdir) as written:
    yield manager, written


def mesh_of(settings: settings_lib.Settings) -> jax.sharding.Mesh:
  """The mesh that the settings name; one axis may take what is left over.

  Raises:
    ValueError: the axes do not multiply to the devices.
  """
  sizes, devices = dict(settings.mesh), jax.devices()
  open_axes = [name for name, size in sizes.items() if size == 0]
  if len(open_axes) == 1:
    taken = int(np.prod([s for s in sizes.values() if s]))
    sizes[open_axes[0]] = max(1, len(devices) // taken)
  return meshes.make(devices, **sizes)


def trainer_of(settings: settings_lib.Settings) -> step.Trainer:
  """The step's parts, the schedule checked."""
  platform = runtime.platform()
  dtype = settings.compute_dtype(platform)
  tower = next(iter(settings.model.present().values()))
  backend = attention.resolve(
    settings.attention, platform, dtype, tower.head_size
  )
  fusion.rematerialized(lambda x: x, settings.remat)
  trainer = step.Trainer(
    fusion.FusionDiT(settings.model, dtype, backend, remat=settings.remat),
    settings.objective,
    settings.optimizer,
    settings.steps,
    settings.parts,
  )
  trainer.transformation  # noqa: B018  a warm-up that is too long says so
  return trainer


def initial_plan(settings: settings_lib.Settings) -> init_from.Plan:
  """Where every parameter comes from, checked against the towers' files."""
  params = trainable.flat(
    architecture.parameter_shapes("fusion", settings.model)
  )
  trained, frozen = trainable.split(params, settings.trains)
  stored = settings.stored_dtype(runtime.platform())
  shapes = {n: (x.shape, np.dtype("float32")) for n, x in trained.items()}
  shapes |= {n: (x.shape, stored) for n, x in frozen.items()}
  towers: dict[str, list[str]] = {}
  for name in settings.model.present():
    towers.setdefault(getattr(settings.initial, name), []).append(name)
  fresh = [
    pattern
    for name in towers.pop(settings_lib.FRESH, [])
    for pattern in init_from.tower(name)
  ]
  if len(towers) == len(settings.model.present()) == 2:
    fresh.append(FUSION_LAYERS)
  sources = [
    init_from.Source(
      path=path, take=tuple(p for n in names for p in init_from.tower(n))
    )
    for path, names in towers.items()
  ]
  return init_from.plan(
    {n: jax.ShapeDtypeStruct(*shapes[n]) for n in params}, sources, fresh
  )


def initial_state(
  settings: settings_lib.Settings,
  trainer: step.Trainer,
  plan: init_from.Plan,
  mesh: jax.sharding.Mesh,
) -> step.State:
  """The state before the first step, straight into its shardings."""

  def init(params: dict[str, jax.Array]) -> step.State:
    return step.init(
      trainer, *trainable.split(params, settings.trains), settings.seed
    )

  shapes = jax.eval_shape(init, dict(plan.shapes))
  placed = placement.state_shardings(shapes, settings.model, mesh)

  def fresh(key: jax.Array) -> Any:
    return architecture.init("fusion", settings.model, key)

  params = init_from.load(
    plan, fresh, settings.seed, placed.frozen | placed.trained
  )
  return jax.jit(init, out_shardings=placed)(params)
