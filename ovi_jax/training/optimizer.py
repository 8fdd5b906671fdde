"""AdamW or Muon with warm-up, clipping and decay, as optax transformations.

Gradients, moments and trained parameters are float32. AdamW and the learning
rates and betas of stages 1 and 3 are the paper's. Warm-up, weight decay,
clipping and EMA were not published and are our choices, as is Muon, which
needs fewer steps when all parameters of a small model are trained; it has not
been tried at full size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import compute_on
from optax import contrib

CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)
ADAMW, MUON = "adamw", "muon"
OPTIMIZERS = (ADAMW, MUON)
# Gives Muon's updates about the root mean square of AdamW's, so that both use
# the same learning rate (Liu et al. 2025, arXiv:2502.16982).
_MUON_RMS = 0.2
_STACKED = "blocks/"  # paths of kernels whose first axis is that of blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
  """Settings of the optimizer.

  Attributes:
    learning_rate: peak learning rate, after warm-up.
    name: "adamw", or "muon": kernels by Muon, all other parameters by AdamW.
    schedule: "constant", or "cosine" down to `end_lr_factor`.
    warmup_steps: steps of linear warm-up. If the run is not longer than that, a
      tenth of its steps is used instead.
    end_lr_factor: learning rate at the last step of the cosine schedule, as a
      fraction of the peak.
    beta1: decay of AdamW's first moment.
    muon_beta: decay of Muon's momentum.
    beta2: decay of AdamW's second moment.
    eps: added to the denominator of AdamW's update.
    weight_decay: decoupled weight decay, times the learning rate; kernels only.
    grad_clip_norm: maximum global norm of the gradient; 0 = no clipping.
    ema_decay: decay of the exponential moving average (EMA) of the parameters;
      0 = no EMA.
    ema_on_host: keep the EMA in host memory, which saves four bytes per trained
      parameter on the devices.
  """

  learning_rate: float
  name: str = ADAMW
  schedule: str = CONSTANT
  warmup_steps: int = 0
  end_lr_factor: float = 0.0
  beta1: float = 0.9
  muon_beta: float = 0.95
  beta2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  grad_clip_norm: float = 1.0
  ema_decay: float = 0.9999
  ema_on_host: bool = False

  def __post_init__(self):
    for name, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
      if (value := getattr(self, name)) not in known:
        raise ValueError(
          f"optimizer.{name} {value!r} is unknown; choose from"
          f" {', '.join(known)}"
        )
    if self.learning_rate <= 0 or self.eps <= 0:
      raise ValueError(
        "optimizer.learning_rate and eps must be positive, got"
        f" {self.learning_rate} and {self.eps}"
      )
    shares = ("beta1", "beta2", "muon_beta", "ema_decay", "end_lr_factor")
    for name in shares:
      value = getattr(self, name)
      if not 0 <= value <= 1 or (value == 1 and name != "end_lr_factor"):
        raise ValueError(f"optimizer.{name} must be in [0, 1), got {value}")
    for name in ("warmup_steps", "weight_decay", "grad_clip_norm"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"optimizer.{name} must not be negative, got {getattr(self, name)}"
        )


def warmup_of(settings: OptimizerConfig, steps: int) -> int:
  """The number of warm-up steps of a run.

  Args:
    settings: settings of the optimizer.
    steps: number of steps of the run.

  Returns:
    `warmup_steps`, or a tenth of the run if the run is not longer than that.
  """
  wanted = settings.warmup_steps
  return wanted if wanted < steps else steps // 10


def learning_rate(settings: OptimizerConfig, steps: int) -> optax.Schedule:
  """The learning rate schedule of a run, see `warmup_of`.

  Args:
    settings: settings of the optimizer.
    steps: number of steps of the run.

  Returns:
    Learning rate as a function of the step, from 0.
  """
  peak, warmup = settings.learning_rate, warmup_of(settings, steps)
  after: optax.Schedule = optax.constant_schedule(peak)
  if settings.schedule == COSINE:
    after = optax.cosine_decay_schedule(
      peak, steps - warmup, settings.end_lr_factor
    )
  # From peak / warm-up, so that the first step changes parameters.
  rising = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup, 1))
  return optax.join_schedules([rising, after], [warmup])


def make(settings: OptimizerConfig, steps: int) -> optax.GradientTransformation:
  """Make the optimizer of a run.

  Args:
    settings: settings of the optimizer.
    steps: number of steps of the run.

  Returns:
    An optax transformation for a flat mapping of parameters by path.
  """

  def decayed(params: dict[str, Any]) -> dict[str, bool]:
    return {path: path.endswith("kernel") for path in params}

  clip = optax.identity()
  if settings.grad_clip_norm:
    clip = optax.clip_by_global_norm(settings.grad_clip_norm)
  rate = learning_rate(settings, steps)
  if settings.name == MUON:
    moved = contrib.muon(
      rate,
      beta=settings.muon_beta,
      weight_decay=settings.weight_decay,
      adam_b1=settings.beta1,
      adam_b2=settings.beta2,
      muon_weight_dimension_numbers=_matrices,
      consistent_rms=_MUON_RMS,
    )
  else:
    moved = optax.adamw(
      rate,
      b1=settings.beta1,
      b2=settings.beta2,
      eps=settings.eps,
      weight_decay=settings.weight_decay,
      mask=decayed,
    )
  return optax.chain(clip, moved)


def _matrices(params: Any) -> dict[str, Any]:
  """How Muon reads each kernel as a matrix; `None` for other parameters.

  The last axis is the output; all other axes, except that of stacked blocks,
  are inputs.
  """

  def of(path: str, x: Any) -> Any:
    if isinstance(x, optax.MaskedNode):  # a parameter of AdamW, masked by optax
      return x
    first = int(path.startswith(_STACKED))
    if not path.endswith("kernel") or x.ndim - first < 2:
      return None
    ins = tuple(range(first, x.ndim - 1))
    return contrib.MuonDimensionNumbers(ins, x.ndim - 1)

  return {path: of(path, x) for path, x in params.items()}


def update_ema(
  average: Any,
  params: Any,
  step: jax.Array,
  settings: OptimizerConfig,
  is_bad: jax.Array | bool = False,
) -> Any:
  """Update the exponential moving average of the parameters.

  The decay is at most (1 + step) / (10 + step), so the initial parameters lose
  their weight early.

  Args:
    average: EMA of the parameters.
    params: parameters after the step.
    step: index of the step, from 0.
    settings: settings of the optimizer.
    is_bad: whether the EMA stays as it is, a scalar.

  Returns:
    The new EMA.
  """
  decay = jnp.minimum(settings.ema_decay, (1.0 + step) / (10.0 + step))
  if not settings.ema_on_host:
    return _moved(average, params, decay, is_bad)
  given = jax.device_put((params, decay, is_bad), jax.memory.Space.Host)
  with compute_on.compute_on("device_host"):
    return _moved(average, *given)


def _moved(
  average: Any, params: Any, decay: jax.Array, is_bad: jax.Array | bool
) -> Any:
  return jax.tree.map(
    lambda a, p: jnp.where(is_bad, a, a + (1 - decay) * (p - a)),
    average,
    params,
  )
