"""The settings of a codec's training run: its config, checked and frozen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from ovi_jax import fields
from ovi_jax.training import loop
from ovi_jax.training import optimizer
from ovi_jax.training import settings as stages
from ovi_jax.training import trainable
from ovi_jax.training.codecs import input as inputs
from ovi_jax.training.codecs import table

TRAINS = (trainable.ALL, trainable.DECODER)
# Assembling scales the audio encoder's last layer, and with it how far from its
# mean a latent is drawn: its decoder cannot go on alone.
WITH_DECODER = ("video_vae",)
DTYPES = ("auto", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run of one component.

  Attributes:
    component: a key of `table.TABLE`.
    model: its config.
    initial: run whose (averaged) parameters this one begins with, or directory
      of weights; empty for random ones.
    trains: "all", or "decoder", alone, of the video's codec.
    task: the terms' weights and what else its task has, by name.
    data: what is read.
    optimizer: how parameters are moved.
    steps: of the whole run.
    batch: clips of a step, over all devices and parts.
    parts: gradients of so many parts of a batch are summed.
    seed: of initialisation, data and what the task draws.
    dtype: compute dtype, "auto" for bfloat16 on accelerators.
    mesh: devices along each mesh axis; 0 for all that are left over.
    cadence: what happens when.
    keep: which checkpoints stay.
  """

  component: str
  model: Any
  initial: str
  task: Mapping[str, Any]
  data: inputs.InputSettings
  optimizer: optimizer.OptimizerSettings
  steps: int
  batch: int
  parts: int
  seed: int
  dtype: str
  mesh: Mapping[str, int]
  cadence: loop.Cadence
  keep: stages.Keep
  trains: str = trainable.ALL  # what older runs did

  def __post_init__(self):
    problems = [
      f"{name} must be at least 1, got {getattr(self, name)}"
      for name in ("steps", "batch", "parts")
      if getattr(self, name) < 1
    ]
    if self.dtype not in DTYPES:
      problems.append(
        f"dtype {self.dtype!r} is unknown; choose from {', '.join(DTYPES)}"
      )
    if self.trains not in TRAINS:
      problems.append(
        f"trains {self.trains!r} is unknown; choose from {', '.join(TRAINS)}"
      )
    if self.trains == trainable.DECODER:
      if self.component not in WITH_DECODER:
        problems.append(
          f"trains={self.trains!r} is for {', '.join(WITH_DECODER)}, not"
          f" {self.component}; set 'all'"
        )
      if not self.initial:
        problems.append(
          f"trains={self.trains!r} would leave a random encoder as it is; name"
          " a run or a directory of weights in initial"
        )
    if self.cadence.held_out or self.cadence.samples:
      problems.append("cadence: codecs have no held_out and samples; set 0")
    if problems:
      raise ValueError("config: " + "; ".join(problems))
    self.made_task("cpu")  # complains of what the task has not

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value
        cannot be.
    """
    values = config.to_dict()
    component = str(values.get("component"))
    if component not in table.TABLE:
      raise ValueError(
        f"config.component {component!r} is unknown; choose from"
        f" {', '.join(table.TABLE)}"
      )
    row, data = table.TABLE[component], values.pop("data")
    fields.check(row.sizes, values["model"], "config.model")
    sources = {"sources": tuple(data.pop("sources", ()))}
    made = {
      "model": row.sizes.from_release(_lists(values.pop("model"))),
      "data": stages.built(inputs.InputSettings, data | sources, "data"),
      "optimizer": stages.built(
        optimizer.OptimizerSettings, values.pop("optimizer"), "optimizer"
      ),
      "cadence": stages.cadence(values),
      "keep": stages.built(stages.Keep, values.pop("keep"), "keep"),
    }
    return stages.built(cls, values | made, "")

  def made_task(self, platform: str) -> Any:
    """The task, computing in the platform's dtype."""
    name = self.dtype
    if name == "auto":
      name = "float32" if platform == "cpu" else "bfloat16"
    given = {"config": self.model, "dtype": jnp.dtype(name)}
    task = table.TABLE[self.component].task
    return stages.built(task, {**self.task, **given}, "task")


def _lists(sizes: Mapping[str, Any]) -> dict[str, Any]:
  """Sizes as JSON has them, which is how releases have them."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
