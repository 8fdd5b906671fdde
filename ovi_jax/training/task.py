"""Training tasks: towers (a stage), or one codec.

`Task` has what both have in common: the step's configuration, and the shapes,
shardings and initial values of the state. `TowersTask` and `CodecTask` add
their parameters, input, evaluators and messages. A task holds only settings;
nothing is allocated before `initial_state` and `setup`.
"""

import abc
import dataclasses
import functools
import logging
import os
import re
import shlex
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ovi_jax import cli
from ovi_jax import flops
from ovi_jax import storage
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax.data import loader
from ovi_jax.data import quality
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import low_rank
from ovi_jax.models import quantized
from ovi_jax.pretrained import component_loader
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir
from ovi_jax.sharding import distributed
from ovi_jax.sharding import mesh as meshes
from ovi_jax.training import batch_encoder
from ovi_jax.training import init_from
from ovi_jax.training import loop
from ovi_jax.training import lora
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import state_sharding
from ovi_jax.training import step
from ovi_jax.training.codecs import input as codec_input
from ovi_jax.training.evaluators import evaluators
from ovi_jax.training.objectives import masked_text

_FACTORS = rf".*/({'|'.join(low_rank.FACTORS)})"
_HEAD = rf"{masked_text.HEAD}/.*"  # parameters that no component has
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
  """A run as defined by its settings.

  Attributes:
    settings: settings of the run.
  """

  settings: Any

  @property
  @abc.abstractmethod
  def name(self) -> str:
    """Name of what is trained, for log lines."""

  @property
  def towers(self) -> AV[Any]:
    """Sizes of the towers; empty for a codec."""
    return AV()

  @abc.abstractmethod
  def check(self) -> None:
    """Check that the settings are complete, before anything is opened.

    Raises:
      ValueError: lists what is missing.
    """

  @functools.cached_property
  def step_config(self) -> step.TrainStepConfig[Any]:
    """The static arguments of a train step: objective and optimizer."""
    return self.settings.make_step_config(cli.platform())

  def make_mesh(
    self, devices: Sequence[Any] | None = None
  ) -> jax.sharding.Mesh:
    """The mesh of the run; one axis may take the remaining devices.

    Args:
      devices: by default all devices of the run.

    Raises:
      ValueError: the product of the axes is not the number of devices, or the
        mesh does not divide the batch or the heads.
    """
    devices = jax.devices() if devices is None else devices
    sizes = meshes.resolve_sizes(self.settings.mesh, len(devices))
    mesh = meshes.make(devices, **sizes)
    self.settings.check_mesh(mesh)
    return mesh

  def open_input(self, mesh: jax.sharding.Mesh) -> Any:
    """An endless iterator of this process's rows, a `loop.Input`; close it.

    Raises:
      ValueError: a dataset cannot be opened or does not fit the settings.
    """
    index, count = distributed.data_shard(mesh)
    return self._load_input(
      self.settings.data,
      batch=self.settings.batch_size,
      seed=self.settings.seed,
      process_index=index,
      process_count=count,
    )

  @staticmethod
  @abc.abstractmethod
  def _load_input(*args: Any, **kwargs: Any) -> Any:
    """Open the datasets."""

  def open_evaluators(self, mesh: jax.sharding.Mesh) -> Any:
    """Open and check what evaluation and encoders read; loads no weights.

    Raises:
      ValueError: something is missing or damaged, or does not fit.
    """
    del mesh

  def check_data(self, opened: Any) -> None:
    """Check the data of a new run against the limits of the settings.

    Args:
      opened: the result of `open_evaluators`.

    Raises:
      ValueError: the data exceed the limits.
    """
    del opened

  def setup(self, context: loop.TrainContext, opened: Any) -> loop.TrainContext:
    """Load encoders and evaluators, and add them to the context."""
    del opened
    return context

  @abc.abstractmethod
  def parameter_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Parameters by path; trained ones float32, frozen ones in their dtype."""

  @abc.abstractmethod
  def init_params(self, key: jax.Array) -> Mapping[str, Any]:
    """Randomly initialized parameters, nested."""

  @abc.abstractmethod
  def init_plan(self) -> init_from.Plan:
    """The source of every parameter; checked, but not read.

    Raises:
      ValueError: a source is missing, damaged, or of other sizes.
    """

  def target_state(self, mesh: jax.sharding.Mesh) -> step.TrainState:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    shapes = jax.eval_shape(self._init_state, self.parameter_shapes())
    shardings = state_sharding.state_shardings(
      shapes, self.towers, mesh, self.settings.optimizer.ema_on_host
    )
    target: Any = jax.tree.map(
      lambda x, sharding: x.update(sharding=sharding), shapes, shardings
    )
    return target

  def initial_state(
    self, plan: init_from.Plan, target: step.TrainState
  ) -> step.TrainState:
    """The state before the first step, loaded directly into its shardings."""
    shardings: Any = jax.tree.map(lambda x: x.sharding, target)
    params = init_from.load(
      plan,
      self.init_params,
      self.settings.seed,
      shardings.frozen_params | shardings.trained_params,
    )
    make = jax.jit(self._init_state, out_shardings=shardings, donate_argnums=0)
    return make(params)

  def _init_state(self, params: dict[str, Any]) -> step.TrainState:
    settings = self.settings
    trained, frozen = param_filter.split(params, settings.trainable)
    return step.init_state(self.step_config, trained, frozen, settings.seed)

  @property
  def has_base(self) -> bool:
    """Whether checkpoints lack frozen parameters, which are loaded again."""
    return False

  def in_checkpoint(self, path: str) -> bool:
    """Whether checkpoints have a frozen parameter."""
    return not self.has_base or low_rank.is_factor(path)

  def add_base(
    self, plan: init_from.Plan, target: step.TrainState, state: step.TrainState
  ) -> step.TrainState:
    """Add the frozen parameters that its checkpoint lacks to a state."""
    wanted = plan.only(
      lambda path: path in target.frozen_params and not self.in_checkpoint(path)
    )
    shardings = {p: x.sharding for p, x in target.frozen_params.items()}
    loaded = init_from.load(
      wanted, self.init_params, self.settings.seed, shardings
    )
    frozen = state.frozen_params | loaded
    # In the order of the target, for which the step is compiled.
    return state._replace(
      frozen_params={p: frozen[p] for p in target.frozen_params}
    )

  def new_run_hint(self, workdir: os.PathLike[str]) -> str:
    """How to start another run from this one, for error messages."""
    return (
      "A new run can start from this one: --workdir=NEW"
      f" {self.init_from_flags(workdir)}"
    )

  @abc.abstractmethod
  def init_from_flags(self, workdir: os.PathLike[str]) -> str:
    """The flags that initialize another run from this one."""

  @abc.abstractmethod
  def next_commands(self, workdir: os.PathLike[str]) -> list[str]:
    """Commands that use the result of a finished run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowersTask(Task):
  """A stage: the video tower, the audio tower, or both.

  Attributes:
    settings: settings of the run.
    assumed_dtype: dtype of the 8-bit kernels that AOT reports assume for a
      LoRA's base without local weights.
  """

  settings: settings_lib.Settings
  assumed_dtype: np.dtype | None = None

  @property
  def name(self) -> str:
    return " and ".join(self.towers.present())

  @property
  def towers(self) -> AV[Any]:
    return self.settings.model

  def check(self) -> None:
    self.settings.check_sources()
    chosen = self.settings.trainable
    if self.settings.is_lora or param_filter.is_patterns(chosen):
      self.parameter_shapes()  # refuses targets that cannot be

  _load_input = staticmethod(loader.load)

  def open_input(self, mesh: jax.sharding.Mesh) -> loader.Loader:
    source = super().open_input(mesh)
    for rows in source.rows:
      self.settings.check_batch(rows, mesh)
    return source

  def open_evaluators(self, mesh: jax.sharding.Mesh) -> evaluators.Evaluators:
    return evaluators.Evaluators.open(self.settings, mesh)

  def check_data(self, opened: evaluators.Evaluators) -> None:
    check_quality(self.settings, opened.components)

  def setup(
    self, context: loop.TrainContext, opened: evaluators.Evaluators
  ) -> loop.TrainContext:
    settings, source = self.settings, context.input
    assert isinstance(source, loader.Loader)
    encoder = batch_encoder.load(settings, opened.components)
    context = dataclasses.replace(
      context,
      encode_batch=encoder,
      null_SE=encoder.null_text(np.asarray(source.null_text)),
      num_buckets=len(settings.data.buckets),
      cost=lambda batch: flops.batch_cost(
        settings.model,
        jax.tree.map(np.shape, batch.latents),
        attention_only=settings.attention_only,
      ),
    )
    return opened.attach(context, encoder, source.damaged)

  def parameter_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    params = param_filter.flat(
      architecture.parameter_shapes("fusion", self.towers)
    )
    if self.settings.is_lora:
      params |= self.settings.lora.factor_shapes(params)
    trained, _ = param_filter.split(params, self.settings.trainable)
    stored = self.settings.stored_dtype(cli.platform())
    shapes = {
      path: jax.ShapeDtypeStruct(
        x.shape,
        np.dtype("float32")
        if path in trained or low_rank.is_factor(path)
        else stored,
      )
      for path, x in params.items()
    }
    if self._quantized is not None:
      shapes = quantized.with_scales(shapes, self._quantized)
    return shapes

  @functools.cached_property
  def _quantized(self) -> np.dtype | None:
    """The dtype of 8-bit kernels of the base of a LoRA; `None` for others."""
    if not self.settings.is_lora:
      return None
    name = next(iter(self.towers.present()))
    path = storage.locate(getattr(self.settings.init_from, name))
    if not storage.exists(path / weights_dir.MANIFEST):
      return self.assumed_dtype
    file = weights_dir.component_file(path, "fusion")
    return quantized.dtype_of(weights.shapes(file))

  def init_params(self, key: jax.Array) -> Mapping[str, Any]:
    made = architecture.init("fusion", self.towers, key)
    if self.settings.is_lora:
      made = lora.init_params(self.settings.lora, key, made)
    return made

  def init_plan(self) -> init_from.Plan:
    settings = self.settings
    check_sizes(settings)
    present = self.towers.present()
    towers: dict[str, list[str]] = {}
    for name in present:
      towers.setdefault(getattr(settings.init_from, name), []).append(name)
    scratch = [
      pattern
      for name in towers.pop(settings_lib.SCRATCH, [])
      for pattern in init_from.tower(name)
    ]
    if settings.is_lora:
      scratch.append(_FACTORS)
    if len(towers) == len(present) == 2:
      scratch.append(init_from.FUSION_LAYERS)  # single towers lack them
    # A single tower may come from a fusion model.
    alone = len(present) == 1
    sources = [
      init_from.Source(
        path=path,
        include=tuple(p for n in names for p in init_from.tower(n)),
        exclude=(init_from.FUSION_LAYERS,) if alone else (),
        quantized=self._quantized is not None,
      )
      for path, names in towers.items()
    ]
    return init_from.plan(self.parameter_shapes(), sources, scratch)

  @property
  def has_base(self) -> bool:
    return self.settings.is_lora

  def new_run_hint(self, workdir: os.PathLike[str]) -> str:
    if self.settings.is_lora:
      return "Another LoRA of the same weights needs another --workdir"
    return super().new_run_hint(workdir)

  def init_from_flags(self, workdir: os.PathLike[str]) -> str:
    return " ".join(
      f"--config.init_from.{name}={shlex.quote(str(workdir))}"
      for name in self.towers.present()
    )

  def next_commands(self, workdir: os.PathLike[str]) -> list[str]:
    if self.settings.is_lora:
      return self._next_with_lora(workdir)
    if len(self.towers.present()) == 1:
      return [f"  a run with {self.init_from_flags(workdir)}"]
    weights = shlex.quote(f"{workdir}/weights")
    rest = "" if self.settings.pretrained else " --pretrained=WEIGHTS"
    return [
      "  python -m ovi_jax.training.export"
      f" --workdir={shlex.quote(str(workdir))}{rest} --out={weights}",
      f'  {cli.invocation("ovi-sample")} --weights={weights} --prompt="…"',
    ]

  def _next_with_lora(self, workdir: os.PathLike[str]) -> list[str]:
    run = shlex.quote(str(workdir))
    file = shlex.quote(f"{workdir}/lora.safetensors")
    base = self.settings.init_from.video or self.settings.init_from.audio
    return [
      f"  python -m ovi_jax.training.export --workdir={run} --out={file}",
      f"  {cli.invocation('ovi-sample')} --weights={shlex.quote(base)}"
      f' --lora={file} --prompt="…"',
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecTask(Task):
  """One codec, or the text encoder."""

  settings: settings_lib.CodecSettings

  @property
  def name(self) -> str:
    return self.settings.component

  def check(self) -> None:
    settings = self.settings
    if not settings.data.tokenizer or settings.component != "umt5":
      return
    tokenizer = tokenizer_lib.Tokenizer.load(settings.data.tokenizer)
    size, rows = tokenizer.model.get_vocab_size(), settings.model.vocab_size
    if size > rows:
      raise ValueError(
        f"config.model.vocab_size {rows} is less than the {size} tokens of"
        f" {settings.data.tokenizer}; set --config.model.vocab_size={size}"
      )

  _load_input = staticmethod(codec_input.load)

  def parameter_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(
      lambda: param_filter.flat(self.init_params(jax.random.key(0)))
    )

  def init_params(self, key: jax.Array) -> Mapping[str, Any]:
    objective: Any = self.step_config.objective
    if hasattr(objective, "init"):
      return objective.init(key)
    return architecture.init(self.name, objective.config, key)

  def init_plan(self) -> init_from.Plan:
    shapes, path = self.parameter_shapes(), self.settings.init_from
    if not path:
      return init_from.plan(shapes, (), (".*",))
    source = init_from.Source(path=path, include=(".*",), component=self.name)
    has_head = any(re.match(_HEAD, path) for path in shapes)
    of_weights = storage.exists(storage.locate(path) / weights_dir.MANIFEST)
    scratch = (_HEAD,) if of_weights and has_head else ()
    return init_from.plan(shapes, (source,), scratch)

  def init_from_flags(self, workdir: os.PathLike[str]) -> str:
    return f"--config.init_from={shlex.quote(str(workdir))}"

  def next_commands(self, workdir: os.PathLike[str]) -> list[str]:
    flag = settings_lib.CODECS[self.name].flag
    return [
      "  python -m ovi_jax.training.codecs.assemble"
      f" --{flag}={shlex.quote(str(workdir))} --out=WEIGHTS"
    ]


def make(
  settings: settings_lib.RunSettings, assumed_dtype: np.dtype | None = None
) -> Task:
  """The task of a run's settings; `assumed_dtype` as for `TowersTask`."""
  if isinstance(settings, settings_lib.CodecSettings):
    return CodecTask(settings=settings)
  assert isinstance(settings, settings_lib.Settings)
  return TowersTask(settings=settings, assumed_dtype=assumed_dtype)


def check_quality(
  settings: settings_lib.Settings,
  components: component_loader.Components | None,
) -> None:
  """Log and check how much of the data tokenizer and codecs lose.

  For cached latents and embeddings it was measured when they were encoded.

  Raises:
    ValueError: a loss exceeds its limit in `data`.
  """
  measured = _measure_quality(settings, components)
  for where, each in measured:
    for line in each.lines():
      _log.info(f"{where}{line}")
  for where, each in measured:
    try:
      each.check(
        settings.data.limits,
        "Use weights whose tokenizer and codecs suit the data, or raise the"
        " limit with --config.data.NAME=VALUE",
      )
    except ValueError as error:
      raise ValueError(f"{where}{error}") from error


def _measure_quality(
  settings: settings_lib.Settings,
  components: component_loader.Components | None,
) -> list[tuple[str, quality.Quality]]:
  """Measure what encoding loses, or read what was measured for datasets.

  Returns:
    Pairs of a prefix for messages (the dataset) and the quality.
  """
  data, found = settings.data, quality.Quality()
  splits = loader.open_sources(data)
  tokenizer = storage.locate(data.tokenizer or "")
  if not data.tokenizer and settings.pretrained:
    tokenizer = storage.locate(settings.pretrained) / weights_dir.TOKENIZER
  modalities = ()
  if data.encode_on_the_fly and data.min_codec_psnr:
    modalities = tuple(settings.model.present())
    if components is not None and "vocoder" not in components.manifest.digests:
      modalities = tuple(name for name in modalities if name != "audio")
  if components is not None and modalities:
    _log.info("measuring the codecs on a few clips …")
    found = quality.reconstruction(components, splits, modalities)
  kept = [
    quality.Quality.read(storage.locate(split.path) / quality.FILE)
    for split in splits
  ]
  if tokenizer.is_file() and not all(k and k.coverage for k in kept):
    coverage = quality.coverage(
      tokenizer_lib.Tokenizer.load(tokenizer),
      quality.captions_of(splits),
      data.max_text_len,
    )
    found = dataclasses.replace(found, coverage=coverage)
    kept = [dataclasses.replace(k, coverage=None) if k else None for k in kept]
  measured = [("", found)]
  if not data.encode_on_the_fly:
    measured += [(f"{s.path}: ", k) for s, k in zip(splits, kept) if k]
  return measured


def check_sizes(settings: settings_lib.Settings) -> None:
  """Check the towers' sizes against the converted weights they start from.

  Raises:
    ValueError: they differ; names the config that takes sizes from weights.
  """
  for name, tower in settings.model.present().items():
    path = storage.locate(getattr(settings.init_from, name))
    if not storage.exists(path / weights_dir.MANIFEST):
      continue
    found = getattr(weights_dir.manifest_of(path).architecture.fusion, name)
    if found is None:
      raise ValueError(
        f"init_from.{name}: the weights in {path} have no {name}"
      )
    theirs, ours = dataclasses.asdict(found), dataclasses.asdict(tower)
    if different := [
      f"{name}.{key}: {theirs[key]} in the weights, {ours[key]} in the config"
      for key in ours
      if ours[key] != theirs[key]
    ]:
      raise ValueError(
        f"config.model does not fit the weights in {path}"
        f" ({'; '.join(different)}); --config=fine_tune:{path} takes"
        " sizes, codecs and text encoder from them"
      )
