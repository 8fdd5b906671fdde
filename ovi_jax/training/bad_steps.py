"""Bad steps: non-finite ones, and spikes of the loss or the gradient norm.

A bad step makes no update: parameters, EMA and optimizer state stay as they
are, also the count of the learning rate schedule; only the step number
advances. The decision is made inside the jitted step from the global loss and
gradient norm, so it is the same on all devices. What it depends on is part of
the train state, so a resumed run makes the same decisions.

`optax.apply_if_finite` is not used: it sees neither the loss nor the EMA, and
applies the update after too many errors.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_ACCEPTED = 20  # steps before spikes are detected
DECAY = 0.98  # of the running means, whose first steps are weighted equally


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadStepPolicy:
  """What is done about bad steps.

  Attributes:
    skip_bad_steps: number of bad steps of a run that are skipped (no update);
      the next one ends the run. A bad step has a non-finite loss or gradient
      norm, or is a spike. 0 ends the run at the first one.
    skip_loss_spikes: a loss or gradient norm of more than this factor times its
      running mean is a spike (from the 20th step on); 0 = no detection. Skipped
      spikes count for `skip_bad_steps`.
  """

  skip_bad_steps: int = 0
  skip_loss_spikes: float = 0.0

  def __post_init__(self):
    if self.skip_bad_steps < 0:
      raise ValueError(
        f"skip_bad_steps must be 0 or more, got {self.skip_bad_steps}"
      )
    if self.skip_loss_spikes and not self.skip_loss_spikes > 1:
      raise ValueError(
        "skip_loss_spikes must be a factor above 1 such as 5, or 0 for no"
        f" detection, got {self.skip_loss_spikes}"
      )
    if self.skip_loss_spikes and not self.skip_bad_steps:
      raise ValueError(
        f"skip_loss_spikes {self.skip_loss_spikes} needs skip_bad_steps, the"
        " number of steps that may be skipped, got 0"
      )


class SkipState(NamedTuple):
  """What the decision depends on, scalars.

  Attributes:
    skipped: number of skipped steps, int32.
    accepted: number of all other steps, int32.
    loss: running mean of the loss of accepted steps, float32.
    grad_norm: running mean of their gradient norm, float32.
  """

  skipped: jax.Array
  accepted: jax.Array
  loss: jax.Array
  grad_norm: jax.Array


def initial_state() -> SkipState:
  """The state before the first step."""
  return SkipState(
    skipped=jnp.zeros((), jnp.int32),
    accepted=jnp.zeros((), jnp.int32),
    loss=jnp.zeros(()),
    grad_norm=jnp.zeros(()),
  )


def detect(
  state: SkipState, loss: jax.Array, grad_norm: jax.Array, factor: float
) -> tuple[jax.Array, SkipState]:
  """Decide whether a step is bad.

  Args:
    state: of the steps before.
    loss: loss of the step.
    grad_norm: its global gradient norm before clipping.
    factor: `BadStepPolicy.skip_loss_spikes`.

  Returns:
    Whether it is bad, and the state after the step.
  """
  is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
  if factor:
    spike = (loss > factor * state.loss) | (
      grad_norm > factor * state.grad_norm
    )
    is_bad |= spike & (state.accepted >= MIN_ACCEPTED)
  rate = jnp.maximum(1 / (state.accepted + 1.0), 1 - DECAY)

  def mean(old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(is_bad, old, old + rate * (new - old))

  return is_bad, SkipState(
    skipped=state.skipped + is_bad,
    accepted=state.accepted + ~is_bad,
    loss=mean(state.loss, loss),
    grad_norm=mean(state.grad_norm, grad_norm),
  )
