"""Contrastive training of SyncNet.

The loss is symmetric InfoNCE over a batch; negatives are windows of the same
clip at other times and of other clips. The logit of a pair is its negated
distance, so distances, and the confidence of the stage `av_sync`, are in nats.
All computation is float32.
"""

import dataclasses
import itertools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ovi_jax.curation.models import syncnet
from ovi_jax.curation.sync import lip_sync
from ovi_jax.curation.sync import talking_faces

SHIFTS = tuple(range(-10, 11))
_EVAL_SEED_OFFSET = 1 << 20  # added to the seed for evaluation faces
_DISTANCE_EPSILON = 1e-6  # keeps the gradient of equal vectors finite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Training settings.

  Attributes:
    width_divisor: divides the network's channels; 1 for the published size.
    num_train_steps: training steps.
    clips_per_batch: clips per batch.
    windows_per_clip: windows sampled per clip.
    learning_rate: peak learning rate of Adam.
    seed: seed of weights, faces and windows.
  """

  width_divisor: int = 8
  num_train_steps: int = 400
  clips_per_batch: int = 4
  windows_per_clip: int = 8
  learning_rate: float = 1e-3
  seed: int = 0

  def __post_init__(self):
    if (
      min(
        self.width_divisor,
        self.num_train_steps,
        self.clips_per_batch,
        self.windows_per_clip,
      )
      < 1
    ):
      raise ValueError(f"expected values of at least 1, got {self}")
    if (
      self.clips_per_batch * self.windows_per_clip < 2
      or not self.learning_rate > 0
    ):
      raise ValueError(
        "expected two windows or more in a batch, and a learning rate above 0;"
        f" got {self}"
      )

  @property
  def config(self) -> syncnet.SyncNetConfig:
    return syncnet.SyncNetConfig.narrow(self.width_divisor)


class State(NamedTuple):
  """Training state."""

  variables: Any
  opt_state: Any


def loss(lips_ND: jax.Array, sound_ND: jax.Array) -> jax.Array:
  """Symmetric InfoNCE loss, in nats."""
  difference_NND = lips_ND[:, None] - sound_ND[None]
  logits = -jnp.sqrt(jnp.sum(difference_NND**2, -1) + _DISTANCE_EPSILON)
  labels = jnp.arange(len(lips_ND))
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  return jnp.mean(cross_entropy(logits, labels)) / 2 + (
    jnp.mean(cross_entropy(logits.T, labels)) / 2
  )


def init_state(settings: Settings) -> State:
  """The initial state."""
  network = syncnet.SyncNet(settings.config)
  frames = jnp.zeros((1, syncnet.WINDOW, syncnet.SIDE, syncnet.SIDE, 3))
  windows = jnp.zeros((1, 1, syncnet.COEFFICIENTS, syncnet.COLUMNS))
  key = jax.random.key(settings.seed)
  variables = jax.jit(network.init)(key, frames, windows)
  return State(variables, _optimizer(settings).init(variables["params"]))


def _optimizer(settings: Settings) -> optax.GradientTransformation:
  warm = min(20, settings.num_train_steps)
  rates = optax.warmup_cosine_decay_schedule(
    0.0, settings.learning_rate, warm, max(settings.num_train_steps, warm + 1)
  )
  return optax.adam(rates)


def make_train_step(
  settings: Settings,
) -> Callable[[State, np.ndarray, np.ndarray], tuple[State, jax.Array]]:
  """The compiled step: (state, frames, windows) -> (state, loss)."""
  network, optimizer = syncnet.SyncNet(settings.config), _optimizer(settings)

  def loss_fn(params, statistics, frames_BTHWC, windows_BTKM):
    variables = {"params": params, "batch_stats": statistics}
    (lips_BTD, sound_BTD), changed = network.apply(
      variables,
      frames_BTHWC,
      windows_BTKM,
      training=True,
      mutable=["batch_stats"],
    )
    return loss(lips_BTD[:, 0], sound_BTD[:, 0]), changed["batch_stats"]

  def step(state, frames_BTHWC, windows_BTKM):
    params = state.variables["params"]
    (value, statistics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, state.variables["batch_stats"], frames_BTHWC, windows_BTKM
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    variables = {"params": params, "batch_stats": statistics}
    return State(variables, opt_state), value

  return jax.jit(step, donate_argnums=0)


def batches(settings: Settings) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Infinite batches of new faces."""
  for number in itertools.count():
    random = np.random.default_rng((settings.seed, number, 1))
    first = number * settings.clips_per_batch
    parts = [
      talking_faces.sample_windows(
        talking_faces.clip(settings.seed, first + i),
        random,
        settings.windows_per_clip,
      )
      for i in range(settings.clips_per_batch)
    ]
    frames, windows = zip(*parts, strict=True)
    yield np.concatenate(frames), np.concatenate(windows)


class ShiftEstimate(NamedTuple):
  """The score of a held-out clip whose audio was shifted."""

  shift: int
  score: lip_sync.Score

  @property
  def error(self) -> int:
    """Absolute error in frames."""
    return abs(self.shift + self.score.offset)


def evaluate(
  config: syncnet.SyncNetConfig,
  variables: Any,
  *,
  seed: int,
  count: int,
  shifts: tuple[int, ...] = SHIFTS,
) -> Iterator[ShiftEstimate]:
  """Shift the audio of held-out faces and estimate the shift.

  Args:
    config: sizes of the network.
    variables: its weights.
    seed: seed of training.
    count: number of faces; each is evaluated at all `shifts`.
    shifts: shifts in frames at 25 fps.
  """
  network = syncnet.SyncNet(config)
  lips = jax.jit(lambda v, x: network.apply(v, x, False, method=_lips))
  sound = jax.jit(lambda v, x: network.apply(v, x, False, method=_sound))
  for number in range(count):
    clip = talking_faces.clip(seed + _EVAL_SEED_OFFSET, number)
    track = clip.track()
    frames_THWC = lip_sync.make_windows(track, clip.samples_A).frames_THWC
    lips_TD = np.asarray(lips(variables, frames_THWC[None])[0])
    for shift in shifts:
      windows = lip_sync.make_windows(track, clip.shift_audio(shift)).sound_TKM
      sound_TD = np.asarray(sound(variables, windows[None])[0])
      yield ShiftEstimate(shift, lip_sync.score(lips_TD, sound_TD))


def _lips(network: syncnet.SyncNet, x: jax.Array, training: bool) -> jax.Array:
  return network.lips(x, training)


def _sound(network: syncnet.SyncNet, x: jax.Array, training: bool) -> jax.Array:
  return network.sound(x, training)
