"""The loss on held-out examples, by modality and by timestep.

The held-out loss uses fixed noise and fixed timesteps (the centers of equal
bins of [0, 1]), so that values are comparable between steps; random timesteps
within a bin would add variance. Noise is a function of the seed, the record's
id and the timestep: batch size, devices and damaged records do not change it.
There is no prompt dropout and there are no conditioning latents. Float32 around
a model of any compute dtype; sums over batches are float64.
"""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.sharding import sharding_rules
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.objectives import flow_matching

METRIC_PREFIX = "eval/loss"
NUM_TIMESTEP_BINS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Settings of the held-out loss.

  Attributes:
    split: held-out split; sources without it are skipped.
    batch_size: examples per batch; 0 for as many as a microbatch has.
    num_timestep_bins: number of noise levels, the centers of equal parts of
      [0, 1], at which each record's loss is computed.
  """

  split: str = "test"
  batch_size: int = 0
  num_timestep_bins: int = NUM_TIMESTEP_BINS

  def __post_init__(self):
    if self.batch_size < 0 or self.num_timestep_bins < 1:
      raise ValueError(
        "eval: expected batch_size of 0 or more and num_timestep_bins of 1 or"
        " more, got"
        f" {self.batch_size} and {self.num_timestep_bins}"
      )


class LossSums(NamedTuple):
  """What a batch adds, whole on every device.

  Attributes:
    loss: of each modality, summed over its records; [levels].
    records: that have the modality.
  """

  loss: AV[jax.Array]
  records: AV[jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HeldOutLoss:
  """Call it with a state; the EMA parameters are used, if there are any.

  Attributes:
    model: the denoiser.
    mesh: the devices.
    batches: begins a pass over the held-out records: batches on the devices,
      with the words of their ids (`state_sharding.id_words`); rows of lengths 0
      stand for no record. Every process must get as many.
    null_SE: embedding of the empty prompt.
    num_timestep_bins: of noise, in the middle of as many equal parts of [0, 1];
      each has a loss of its own.
    seed: of the noise.
  """

  model: fusion.FusionDiT
  mesh: jax.sharding.Mesh
  batches: Callable[[], Iterator[schema.Batch]]
  null_SE: np.ndarray
  num_timestep_bins: int = NUM_TIMESTEP_BINS
  seed: int = 0

  def __post_init__(self):
    if self.num_timestep_bins < 1:
      raise ValueError(
        f"levels of noise must be at least 1, got {self.num_timestep_bins}"
      )

  @functools.cached_property
  def _program(self) -> Callable[..., LossSums]:
    """`sums` as a program, its results whole on every device."""
    return jax.jit(
      loss_sums,
      static_argnames=("model", "levels"),
      out_shardings=sharding_rules.replicated(self.mesh),
    )

  def __call__(self, state: step.TrainState) -> dict[str, float]:
    """Mean losses by the names of the log.

    Returns:
      `eval/loss_video`, over all levels, and `eval/loss_video_t0.00-
      0.25` and so on, for each modality that any record has.

    Raises:
      ValueError: there is no held-out record.
    """
    with jax.set_mesh(self.mesh):
      losses, records = self._totals(state_sharding.ema_to_device(state))
    means = {
      name: total / records[name]
      for name, total in losses.items()
      if records[name]
    }
    if not means:
      raise ValueError(
        "held-out loss: expected at least one record, got none; hold some out"
        " when the dataset is written, or set eval_every to 0"
      )
    named = {}
    for name, mean in means.items():
      named[f"{METRIC_PREFIX}_{name}"] = float(mean.mean())
      for number, value in enumerate(mean):
        low, high = (
          number / self.num_timestep_bins,
          (number + 1) / self.num_timestep_bins,
        )
        named[f"{METRIC_PREFIX}_{name}_t{low:.2f}-{high:.2f}"] = float(value)
    return named

  def _totals(
    self, params: Any
  ) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Summed loss [levels] and number of records, by modality."""
    names = self.model.config.present()
    losses = {name: np.zeros(self.num_timestep_bins) for name in names}
    records = dict.fromkeys(names, 0)

    def add(made: LossSums) -> None:
      found = jax.device_get(made)
      for name in names:
        losses[name] += getattr(found.loss, name)
        records[name] += int(getattr(found.records, name))

    whole = sharding_rules.replicated(self.mesh)
    null_SE = jax.device_put(self.null_SE, whole)
    last: LossSums | None = None
    for batch in self.batches():
      made = self._program(
        model=self.model,
        levels=self.num_timestep_bins,
        params=params,
        batch=batch,
        null_SE=null_SE,
        seed=np.uint32(self.seed),
      )
      # One batch is read while the next computes, and no more wait in line.
      if last is not None:
        add(last)
      last = made
    if last is not None:
      add(last)
    return losses, records


def loss_sums(
  model: fusion.FusionDiT,
  levels: int,
  params: Any,
  batch: schema.Batch,
  null_SE: jax.Array,
  seed: jax.Array,
) -> LossSums:
  """Losses of a batch at each level of noise.

  Args:
    model: the denoiser.
    levels: of noise.
    params: the denoiser's parameters.
    batch: rows of lengths 0 do not count; `ids` are words [B, 2].
    null_SE: embedding of the empty prompt.
    seed: of the noise.
  """

  def one(level: jax.Array) -> AV[jax.Array]:
    sample = _noise_sample(
      seed, level, (level + 0.5) / levels, batch.ids, batch.latents
    )
    rows = batch._replace(ids=None)
    losses = flow_matching.losses(model, params, rows, sample, null_SE)
    return jax.tree.map(
      lambda x, length_B: jnp.where(length_B > 0, x, 0.0).sum(),
      losses,
      batch.lengths,
    )

  return LossSums(
    loss=jax.lax.map(one, jnp.arange(levels)),
    records=jax.tree.map(lambda x: (x > 0).sum(), batch.lengths),
  )


def _noise_sample(
  seed: jax.Array,
  level: jax.Array,
  sigma: jax.Array,
  ids_B2: jax.Array,
  latents: AV[jax.Array],
) -> flow_matching.NoiseSample:
  """One level for all; each record's own noise."""

  def noise(words: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.key(seed)
    for number in (*words, level, AV._fields.index(name)):
      key = jax.random.fold_in(key, number)
    return jax.random.normal(key, shape)

  present = latents.present()
  count = len(ids_B2)
  never_B = jnp.zeros(count, bool)
  return flow_matching.NoiseSample(
    sigma=AV(**{n: jnp.full(count, sigma) for n in present}),
    noise=AV(
      **{
        n: jax.vmap(functools.partial(noise, name=n, shape=x.shape[1:]))(ids_B2)
        for n, x in present.items()
      }
    ),
    dropped=AV(**dict.fromkeys(present, never_B)),
    given=AV(),
  )
