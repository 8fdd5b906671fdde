"""The train state and the train step.

Trained parameters, their EMA and the optimizer's moments are float32; frozen
parameters keep the dtype in which they were loaded. Random numbers depend on
the key of the state, the step and the index of an example in the global batch,
not on devices or gradient accumulation.
"""

import functools
from collections.abc import Mapping
from typing import Any
from typing import Generic
from typing import NamedTuple
from typing import TypeVar

import einops
import jax
import jax.numpy as jnp
import optax

from ovi_jax.data import schema
from ovi_jax.models import low_rank
from ovi_jax.training import bad_steps
from ovi_jax.training import optimizer as optimizers
from ovi_jax.training import param_filter
from ovi_jax.training.objectives import base

T = TypeVar("T", bound=base.Objective)
_DROPOUT = 2**31 - 1  # folded into the key of a step; not the place of a record
# libtpu's options for XLA's SDC checker: instructions are executed repeatedly,
# their checksums are compared, and the chip halts if they differ.
SDC_OPTIONS: Mapping[str, bool | int] = {
  "xla_tpu_enable_sdc_checker": True,
  "xla_tpu_sdc_check_repeat_count": 3,
  "xla_tpu_sdc_check_halt_on_detection": True,
  "xla_tpu_sdc_replicate_llo": True,
}


class TrainState(NamedTuple):
  """The state that a step updates, and the frozen parameters.

  Attributes:
    step: number of finished steps.
    trained_params: path -> float32 parameter.
    frozen_params: path -> parameter without gradient, EMA or moments.
    ema_params: EMA of `trained_params`, or `None`.
    opt_state: the optimizer's state.
    key: data of the random key, fixed for a run.
    skip: counts and running means for the detection of bad steps.
  """

  step: jax.Array
  trained_params: dict[str, jax.Array]
  frozen_params: dict[str, jax.Array]
  ema_params: dict[str, jax.Array] | None
  opt_state: Any
  key: jax.Array
  skip: bad_steps.SkipState

  def params(self, ema: bool = False) -> dict[str, Any]:
    """All parameters, nested; `ema` takes the EMA of trained ones."""
    trained = self.trained_params
    if ema and self.ema_params is not None:
      trained = self.ema_params
    return param_filter.nested(self.frozen_params | trained)


class StepMetrics(NamedTuple):
  """Metrics of a step, float32.

  Attributes:
    loss: weighted sum over the objective's terms.
    losses: term_B by name; 0 for records of which nothing of the modality is
      generated.
    grad_norm: global norm of the gradient before clipping.
    is_bad: whether the step made no update, see `bad_steps`.
    skipped: number of such steps of the run, int32.
  """

  loss: jax.Array
  losses: Mapping[str, jax.Array]
  grad_norm: jax.Array
  is_bad: jax.Array
  skipped: jax.Array


class TrainStepConfig(NamedTuple, Generic[T]):
  """Static arguments of a train step; each value compiles a program.

  Attributes:
    objective: the loss, with the model.
    optimizer: settings of the optimizer.
    num_train_steps: number of steps of the run, for the schedule.
    grad_accum_steps: microbatches of a batch, whose gradients are summed.
    skip_loss_spikes: factor of the detection of spikes, see `bad_steps`.
    lora_dropout: see `low_rank.drop_ranks`.
  """

  objective: T
  optimizer: optimizers.OptimizerConfig
  num_train_steps: int
  grad_accum_steps: int = 1
  skip_loss_spikes: float = 0.0
  lora_dropout: float = 0.0

  @property
  def transformation(self) -> optax.GradientTransformation:
    return optimizers.make(self.optimizer, self.num_train_steps)


def init_state(
  step_config: TrainStepConfig,
  trained: dict[str, jax.Array],
  frozen: dict[str, jax.Array],
  seed: int,
) -> TrainState:
  """The state before the first step; trained parameters become float32."""
  trained = {n: jnp.asarray(x, jnp.float32) for n, x in trained.items()}
  average = None
  if step_config.optimizer.ema_decay:
    average = jax.tree.map(jnp.copy, trained)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    trained_params=trained,
    frozen_params=frozen,
    ema_params=average,
    opt_state=step_config.transformation.init(trained),
    key=jax.random.key_data(jax.random.key(seed)),
    skip=bad_steps.initial_state(),
  )


def _step_key(state: TrainState) -> jax.Array:
  """The random key of the state's step."""
  return jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)


def sample_noise_for(
  step_config: TrainStepConfig, state: TrainState, batch: schema.Batch
) -> Any:
  """Sample noise, timesteps and dropout of a batch at the state's step."""
  batch = batch._replace(ids=None)
  key = _step_key(state)
  places_B = jnp.arange(jax.tree.leaves(batch)[0].shape[0])
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(places_B)
  return jax.vmap(step_config.objective.sample_noise)(keys, batch)


def gradients(
  step_config: TrainStepConfig,
  state: TrainState,
  batch: schema.Batch,
  null_SE: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array, dict[str, jax.Array]]:
  """Gradients of the trained parameters, the loss, and term_B by name."""
  batch = batch._replace(ids=None)
  sample = sample_noise_for(step_config, state, batch)
  weights = dict(step_config.objective.example_weights(batch, sample))
  frozen = state.frozen_params
  if step_config.lora_dropout:
    key = jax.random.fold_in(_step_key(state), _DROPOUT)
    frozen = low_rank.drop_ranks(frozen, key, step_config.lora_dropout)

  def weighted(trained, part):
    batch, sample, weights = part
    params = param_filter.nested(frozen | trained)
    losses = dict(
      step_config.objective.loss_terms(params, batch, sample, null_SE)
    )
    terms = jax.tree.map(lambda w, x: (w * x).sum(), weights, losses)
    return sum(jax.tree.leaves(terms)), losses

  def gradient(part):
    function = jax.value_and_grad(weighted, has_aux=True)
    (total, losses), found = function(state.trained_params, part)
    return (found, total), losses

  whole = (batch, sample, weights)
  if step_config.grad_accum_steps == 1:
    (found, total), losses = gradient(whole)
    return found, total, losses

  # Strided, so that no row moves to another device.
  parts = jax.tree.map(
    lambda x: einops.rearrange(
      x, "(B N) ... -> N B ...", N=step_config.grad_accum_steps
    ),
    whole,
  )

  def add(sums, part):
    more, losses = gradient(part)
    return jax.tree.map(jnp.add, sums, more), losses

  zeros = jax.tree.map(jnp.zeros_like, state.trained_params), jnp.zeros(())
  (found, total), losses = jax.lax.scan(add, zeros, parts)
  losses = jax.tree.map(lambda x: einops.rearrange(x, "N B -> (B N)"), losses)
  return found, total, losses


def train_step(
  step_config: TrainStepConfig,
  state: TrainState,
  batch: schema.Batch,
  null_SE: jax.Array,
) -> tuple[TrainState, StepMetrics]:
  """One training step; a bad step makes no update, see `bad_steps`.

  Args:
    step_config: static arguments.
    state: state before the step; should be donated.
    batch: batch on the devices; `grad_accum_steps` divides its size.
    null_SE: embedding of the empty prompt.

  Returns:
    The state after the step, and its metrics.
  """
  gradient, total, losses = gradients(step_config, state, batch, null_SE)
  norm = optax.tree.norm(gradient)
  is_bad, skip = bad_steps.detect(
    state.skip, total, norm, step_config.skip_loss_spikes
  )
  updates, moments = step_config.transformation.update(
    gradient, state.opt_state, state.trained_params
  )
  trained: Any = optax.apply_updates(state.trained_params, updates)
  trained, moments = jax.tree.map(
    lambda before, after: jnp.where(is_bad, before, after),
    (state.trained_params, state.opt_state),
    (trained, moments),
  )
  average = state.ema_params
  if average is not None:
    average = optimizers.update_ema(
      average, trained, state.step, step_config.optimizer, is_bad
    )
  metrics = StepMetrics(total, losses, norm, is_bad, skip.skipped)
  return state._replace(
    step=state.step + 1,
    trained_params=trained,
    ema_params=average,
    opt_state=moments,
    skip=skip,
  ), metrics


def jit_train_step(
  shardings: TrainState, mesh: jax.sharding.Mesh, check_sdc: bool = False
) -> Any:
  """`train_step` jitted; the state is donated and keeps its shardings.

  Args:
    shardings: shardings of the state.
    mesh: mesh of the devices.
    check_sdc: whether the TPU compiler adds checks for silent data corruption.
  """
  whole = jax.sharding.NamedSharding(mesh, jax.P())
  return jax.jit(
    train_step,
    static_argnums=0,
    donate_argnums=1,
    out_shardings=(shardings, whole),
    compiler_options=dict(SDC_OPTIONS) if check_sdc else None,
  )
