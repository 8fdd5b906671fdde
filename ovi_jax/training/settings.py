"""A training run's settings: the flags' config, checked and frozen once."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from ovi_jax import fields as fields_lib
from ovi_jax.attention import context
from ovi_jax.checkpoint import directory
from ovi_jax.data import schema
from ovi_jax.data import settings as data_settings
from ovi_jax.diffusion import times
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.training import held_out
from ovi_jax.training import loop
from ovi_jax.training import objective
from ovi_jax.training import optimizer
from ovi_jax.training import samples
from ovi_jax.training import trainable

TEXTS = EMBEDDINGS, CAPTIONS = "embeddings", "captions"
FRESH = "fresh"  # as an initial tower: random, learnt from nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
  """Which checkpoints stay.

  Attributes:
    last: how many of the newest.
    every: also those of steps it divides; 0 = none.
  """

  last: int = 2
  every: int = 0

  def __post_init__(self):
    if self.last < 1 or self.every < 0:
      raise ValueError(
        "keep: expected last of at least 1 and every of 0 (none) or more, got"
        f" {self.last} and {self.every}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """A run of one stage.

  Attributes:
    model: sizes of each tower, `None` for one that the stage has not.
    initial: where each tower comes from: a directory of converted weights, of
      an earlier run, or "fresh".
    trains: "all", or "attention" as in the paper's fusion.
    objective: the loss.
    optimizer: how parameters are moved.
    data: what is read.
    steps: of the whole run.
    batch: examples of a step, over all devices and parts.
    parts: gradients of so many parts of a batch are summed.
    seed: of initialisation, data order, noise and times.
    dtype: compute dtype, "auto" for bfloat16 on accelerators.
    frozen_dtype: of parameters that are not trained.
    attention: backend, see `attention.attention`.
    context_attention: how tokens that are split over the mesh axis `context`
      attend to each other, a key of `attention.context.SCHEMES`.
    remat: see `models.fusion.REMAT`, or "none".
    mesh: devices along each mesh axis; 0 for all that are left over.
    components: directory of converted weights, whose encoders read media and
      captions and whose decoders make samples; empty for neither.
    held_out: what the loss of held-out records is taken of.
    samples: how clips are made.
    cadence: what happens when.
    keep: which checkpoints stay.
  """

  model: AV[dit.DiTConfig]
  initial: AV[str]
  trains: str
  objective: objective.Objective
  optimizer: optimizer.OptimizerSettings
  data: data_settings.LoaderSettings
  steps: int
  batch: int
  parts: int
  seed: int
  dtype: str
  frozen_dtype: str
  attention: str
  context_attention: str = context.ALL_TO_ALL  # what older runs did
  remat: str
  mesh: Mapping[str, int]
  components: str
  held_out: held_out.Records
  samples: samples.SampleSettings
  cadence: loop.Cadence
  keep: Keep

  def __post_init__(self):
    problems = [
      f"{name} must be at least 1, got {getattr(self, name)}"
      for name in ("steps", "batch", "parts")
      if getattr(self, name) < 1
    ]
    if self.trains not in (trains := (trainable.ALL, trainable.ATTENTION)):
      problems.append(
        f"trains {self.trains!r} is unknown; choose from {', '.join(trains)}"
      )
    for name in ("dtype", "frozen_dtype"):
      known = ("auto", "float32", "bfloat16")
      if getattr(self, name) not in known:
        problems.append(
          f"{name} {getattr(self, name)!r} is unknown; choose from"
          f" {', '.join(known)}"
        )
    towers = self.model.present()
    for name in ("blocks", "head_size"):
      sizes = {n: getattr(tower, name) for n, tower in towers.items()}
      if len(set(sizes.values())) > 1:
        what = "width / heads" if name == "head_size" else name
        found = " and ".join(f"{size} of {n}" for n, size in sizes.items())
        problems.append(f"model: both towers need the same {what}, got {found}")
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  def check_sources(self) -> None:
    """Refuse settings that say not all of where a run starts from.

    Raises:
      ValueError: lists what is missing.
    """
    problems = [
      f"initial.{name}: the stage starts from this tower; give"
      f" --config.initial.{name}=DIR (converted weights or an earlier run),"
      f" or {FRESH!r}"
      for name in self.model.present()
      if not getattr(self.initial, name)
    ]
    fresh = [
      n for n in self.model.present() if getattr(self.initial, n) == FRESH
    ]
    if self.trains == trainable.ATTENTION and fresh:
      problems.append(
        f"initial.{fresh[0]} is {FRESH!r}, but trains={self.trains!r} never"
        " moves a tower's last layer, which is zero at first: nothing would be"
        " learnt; start from a trained tower, or set trains='all'"
      )
    if not all(source.path for source in self.data.sources):
      problems.append("data.sources: give --config.data.sources=\"('DIR',)\"")
    encoding = self.data.media or self.data.tokenizer
    if (encoding or self.cadence.samples) and not self.components:
      problems.append(
        "components: media and captions are read with the encoders of converted"
        " weights, and samples made with their decoders; give"
        " --config.components=DIR, or cache latents first (python -m"
        " ovi_jax.data.encode) and make no samples"
      )
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config.

    Raises:
      ValueError: a field is missing or unknown (its dotted name), or a value
        cannot be.
    """
    values = config.to_dict()
    model = pair(values, "model", tower)
    made = {
      "model": model,
      "initial": pair(values, "initial", lambda v, _: v),
      "objective": _objective(values.pop("objective")),
      "optimizer": built(
        optimizer.OptimizerSettings, values.pop("optimizer"), "optimizer"
      ),
      "data": _data(values.pop("data"), model, values.get("components", "")),
      "held_out": built(held_out.Records, values.pop("held_out"), "held_out"),
      "samples": _samples(values.pop("samples")),
      "cadence": cadence(values),
      "keep": built(Keep, values.pop("keep"), "keep"),
    }
    return built(cls, values | made, "")

  def compute_dtype(self, platform: str) -> jnp.dtype:
    """What the model computes in on a platform."""
    name = self.dtype
    if name == "auto":
      name = "float32" if platform == "cpu" else "bfloat16"
    return jnp.dtype(name)

  def stored_dtype(self, platform: str) -> jnp.dtype:
    """What frozen parameters are kept in on a platform."""
    if self.frozen_dtype == "auto":
      return self.compute_dtype(platform)
    return jnp.dtype(self.frozen_dtype)


def built(cls: Any, values: Mapping[str, Any], where: str) -> Any:
  """An instance of a frozen dataclass; every field by name, none unknown."""
  fields = dataclasses.fields(cls)
  needed = {
    f.name
    for f in fields
    if f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  }
  at = f"config.{where}." if where else "config."
  unknown = sorted(values.keys() - {f.name for f in fields})
  missing = sorted(needed - values.keys())
  if unknown or missing:
    known = ", ".join(sorted(f.name for f in fields))
    said = [f"{at}{name} is unknown" for name in unknown]
    said += [f"{at}{name} is missing" for name in missing]
    raise ValueError(f"{'; '.join(said)}; the fields are {known}")
  fields_lib.check(cls, values, at.rstrip("."))
  return cls(**values)


def tower(values: Mapping[str, Any], where: str) -> dit.DiTConfig:
  """A tower's sizes; JSON has made a list of the patch."""
  patch = {k: tuple(v) for k, v in values.items() if k == "patch"}
  return built(dit.DiTConfig, {**values, **patch}, where)


def pair(values: dict[str, Any], name: str, make: Any) -> AV[Any]:
  """Take `values[name]` as a pair; `None` stays."""
  given = built(Pair, values.pop(name), name)
  return AV(
    **{
      n: None if v is None else make(v, f"{name}.{n}")
      for n, v in dataclasses.asdict(given).items()
    }
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """The names of a pair in a config."""

  video: Any = None
  audio: Any = None


def cadence(values: dict[str, Any]) -> loop.Cadence:
  """Take what happens when, `profile_steps` included."""
  profile = {"profile": tuple(values.pop("profile_steps", (0, 0)))}
  return built(loop.Cadence, values.pop("cadence") | profile, "cadence")


def _samples(values: dict[str, Any]) -> samples.SampleSettings:
  made = {"guidance": pair(values, "guidance", lambda v, _: v)}
  return built(samples.SampleSettings, values | made, "samples")


def _objective(values: dict[str, Any]) -> objective.Objective:
  made = {
    name: pair(values, name, lambda v, _: v)
    for name in ("scales", "prompt_dropout")
  }
  made["times"] = built(times.Times, values.pop("times"), "objective.times")
  return built(objective.Objective, values | made, "objective")


def _data(
  values: dict[str, Any], model: AV[dit.DiTConfig], components: str
) -> data_settings.LoaderSettings:
  """Sources and buckets from plain tuples; the rest by name."""
  if (text := values.pop("text", EMBEDDINGS)) not in TEXTS:
    raise ValueError(
      f"config.data.text {text!r} is unknown; choose from {', '.join(TEXTS)}"
    )
  weights = values.pop("weights", ()) or (None,) * len(values["sources"])
  if len(weights) != len(values["sources"]):
    raise ValueError(
      f"config.data.weights: {len(weights)} weights for"
      f" {len(values['sources'])} sources; give one each, or none"
    )
  sources = tuple(
    built(
      data_settings.Source, {"path": path, "weight": weight}, "data.sources"
    )
    for path, weight in zip(values.pop("sources"), weights)
  )
  video, audio = values.pop("video"), values.pop("audio")
  video = [tuple(v) for v in video] if model.video else []
  audio = list(audio) if model.audio else []
  buckets = tuple(
    built(data_settings.Bucket, {"video": v, "audio": a}, "data")
    for v in video or [None]
    for a in audio or [None]
  )
  towers = list(model.present().values())
  sizes = schema.Geometry(text_width=towers[0].text_width)
  for name, tower in model.present().items():
    sizes = dataclasses.replace(sizes, **{f"{name}_channels": tower.channels})
  made = {"sources": sources, "buckets": buckets, "geometry": sizes}
  made["text_rows"] = towers[0].text_length
  if text == CAPTIONS:
    made["tokenizer"] = str(pathlib.Path(components) / directory.TOKENIZER)
  return built(data_settings.LoaderSettings, values | made, "data")
