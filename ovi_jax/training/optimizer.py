"""AdamW with warm-up, clipping and decay, as optax transformations.

Gradients, moments and the parameters they move are float32. Learning rate and
betas of stages 1 and 3 are the paper's; warm-up, weight decay, clipping and
averaging were not published and are choices of ours.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import compute_on

CONSTANT, COSINE = "constant", "cosine"
SCHEDULES = (CONSTANT, COSINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
  """How parameters are moved.

  Attributes:
    learning_rate: after warm-up.
    schedule: "constant", or "cosine" down to `final_share`.
    warmup_steps: of linear growth from 0.
    final_share: of the learning rate that is left at the last step.
    beta1: decay of the mean of gradients.
    beta2: decay of the mean of their squares.
    eps: added to the root.
    weight_decay: a step, times the learning rate; kernels only.
    clip_norm: largest norm of all gradients together; 0 = no limit.
    average_decay: of the moving average of the parameters; 0 = no average.
    average_on_host: keep and move it in the host's memory, which saves four
      bytes a trained parameter on the devices.
  """

  learning_rate: float
  schedule: str = CONSTANT
  warmup_steps: int = 0
  final_share: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip_norm: float = 1.0
  average_decay: float = 0.9999
  average_on_host: bool = False

  def __post_init__(self):
    if self.schedule not in SCHEDULES:
      raise ValueError(
        f"optimizer.schedule {self.schedule!r} is unknown; choose from"
        f" {', '.join(SCHEDULES)}"
      )
    if self.learning_rate <= 0 or self.eps <= 0:
      raise ValueError(
        "optimizer.learning_rate and eps must be positive, got"
        f" {self.learning_rate} and {self.eps}"
      )
    for name in ("beta1", "beta2", "average_decay", "final_share"):
      value = getattr(self, name)
      if not 0 <= value <= 1 or (value == 1 and name != "final_share"):
        raise ValueError(f"optimizer.{name} must be in [0, 1), got {value}")
    for name in ("warmup_steps", "weight_decay", "clip_norm"):
      if getattr(self, name) < 0:
        raise ValueError(
          f"optimizer.{name} must not be negative, got {getattr(self, name)}"
        )


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
  """Learning rate by step, for a run of `steps`.

  Raises:
    ValueError: the run ends before its warm-up does.
  """
  peak, warmup = settings.learning_rate, settings.warmup_steps
  if warmup >= steps:
    raise ValueError(
      f"optimizer.warmup_steps {warmup} must be fewer than the {steps} steps"
    )
  after: optax.Schedule = optax.constant_schedule(peak)
  if settings.schedule == COSINE:
    after = optax.cosine_decay_schedule(
      peak, steps - warmup, settings.final_share
    )
  # From 1 / warm-up: the first step moves something.
  rising = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup, 1))
  return optax.join_schedules([rising, after], [warmup])


def make(
  settings: OptimizerSettings, steps: int
) -> optax.GradientTransformation:
  """The optimizer of a run of `steps`, over a flat mapping of parameters."""

  def decayed(params: dict[str, Any]) -> dict[str, bool]:
    return {path: path.endswith("kernel") for path in params}

  clip = optax.identity()
  if settings.clip_norm:
    clip = optax.clip_by_global_norm(settings.clip_norm)
  return optax.chain(
    clip,
    optax.adamw(
      learning_rate(settings, steps),
      b1=settings.beta1,
      b2=settings.beta2,
      eps=settings.eps,
      weight_decay=settings.weight_decay,
      mask=decayed,
    ),
  )


def averaged(
  average: Any, params: Any, step: jax.Array, settings: OptimizerSettings
) -> Any:
  """Move the average towards the parameters after step `step` (from 0).

  The decay grows from 1/10, so early averages forget the beginning.
  """
  decay = jnp.minimum(settings.average_decay, (1.0 + step) / (10.0 + step))
  if not settings.average_on_host:
    return _moved(average, params, decay)
  params, decay = jax.device_put((params, decay), jax.memory.Space.Host)
  with compute_on.compute_on("device_host"):
    return _moved(average, params, decay)


def _moved(average: Any, params: Any, decay: jax.Array) -> Any:
  return jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
