"""Settings of a training run: the config from flags, validated and frozen.

`from_config` decides whether a config trains a stage (one or both towers,
`Settings`) or a codec or text encoder (`CodecSettings`). `RunSettings` has the
fields that both share.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import ClassVar
from typing import NamedTuple
from typing import TypeVar

import jax
import jax.numpy as jnp
import ml_collections

from ovi_jax import cli
from ovi_jax import config as config_lib
from ovi_jax import diffusion
from ovi_jax import storage
from ovi_jax.attention import attention
from ovi_jax.attention import context as contexts
from ovi_jax.data import record_ids
from ovi_jax.data import schema
from ovi_jax.data import settings as data_settings
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import audio_vae
from ovi_jax.models import dit
from ovi_jax.models import fusion
from ovi_jax.models import remat as remats
from ovi_jax.models import rope
from ovi_jax.models import umt5
from ovi_jax.models import vocoder
from ovi_jax.models.video_vae import config as video_vae
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import bad_steps
from ovi_jax.training import conditions
from ovi_jax.training import loop
from ovi_jax.training import lora as loras
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.codecs import input as codec_input
from ovi_jax.training.evaluators import eval_loss
from ovi_jax.training.evaluators import eval_samples
from ovi_jax.training.objectives import audio_vae as audio_vae_objective
from ovi_jax.training.objectives import base
from ovi_jax.training.objectives import flow_matching
from ovi_jax.training.objectives import masked_text
from ovi_jax.training.objectives import video_vae as video_vae_objective
from ovi_jax.training.objectives import vocoder as vocoder_objective

T = TypeVar("T")

TEXT_SOURCES = EMBEDDINGS, CAPTIONS = "embeddings", "captions"
MAX_SEED = 2**32
SCRATCH = "scratch"  # init_from of a tower with random parameters
# Fields that may differ when a run is resumed; a name includes all below it.
# The workdir keeps a log of the changes, see `checkpoint.workdir`.
MUTABLE_FIELDS = (
  # Read before the first step only. A LoRA's base is read at every start, and
  # its digest is compared.
  "init_from",
  "log_every",
  "checkpoint_every",
  "checkpoint_every_minutes",
  "preemption_grace_seconds",
  "eval_every",
  "sample_every",
  "sdc_check_every",
  "max_to_keep",
  "keep_period",
  "mesh",
  "pretrained",
  "eval",
  "eval_samples",
  "profile_steps",
  "skip_bad_steps",
  "skip_loss_spikes",
  "step_timeout_seconds",
  "data.sources",  # the input compares datasets by content, not by path
  "data.mixture_weights",  # each source goes on with its next record
  "data.exclude_records",
  "data.max_damaged_records",
  "data.num_workers",
  "data.prefetch_batches",
  "data.max_unknown_words",
  "data.min_codec_psnr",
  "data.max_codec_mel_error",
  "num_train_steps",
  "grad_accum_steps",
  "optimizer.learning_rate",
  "optimizer.schedule",
  "optimizer.warmup_steps",
  "optimizer.end_lr_factor",
  "optimizer.weight_decay",
  "optimizer.grad_clip_norm",
  "optimizer.ema_on_host",
  "attention",
  "context_parallelism",
  "remat",
)


class Codec(NamedTuple):
  """A component that is trained alone.

  Attributes:
    flag: its name among the flags of `codecs.assemble`.
    config_class: class of its sizes, with the method `from_release`.
    objective: a frozen dataclass of `config` (the sizes), `dtype` (compute
      dtype) and the fields of `config.objective`.
  """

  flag: str
  config_class: Any
  objective: Any


CODECS: Mapping[str, Codec] = {
  "video_vae": Codec(
    "video", video_vae.VideoVAEConfig, video_vae_objective.VideoVAEObjective
  ),
  "audio_vae": Codec(
    "audio", audio_vae.AudioVAEConfig, audio_vae_objective.AudioVAEObjective
  ),
  "vocoder": Codec(
    "vocoder", vocoder.VocoderConfig, vocoder_objective.VocoderObjective
  ),
  "umt5": Codec("text", umt5.UMT5Config, masked_text.MaskedTextObjective),
}
# Components whose decoder can be trained alone. Not the audio VAE, because
# `codecs.assemble` rescales the last layer of its encoder.
_WITH_DECODER = ("video_vae",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
  """Which checkpoints are kept.

  Attributes:
    max_to_keep: number of newest checkpoints that are kept.
    keep_period: checkpoints at multiples of this step are also kept; 0 = none.
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
class RunSettings(abc.ABC):
  """Settings that every training run has.

  Attributes:
    trainable: the parameters that are trained, one of `TRAINABLE`.
    data: the training data.
    optimizer: the optimizer.
    num_train_steps: total number of steps.
    batch_size: examples per step, over all devices and microbatches.
    grad_accum_steps: microbatches per step, whose gradients are summed.
    seed: seed of initialization, data order, noise and timesteps.
    dtype: compute dtype; "auto" is bfloat16 on accelerators, float32 on CPUs.
    mesh: devices along each mesh axis; 0 for the remaining ones.
    intervals: intervals of logging, checkpoints and evaluation.
    checkpoints: which checkpoints are kept.
    bad_steps: what is done about bad steps.
    step_timeout_seconds: time limit of a step, without compilation, evaluation
      and checkpoints. If it is exceeded, every process prints the stacks of its
      threads and exits with code 76. The first step of each batch shape, which
      compiles and waits for all hosts, has no limit. 0 = no limit.
  """

  TRAINABLE: ClassVar[tuple[str, ...]] = ()

  trainable: str
  data: Any
  optimizer: optimizer.OptimizerConfig
  num_train_steps: int
  batch_size: int
  grad_accum_steps: int
  seed: int
  dtype: str
  mesh: Mapping[str, int]
  intervals: loop.Intervals
  checkpoints: CheckpointPolicy
  bad_steps: bad_steps.BadStepPolicy
  step_timeout_seconds: float

  def __post_init__(self):
    config_lib.check(self.problems())

  def problems(self) -> list[str]:
    """The problems of the settings, one sentence each."""
    problems = config_lib.below(
      self, 1, "num_train_steps", "batch_size", "grad_accum_steps"
    )
    problems += config_lib.below(self, 0, "step_timeout_seconds")
    if not 0 <= self.seed < MAX_SEED:
      problems.append(f"seed: expected 0 to 2^32 - 1, got {self.seed}")
    problems += self.trainable_problems()
    problems += config_lib.invalid_choice(
      "dtype", self.dtype, config_lib.DTYPES
    )
    return problems

  def trainable_problems(self) -> list[str]:
    """The problems of `trainable`."""
    return config_lib.invalid_choice(
      "trainable", self.trainable, self.TRAINABLE
    )

  def compute_dtype(self, platform: str) -> jnp.dtype:
    """The dtype in which the model computes on a platform."""
    return config_lib.resolve_dtype(self.dtype, platform)

  @property
  def mutable_fields(self) -> tuple[str, ...]:
    """Fields of the config that may differ when the run is resumed."""
    return MUTABLE_FIELDS

  @property
  def microbatch_size(self) -> int:
    """Examples whose gradients are computed at once, over all devices."""
    return self.batch_size // self.grad_accum_steps

  def check_batch(self, batch_size: int, mesh: jax.sharding.Mesh) -> None:
    """Check that microbatches and mesh divide a batch.

    Raises:
      ValueError: names a size that they divide.
    """
    state_sharding.check_batch(batch_size, self.grad_accum_steps, mesh)

  def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError if the mesh does not fit the settings."""
    self.check_batch(self.batch_size, mesh)
    platform = mesh.devices.flat[0].platform
    if self.intervals.sdc_check_every and platform != "tpu":
      raise ValueError(
        "sdc_check_every needs TPUs, whose compiler has the SDC checker; set it"
        f" to 0 on {platform}"
      )

  @abc.abstractmethod
  def make_objective(self, platform: str) -> base.Objective:
    """The objective, with the model in the platform's compute dtype."""

  def make_step_config(self, platform: str) -> step.TrainStepConfig[Any]:
    """The static arguments of a train step."""
    return step.TrainStepConfig(
      self.make_objective(platform),
      self.optimizer,
      self.num_train_steps,
      self.grad_accum_steps,
      self.bad_steps.skip_loss_spikes,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RunSettings):
  """Settings of a stage: the video tower, the audio tower, or both.

  Attributes:
    model: sizes of each tower; `None` for a tower that the stage lacks.
    init_from: initial parameters of each tower: a directory of converted
      weights, an earlier run (its EMA parameters), or "scratch".
    trainable: trained parameters: "all", "attention" as in the paper's fusion
      stage, "lora", or patterns of paths, see `param_filter.compiled`.
    lora: the LoRA, if `trainable` is "lora".
    objective: the loss.
    data: the training data.
    frozen_param_dtype: dtype of parameters that are not trained; "auto" for the
      compute dtype.
    attention: attention backend, "auto" or a key of
      `attention.attention.BACKENDS`.
    context_parallelism: attention between tokens that are sharded over the mesh
      axis `context`: "ulysses", or "ring" if `context` does not divide the
      number of heads.
    remat: what the backward pass rematerializes, see `models.remat`.
    pretrained: directory of converted weights with encoders for media and
      captions (`encode_on_the_fly`, `text_source`) and decoders for samples;
      empty if neither is needed.
    eval: the held-out loss.
    eval_samples: samples during training.
  """

  TRAINABLE = (
    param_filter.ALL,
    param_filter.ATTENTION,
    param_filter.LORA,
  )

  model: AV[dit.DiTConfig]
  init_from: AV[str]
  objective: flow_matching.ObjectiveConfig
  data: data_settings.LoaderConfig
  frozen_param_dtype: str
  attention: str
  context_parallelism: str
  remat: str
  pretrained: str
  eval: eval_loss.EvalConfig
  eval_samples: eval_samples.EvalSamplesConfig
  lora: loras.LoraConfig = loras.DEFAULT

  def problems(self) -> list[str]:
    problems = super().problems()
    problems += config_lib.invalid_choice(
      "frozen_param_dtype", self.frozen_param_dtype, config_lib.DTYPES
    )
    towers = self.model.present()
    for name in ("num_layers", "head_dim"):
      sizes = {n: getattr(tower, name) for n, tower in towers.items()}
      if len(set(sizes.values())) > 1:
        what = "hidden_dim / num_heads" if name == "head_dim" else name
        found = " and ".join(f"{size} of {n}" for n, size in sizes.items())
        problems.append(f"model: both towers need the same {what}, got {found}")
    problems += self._reference_problems()
    return problems + self.objective.conditions.problems(self.model)

  def _reference_problems(self) -> list[str]:
    """Whether references have positions behind those of the longest sound."""
    tower = self.model.audio
    if tower is None or not self.objective.conditions.audio.reference_prob:
      return []
    most = rope.reference_start(tower.rope_scale)
    longest = max(bucket.audio or 0 for bucket in self.data.buckets)
    if longest <= most:
      return []
    return [
      f"objective.conditions.audio.reference_prob: sounds of {longest} latents"
      f" reach the positions of references, from {most} on; use buckets of"
      " fewer"
    ]

  def trainable_problems(self) -> list[str]:
    if not param_filter.is_patterns(self.trainable):
      return super().trainable_problems()
    try:
      param_filter.compiled(self.trainable)
    except ValueError as error:
      return [str(error)]
    return []

  def check_sources(self) -> None:
    """Check that the settings define data and initial parameters.

    Raises:
      ValueError: lists what is missing.
    """
    problems = [
      f"init_from.{name}: the stage starts from this tower; set"
      f" --config.init_from.{name}=DIR (converted weights or an earlier run),"
      f" or {SCRATCH!r}"
      for name in self.model.present()
      if not getattr(self.init_from, name)
    ]
    scratch = [
      n for n in self.model.present() if getattr(self.init_from, n) == SCRATCH
    ]
    if self.trainable == param_filter.LORA and scratch:
      problems.append(
        f"init_from.{scratch[0]} is {SCRATCH!r}, but trainable='lora' adapts"
        " trained weights; name their directory"
      )
    if self.trainable == param_filter.LORA and len(set(self._bases())) > 1:
      problems.append(
        "init_from: trainable='lora' adapts one model, got a directory for each"
        " tower; train or export them as one, and name that directory for both"
      )
    untrained = [
      name
      for name in scratch
      if not param_filter.is_trained(f"{name}/head/kernel", self.trainable)
    ]
    if untrained and not self.is_lora:
      problems.append(
        f"init_from.{untrained[0]} is {SCRATCH!r}, but"
        f" trainable={self.trainable!r} freezes the zero-initialized head, so"
        " the loss cannot decrease; start from a trained tower, or set"
        " trainable='all'"
      )
    if not all(source.path for source in self.data.sources):
      problems.append("data.sources: set --config.data.sources=\"('DIR',)\"")
    encoding = self.data.encode_on_the_fly or self.data.tokenizer
    if (encoding or self.intervals.sample_every) and not self.pretrained:
      problems.append(
        "pretrained: encoding on the fly and samples need the encoders and"
        " decoders of converted weights; set --config.pretrained=DIR, or cache"
        " latents first (python -m ovi_jax.data.encode) and set sample_every"
        " to 0"
      )
    config_lib.check(problems)

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """Build the settings from the config of the flags.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value is
        invalid.
    """
    values = config.to_dict()
    model = build_pair(config_lib.take(values, "model"), "model", build_tower)
    pretrained = values.get("pretrained", "")
    made = _shared(values) | {
      "model": model,
      "init_from": build_pair(
        config_lib.take(values, "init_from"), "init_from"
      ),
      "objective": _objective(config_lib.take(values, "objective")),
      "data": _data(config_lib.take(values, "data"), model, pretrained),
      "eval": config_lib.build(
        eval_loss.EvalConfig, config_lib.take(values, "eval"), "eval"
      ),
      "eval_samples": _eval_samples(config_lib.take(values, "eval_samples")),
      "lora": config_lib.build(
        # Runs from before LoRAs lack the section.
        loras.LoraConfig,
        values.pop("lora", {}),
        "lora",
      ),
    }
    return config_lib.build(cls, values | made)

  @property
  def mutable_fields(self) -> tuple[str, ...]:
    unused = () if self.is_lora else ("lora",)
    return (*super().mutable_fields, *unused)

  def _bases(self) -> list[str]:
    """The sources of the towers."""
    return [getattr(self.init_from, name) for name in self.model.present()]

  @property
  def is_lora(self) -> bool:
    """Whether a LoRA is trained, on frozen parameters."""
    return self.trainable == param_filter.LORA

  @functools.cached_property
  def attention_only(self) -> bool:
    """Whether no kernel of a feed-forward layer is trained."""
    shapes = param_filter.flat(
      architecture.parameter_shapes("fusion", self.model)
    )
    if self.is_lora:
      trained = self.lora.kernels(shapes)
    else:
      trained, _ = param_filter.split(shapes, self.trainable)
    return not any("feed_forward" in path for path in trained)

  def stored_dtype(self, platform: str) -> jnp.dtype:
    """The dtype in which frozen parameters are stored on a platform."""
    if self.frozen_param_dtype == config_lib.AUTO:
      return self.compute_dtype(platform)
    return jnp.dtype(self.frozen_param_dtype)

  def check_mesh(self, mesh: jax.sharding.Mesh) -> None:
    super().check_mesh(mesh)
    for tower in self.model.present().values():
      share = mesh.shape, tower.num_heads, self.context_parallelism
      contexts.check(*share)
      if mesh.devices.flat[0].platform != "cpu":
        contexts.check_training(*share)

  def make_step_config(self, platform: str) -> step.TrainStepConfig[Any]:
    made = super().make_step_config(platform)
    dropout = self.lora.dropout if self.is_lora else 0.0
    return made._replace(lora_dropout=dropout)

  def make_objective(self, platform: str) -> flow_matching.FlowMatching:
    """Flow matching with the DiT of the settings.

    Raises:
      ValueError: the attention backend or `remat` is unknown.
    """
    dtype = self.compute_dtype(platform)
    tower = next(iter(self.model.present().values()))
    backend = attention.resolve(self.attention, platform, dtype, tower.head_dim)
    model = fusion.FusionDiT(
      self.model,
      dtype,
      backend,
      remat=remats.resolve(self.remat, cli.target()),
      unroll=fusion.should_unroll(self.model, platform),
      context_parallelism=self.context_parallelism,
    )
    return flow_matching.FlowMatching(model, self.objective)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecSettings(RunSettings):
  """Settings of a run of one codec, or of the text encoder.

  Attributes:
    component: a key of `CODECS`.
    model: sizes of the component.
    init_from: initial parameters: an earlier run (its EMA parameters) or a
      directory of weights; empty for random initialization.
    trainable: "all", or "decoder" for the video VAE, which freezes the encoder.
    objective: weights of the loss terms and other settings, by name.
    data: the clips and how they are cropped.
  """

  TRAINABLE = (param_filter.ALL, param_filter.DECODER)

  component: str
  model: Any
  init_from: str
  objective: Mapping[str, Any]
  data: codec_input.CodecInputConfig

  def __post_init__(self):
    super().__post_init__()
    self.make_objective("cpu")  # refuses fields that the objective lacks

  def problems(self) -> list[str]:
    problems = super().problems()
    if self.trainable == param_filter.DECODER:
      if self.component not in _WITH_DECODER:
        problems.append(
          f"trainable={self.trainable!r} is for {', '.join(_WITH_DECODER)}, not"
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
    return problems

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "CodecSettings":
    """Build the settings from the config of the flags.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value is
        invalid.
    """
    values = config.to_dict()
    component = str(values.get("component"))
    config_lib.check(config_lib.invalid_choice("component", component, CODECS))
    config_class = CODECS[component].config_class
    model, data = (
      config_lib.take(values, "model"),
      config_lib.take(values, "data"),
    )
    config_lib.check_types(config_class, model, "config.model")
    # Sizes as in JSON, the form in release manifests.
    sizes = {
      k: list(v) if isinstance(v, tuple) else v for k, v in model.items()
    }
    sources = {"sources": tuple(data.pop("sources", ()))}
    made = _shared(values) | {
      "model": config_class.from_release(sizes),
      "data": config_lib.build(
        codec_input.CodecInputConfig, data | sources, "data"
      ),
    }
    return config_lib.build(cls, values | made)

  def make_objective(self, platform: str) -> Any:
    """The component's objective; ValueError for unknown fields."""
    return config_lib.build(
      CODECS[self.component].objective,
      {
        **self.objective,
        "config": self.model,
        "dtype": self.compute_dtype(platform),
      },
      "objective",
    )


def from_config(
  config: ml_collections.ConfigDict,
) -> Settings | CodecSettings:
  """Build the settings of a run from the config of the flags.

  Args:
    config: config of a stage, or of a codec (which has the field `component`).

  Returns:
    The settings.

  Raises:
    ValueError: a field is missing or unknown (its dotted name), or a value is
      invalid.
  """
  chosen = CodecSettings if "component" in config else Settings
  return chosen.from_config(config)


def stored_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The plain values that a run stores of a config.

  `data.exclude_records` has the ids themselves: the config change log of the
  run then shows when a file with ids has changed, and export does not need the
  file.

  Raises:
    ValueError: the file cannot be read.
  """
  values = config.to_dict()
  if text := values["data"].get("exclude_records"):
    ids = record_ids.parse(text)
    values["data"]["exclude_records"] = ",".join(map(record_ids.name, ids))
  return values


def _shared(values: dict[str, Any]) -> dict[str, Any]:
  """The built fields of `RunSettings`, moved out of a config's values."""
  return {
    "optimizer": config_lib.build(
      optimizer.OptimizerConfig,
      config_lib.take(values, "optimizer"),
      "optimizer",
    ),
    "intervals": _take(loop.Intervals, values),
    "checkpoints": _take(CheckpointPolicy, values),
    "bad_steps": _take(bad_steps.BadStepPolicy, values),
  }


def _take(cls: type[T], values: dict[str, Any]) -> T:
  """Move the fields of a dataclass out of the top level of a config."""
  names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
  found = {name: values.pop(name) for name in names if name in values}
  return config_lib.build(cls, found)


def build_tower(values: Mapping[str, Any], where: str) -> dit.DiTConfig:
  """A tower's sizes; converts a `patch` from JSON, a list, to a tuple."""
  patch = {k: tuple(v) for k, v in values.items() if k == "patch"}
  return config_lib.build(dit.DiTConfig, {**values, **patch}, where)


def build_pair(
  values: Mapping[str, Any], name: str, make: Any = lambda value, _: value
) -> AV[Any]:
  """Build a value for each modality; `None` stays `None`."""
  given = config_lib.build(TowerPair, values, name)
  pair = AV(given.video, given.audio)
  return pair.map(lambda tower, value: make(value, f"{name}.{tower}"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerPair:
  """The fields of a pair in a config."""

  video: Any = None
  audio: Any = None


def _eval_samples(values: dict[str, Any]) -> eval_samples.EvalSamplesConfig:
  scale = build_pair(
    config_lib.take(values, "guidance_scale", "eval_samples"),
    "eval_samples.guidance_scale",
  )
  return config_lib.build(
    eval_samples.EvalSamplesConfig,
    values
    | {
      "guidance_scale": scale,
      "protocols": tuple(values.get("protocols", ())),
    },
    "eval_samples",
  )


def _objective(values: dict[str, Any]) -> flow_matching.ObjectiveConfig:
  made: dict[str, Any] = {
    name: build_pair(
      config_lib.take(values, name, "objective"), f"objective.{name}"
    )
    for name in ("loss_weights", "cfg_dropout")
  }
  made["timesteps"] = config_lib.build(
    diffusion.TimestepSampler,
    config_lib.take(values, "timesteps", "objective"),
    "objective.timesteps",
  )
  given = config_lib.take(values, "conditions", "objective")
  at = "objective.conditions"
  pair: dict[str, Any] = {
    name: config_lib.build(
      conditions.ConditionProbs,
      config_lib.take(given, name, at),
      f"{at}.{name}",
    )
    for name in AV._fields
  }
  # A stored config has lists.
  pair |= {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
  made["conditions"] = config_lib.build(
    conditions.ConditionsConfig, given | pair, at
  )
  return config_lib.build(
    flow_matching.ObjectiveConfig, values | made, "objective"
  )


def _data(
  values: dict[str, Any], model: AV[dit.DiTConfig], pretrained: str
) -> data_settings.LoaderConfig:
  """Build sources and buckets from tuples, and other fields by name."""
  text = values.pop("text_source", EMBEDDINGS)
  config_lib.check(
    config_lib.invalid_choice("data.text_source", text, TEXT_SOURCES)
  )
  sources = config_lib.take(values, "sources", "data")
  weights = values.pop("mixture_weights", ()) or (None,) * len(sources)
  if len(weights) != len(sources):
    raise ValueError(
      f"config.data.mixture_weights: {len(weights)} weights for"
      f" {len(sources)} sources; set one each, or none"
    )
  video, audio = (
    config_lib.take(values, "video_buckets", "data"),
    config_lib.take(values, "audio_buckets", "data"),
  )
  for name, sizes in (("video", video), ("audio", audio)):
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
      sizes = (sizes,)
    inner = [isinstance(size, Sequence) for size in sizes]
    if not all(inner) if name == "video" else any(inner):
      raise ValueError(
        f"data.{name}_buckets: expected a tuple of buckets, such as"
        f" {data_settings.EXAMPLES[name]}, got {sizes!r:.60}"
      )
  video = [tuple(v) for v in video] if model.video else []
  audio = list(audio) if model.audio else []
  towers = model.present()
  if not video and not audio:
    raise ValueError(data_settings.no_buckets(towers))
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
    made["tokenizer"] = str(storage.locate(pretrained) / weights_dir.TOKENIZER)
  return config_lib.build(data_settings.LoaderConfig, values | made, "data")
