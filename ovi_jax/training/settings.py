"""A training run's settings: the flags' config, checked and frozen once."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any
from typing import TypeVar

import jax.numpy as jnp
import ml_collections

from ovi_jax import config as config_lib
from ovi_jax import diffusion
from ovi_jax.data import schema
from ovi_jax.data import settings as data_settings
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import loop
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training.evaluators import eval_loss
from ovi_jax.training.evaluators import eval_samples
from ovi_jax.training.objectives import flow_matching

T = TypeVar("T")

TEXT_SOURCES = EMBEDDINGS, CAPTIONS = "embeddings", "captions"
SCRATCH = "scratch"  # init_from of a tower with random parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
  """Which checkpoints stay.

  Attributes:
    max_to_keep: how many of the newest.
    keep_period: also those of steps it divides; 0 = none.
  """

  max_to_keep: int = 2
  keep_period: int = 0

  def __post_init__(self):
    if self.max_to_keep < 1 or self.keep_period < 0:
      raise ValueError(
        "expected max_to_keep of at least 1 and keep_period of 0 (none) or"
        " more, got"
        f" {self.max_to_keep} and {self.keep_period}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run of one stage.

  Attributes:
    model: sizes of each tower, `None` for one that the stage has not.
    init_from: where each tower comes from: a directory of converted weights, of
      an earlier run, or "scratch".
    trainable: "all", or "attention" as in the paper's fusion.
    objective: the loss.
    optimizer: how parameters are moved.
    data: what is read.
    num_train_steps: of the whole run.
    batch_size: examples of a step, over all devices and parts.
    grad_accum_steps: gradients of so many parts of a batch are summed.
    seed: of initialisation, data order, noise and times.
    dtype: compute dtype, "auto" for bfloat16 on accelerators.
    frozen_param_dtype: of parameters that are not trained.
    attention: backend, see `attention.attention`.
    context_parallelism: how tokens that are split over the mesh axis `context`
      attend to each other, a key of `attention.context.STRATEGIES`.
    remat: see `models.fusion.REMAT`, or "none".
    mesh: devices along each mesh axis; 0 for all that are left over.
    pretrained: directory of converted weights, whose encoders read media and
      captions and whose decoders make samples; empty for neither.
    eval: what the loss of held-out records is taken of.
    eval_samples: how clips are made.
    intervals: what happens when.
    checkpoints: which checkpoints stay.
  """

  model: AV[dit.DiTConfig]
  init_from: AV[str]
  trainable: str
  objective: flow_matching.ObjectiveConfig
  optimizer: optimizer.OptimizerConfig
  data: data_settings.LoaderConfig
  num_train_steps: int
  batch_size: int
  grad_accum_steps: int
  seed: int
  dtype: str
  frozen_param_dtype: str
  attention: str
  context_parallelism: str
  remat: str
  mesh: Mapping[str, int]
  pretrained: str
  eval: eval_loss.EvalConfig
  eval_samples: eval_samples.EvalSamplesConfig
  intervals: loop.Intervals
  checkpoints: CheckpointPolicy

  def __post_init__(self):
    problems = config_lib.below(
      self, 1, "num_train_steps", "batch_size", "grad_accum_steps"
    )
    for name, known in (
      ("trainable", (param_filter.ALL, param_filter.ATTENTION)),
      ("dtype", config_lib.DTYPES),
      ("frozen_param_dtype", config_lib.DTYPES),
    ):
      problems += config_lib.invalid_choice(name, getattr(self, name), known)
    towers = self.model.present()
    for name in ("num_layers", "head_size"):
      sizes = {n: getattr(tower, name) for n, tower in towers.items()}
      if len(set(sizes.values())) > 1:
        what = "hidden_dim / num_heads" if name == "head_size" else name
        found = " and ".join(f"{size} of {n}" for n, size in sizes.items())
        problems.append(f"model: both towers need the same {what}, got {found}")
    config_lib.check(problems)

  def check_sources(self) -> None:
    """Refuse settings that say not all of where a run starts from.

    Raises:
      ValueError: lists what is missing.
    """
    problems = [
      f"init_from.{name}: the stage starts from this tower; give"
      f" --config.init_from.{name}=DIR (converted weights or an earlier run),"
      f" or {SCRATCH!r}"
      for name in self.model.present()
      if not getattr(self.init_from, name)
    ]
    scratch = [
      n for n in self.model.present() if getattr(self.init_from, n) == SCRATCH
    ]
    if self.trainable == param_filter.ATTENTION and scratch:
      problems.append(
        f"init_from.{scratch[0]} is {SCRATCH!r}, but"
        f" trainable={self.trainable!r} never trains a tower's last layer,"
        " which is zero at first, so that the loss could not fall; start from a"
        " trained tower, or set trainable='all'"
      )
    if not all(source.path for source in self.data.sources):
      problems.append("data.sources: give --config.data.sources=\"('DIR',)\"")
    encoding = self.data.encode_on_the_fly or self.data.tokenizer
    if (encoding or self.intervals.sample_every) and not self.pretrained:
      problems.append(
        "pretrained: media and captions are read with the encoders of converted"
        " weights, and samples made with their decoders; give"
        " --config.pretrained=DIR, or cache latents first (python -m"
        " ovi_jax.data.encode) and make no samples"
      )
    config_lib.check(problems)

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value
        cannot be.
    """
    values = config.to_dict()
    model = build_pair(values.pop("model"), "model", build_tower)
    pretrained = values.get("pretrained", "")
    made = {
      "model": model,
      "init_from": build_pair(values.pop("init_from"), "init_from"),
      "objective": _objective(values.pop("objective")),
      "optimizer": config_lib.build(
        optimizer.OptimizerConfig, values.pop("optimizer"), "optimizer"
      ),
      "data": _data(values.pop("data"), model, pretrained),
      "eval": config_lib.build(
        eval_loss.EvalConfig, values.pop("eval"), "eval"
      ),
      "eval_samples": _eval_samples(values.pop("eval_samples")),
      "intervals": take(loop.Intervals, values),
      "checkpoints": take(CheckpointPolicy, values),
    }
    return config_lib.build(cls, values | made)

  def compute_dtype(self, platform: str) -> jnp.dtype:
    """What the model computes in on a platform."""
    return config_lib.resolve_dtype(self.dtype, platform)

  def stored_dtype(self, platform: str) -> jnp.dtype:
    """What frozen parameters are kept in on a platform."""
    if self.frozen_param_dtype == config_lib.AUTO:
      return self.compute_dtype(platform)
    return jnp.dtype(self.frozen_param_dtype)


def take(cls: type[T], values: dict[str, Any]) -> T:
  """Move the fields of a dataclass out of the top level of a config."""
  names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
  found = {name: values.pop(name) for name in names if name in values}
  return config_lib.build(cls, found)


def build_tower(values: Mapping[str, Any], where: str) -> dit.DiTConfig:
  """A tower's sizes; JSON has made a list of the patch."""
  patch = {k: tuple(v) for k, v in values.items() if k == "patch"}
  return config_lib.build(dit.DiTConfig, {**values, **patch}, where)


def build_pair(
  values: Mapping[str, Any], name: str, make: Any = lambda value, _: value
) -> AV[Any]:
  """A value for each modality; `None` stays."""
  given = config_lib.build(TowerPair, values, name)
  return AV(
    **{
      n: None if v is None else make(v, f"{name}.{n}")
      for n, v in dataclasses.asdict(given).items()
    }
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerPair:
  """The names of a pair in a config."""

  video: Any = None
  audio: Any = None


def _eval_samples(values: dict[str, Any]) -> eval_samples.EvalSamplesConfig:
  scale = build_pair(values["guidance_scale"], "eval_samples.guidance_scale")
  return config_lib.build(
    eval_samples.EvalSamplesConfig,
    values | {"guidance_scale": scale},
    "eval_samples",
  )


def _objective(values: dict[str, Any]) -> flow_matching.ObjectiveConfig:
  made: dict[str, Any] = {
    name: build_pair(values[name], f"objective.{name}")
    for name in ("loss_weights", "cfg_dropout")
  }
  made["timesteps"] = config_lib.build(
    diffusion.TimestepSampler, values["timesteps"], "objective.timesteps"
  )
  return config_lib.build(
    flow_matching.ObjectiveConfig, values | made, "objective"
  )


def _data(
  values: dict[str, Any], model: AV[dit.DiTConfig], pretrained: str
) -> data_settings.LoaderConfig:
  """Sources and buckets from plain tuples; the rest by name."""
  text = values.pop("text_source", EMBEDDINGS)
  config_lib.check(
    config_lib.invalid_choice("data.text_source", text, TEXT_SOURCES)
  )
  sources = values.pop("sources")
  weights = values.pop("mixture_weights", ()) or (None,) * len(sources)
  if len(weights) != len(sources):
    raise ValueError(
      f"config.data.mixture_weights: {len(weights)} weights for"
      f" {len(sources)} sources; give one each, or none"
    )
  video, audio = values.pop("video_buckets"), values.pop("audio_buckets")
  video = [tuple(v) for v in video] if model.video else []
  audio = list(audio) if model.audio else []
  towers = model.present()
  made = {
    "sources": tuple(
      config_lib.build(
        data_settings.Source, {"path": path, "weight": weight}, "data.sources"
      )
      for path, weight in zip(sources, weights)
    ),
    "buckets": tuple(
      config_lib.build(
        data_settings.Bucket, {"video": v, "audio": a}, "data.buckets"
      )
      for v in video or [None]
      for a in audio or [None]
    ),
    "geometry": dataclasses.replace(
      schema.Geometry(text_dim=next(iter(towers.values())).text_dim),
      **{f"{name}_channels": tower.channels for name, tower in towers.items()},
    ),
    "max_text_len": next(iter(towers.values())).max_text_len,
  }
  if text == CAPTIONS:
    made["tokenizer"] = str(pathlib.Path(pretrained) / weights_dir.TOKENIZER)
  return config_lib.build(data_settings.LoaderConfig, values | made, "data")
