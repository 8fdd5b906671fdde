"""The settings of a codec's training run: its config, checked and frozen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from ovi_jax import config as config_lib
from ovi_jax.training import loop
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import settings as stages
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.codecs import table

TRAINABLE = (param_filter.ALL, param_filter.DECODER)
# Assembling scales the audio encoder's last layer, and with it how far from its
# mean a latent is drawn: its decoder cannot go on alone.
WITH_DECODER = ("video_vae",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run of one component.

  Attributes:
    component: a key of `table.TABLE`.
    model: its config.
    init_from: run whose (averaged) parameters this one starts from, or a
      directory of weights; empty for random ones.
    trainable: "all", or "decoder" of the video VAE, which freezes the encoder.
    objective: weights of the loss terms and other settings, by name.
    data: what is read.
    optimizer: how parameters are moved.
    num_train_steps: of the whole run.
    batch_size: clips of a step, over all devices and microbatches.
    grad_accum_steps: microbatches of a step, whose gradients are summed.
    seed: of initialisation, data and noise.
    dtype: compute dtype, "auto" for bfloat16 on accelerators.
    mesh: devices along each mesh axis; 0 for all that are left over.
    intervals: steps between log lines and checkpoints.
    checkpoints: which checkpoints stay.
  """

  component: str
  model: Any
  init_from: str
  trainable: str
  objective: Mapping[str, Any]
  data: inputs.CodecInputConfig
  optimizer: optimizer.OptimizerConfig
  num_train_steps: int
  batch_size: int
  grad_accum_steps: int
  seed: int
  dtype: str
  mesh: Mapping[str, int]
  intervals: loop.Intervals
  checkpoints: stages.CheckpointPolicy

  def __post_init__(self):
    problems = config_lib.below(
      self, 1, "num_train_steps", "batch_size", "grad_accum_steps"
    )
    problems += config_lib.invalid_choice(
      "dtype", self.dtype, config_lib.DTYPES
    )
    problems += config_lib.invalid_choice(
      "trainable", self.trainable, TRAINABLE
    )
    if self.trainable == param_filter.DECODER:
      if self.component not in WITH_DECODER:
        problems.append(
          f"trainable={self.trainable!r} is for {', '.join(WITH_DECODER)}, not"
          f" {self.component}; set 'all'"
        )
      if not self.init_from:
        problems.append(
          f"trainable={self.trainable!r} would keep a random encoder; name a"
          " run or a directory of weights in init_from"
        )
    if self.intervals.eval_every or self.intervals.sample_every:
      problems.append(
        "codecs have no evaluation: set eval_every and sample_every to 0"
      )
    config_lib.check(problems)
    self.make_objective("cpu")  # refuses fields that the objective lacks

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value
        cannot be.
    """
    values = config.to_dict()
    component = str(values.get("component"))
    config_lib.check(
      config_lib.invalid_choice("component", component, table.TABLE)
    )
    row, data = table.TABLE[component], values.pop("data")
    config_lib.check_types(row.config_class, values["model"], "config.model")
    sources = {"sources": tuple(data.pop("sources", ()))}
    made = {
      "model": row.config_class.from_release(_lists(values.pop("model"))),
      "data": config_lib.build(inputs.CodecInputConfig, data | sources, "data"),
      "optimizer": config_lib.build(
        optimizer.OptimizerConfig, values.pop("optimizer"), "optimizer"
      ),
      "intervals": stages.take(loop.Intervals, values),
      "checkpoints": stages.take(stages.CheckpointPolicy, values),
    }
    return config_lib.build(cls, values | made)

  def make_objective(self, platform: str) -> Any:
    """The objective, computing in the platform's dtype."""
    dtype = config_lib.resolve_dtype(self.dtype, platform)
    return config_lib.build(
      table.TABLE[self.component].objective,
      {**self.objective, "config": self.model, "dtype": dtype},
      "objective",
    )


def _lists(sizes: Mapping[str, Any]) -> dict[str, Any]:
  """Sizes as JSON has them, which is how releases have them."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
