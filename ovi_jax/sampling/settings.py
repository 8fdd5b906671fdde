"""What a run of `sample.py` is told, checked before anything is loaded."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from ovi_jax import config as config_lib
from ovi_jax import geometry
from ovi_jax import prompt as prompts
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.modality import AV
from ovi_jax.pretrained import weights_dir
from ovi_jax.sampling import conditions
from ovi_jax.sampling import requests
from ovi_jax.sampling import solvers
from ovi_jax.sharding import mesh as meshes

# What Ovi publishes for its weights. A directory of other weights may advise
# other values of these fields (`sampling` of its manifest).
DEFAULTS: Mapping[str, Any] = {
  "num_steps": 50,
  "solver": "unipc",
  "flow_shift": 5.0,
  "guidance_scale": {"video": 4.0, "audio": 3.0},
  "slg_layer": 11,
  "negative_prompt": {
    "video": "jitter, bad hands, blur, distortion",
    "audio": "robotic, muffled, echo, distorted",
  },
  "conditioning": conditions.RENOISE,
  "voice_guidance_scale": 1.0,
}


# Least and largest value of each number. The solvers' coefficients are finite
# within them. The model knows 1000 noise levels; the rest is generous.
BOUNDS: Mapping[str, tuple[float, float]] = {
  "height": (1, 2**16),
  "width": (1, 2**16),
  "num_steps": (1, 1000),
  "flow_shift": (0.01, 100.0),
  "samples_per_prompt": (1, 10_000),
  "batch_size": (1, 1024),
  "window_seconds": (0.0, 600.0),
  "window_overlap": (1, 2**10),
  "guidance_scale.video": (-100.0, 100.0),
  "guidance_scale.audio": (-100.0, 100.0),
  "slg_layer": (-1, 2**9),
  "voice_guidance_scale": (-100.0, 100.0),
}
# Defaults of the fields that weights do not recommend.
FIXED: Mapping[str, Any] = {
  "variant": "",
  "mode": "auto",
  "height": geometry.DEFAULT_SIZE[0],
  "width": geometry.DEFAULT_SIZE[1],
  "seed": 103,
  "samples_per_prompt": 1,
  "batch_size": 1,
  "window_seconds": 0.0,
  "window_overlap": 7,
  "dtype": config_lib.AUTO,
  "attention": config_lib.AUTO,
  "context_parallelism": context.ULYSSES,
  "mesh": dict.fromkeys(meshes.AXES, 0),
  "attention_heads": "",
  "shard_clips_over_hosts": False,
}
# Fields that say where a clip is made, not what it is, and those that are
# recorded with the given files or windows, which alone they apply to.
_NOT_RECORDED = (
  "conditioning",
  "voice_guidance_scale",
  "window_seconds",
  "window_overlap",
  "batch_size",
  "mesh",
  "context_parallelism",
  "attention_heads",
  "shard_clips_over_hosts",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of sampling, the fields of `configs/sample.py`.

  Attributes:
    variant: require weights of this released variant; empty accepts any.
    mode: "t2v" ignores images, "i2v" requires them, "auto" takes them where
      they are given.
    height: pixels, of the aspect ratio; the area is that of the weights.
    width: likewise. With an image, its aspect ratio is used.
    num_steps: number of denoising steps.
    solver: "unipc", "dpm++" or "euler".
    flow_shift: shift of noise levels towards noise; 1 = no shift.
    seed: seed of the noise; sample n of a prompt has the noise of seed + n.
    samples_per_prompt: clips per prompt.
    window_seconds: longest part of a clip that is denoised at once; 0 for the
      length of the weights.
    window_overlap: latent frames that windows of a longer clip have in common,
      at least.
    guidance_scale: classifier-free guidance scale of each modality.
    slg_layer: block that the negative pass skips (skip-layer guidance); 0 =
      none.
    negative_prompt: negative prompt of each modality.
    conditioning: how given latents are shown to the model, one of
      `conditions.MODES`.
    voice_guidance_scale: guidance scale of the reference voice; 1 = none, with
      two passes of the model in a step instead of three.
    dtype: compute dtype; "auto" is bfloat16 on accelerators, float32 on CPUs.
    attention: attention backend, "auto" or a key of
      `attention.attention.BACKENDS`.
    context_parallelism: attention between tokens that are split over the mesh
      axis `context`: "ulysses", or "ring" where context does not divide the
      heads.
    mesh: devices along each mesh axis; 0 for those that remain, all 0 chooses a
      mesh for one clip.
    attention_heads: heads of the attention maps, BLOCK.HEAD with commas between
      them; empty for the heads with the largest near-diagonal attention.
    shard_clips_over_hosts: shard each clip over the devices of all processes;
      otherwise each process generates its own clips.

  Raises:
    ValueError: lists all invalid fields.
  """

  variant: str
  mode: str
  height: int
  width: int
  num_steps: int
  solver: str
  flow_shift: float
  seed: int
  samples_per_prompt: int
  batch_size: int
  window_seconds: float
  window_overlap: int
  guidance_scale: AV[float]
  slg_layer: int
  negative_prompt: AV[str]
  conditioning: str
  voice_guidance_scale: float
  dtype: str
  attention: str
  context_parallelism: str
  mesh: Mapping[str, int]
  attention_heads: str
  shard_clips_over_hosts: bool

  def __post_init__(self):
    config_lib.check_types(type(self), vars(self), "config")
    problems = [
      problem
      for name, known in (
        ("solver", solvers.SOLVERS),
        ("mode", requests.MODES),
        ("conditioning", conditions.MODES),
        ("dtype", config_lib.DTYPES),
        ("attention", (config_lib.AUTO, *attention.BACKENDS)),
        ("context_parallelism", context.STRATEGIES),
      )
      for problem in config_lib.invalid_choice(name, getattr(self, name), known)
    ]
    problems += out_of_bounds(
      {name: operator.attrgetter(name)(self) for name in BOUNDS}
    )
    last = self.seed + max(1, self.samples_per_prompt) - 1
    if self.seed < 0 or last >= requests.SEEDS:
      problems.append(f"seeds must be in [0, 2^32), got {self.seed} to {last}")
    for name, text in self.negative_prompt._asdict().items():
      if problem := prompts.unreadable(text):
        problems.append(f"negative_prompt.{name}: {problem}")
    if self.mesh.keys() != set(meshes.AXES) or min(self.mesh.values()) < 0:
      problems.append(
        f"mesh must have 0 or more devices for each of"
        f" {', '.join(meshes.AXES)},"
        f" got {dict(self.mesh)}"
      )
    config_lib.check(problems)

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    advised: Mapping[str, Any] | None = None,
  ) -> "Settings":
    """From the flags' config.

    Args:
      config: of `configs/sample.py`; `None` leaves a field of `DEFAULTS` to
        what the weights recommend, or else to what Ovi publishes.
      advised: recommended by the weights, see `recommended`.

    Raises:
      ValueError: a field is missing, unknown or makes no sense.
    """
    fields = config.to_dict()
    for name, value in recommended(advised or {}).items():
      fields[name] = _filled(fields.get(name), value)
    for name in ("guidance_scale", "negative_prompt"):
      fields[name] = AV(**fields[name])
    return config_lib.build(cls, fields)

  @classmethod
  def from_overrides(
    cls,
    overrides: Mapping[str, Any],
    advised: Mapping[str, Any] | None = None,
  ) -> "Settings":
    """The defaults of `configs/sample.py` with some fields changed.

    Args:
      overrides: fields by name; a pair may be one value for both modalities, a
        mapping of some, or an `AV`.
      advised: recommended by the weights, see `recommended`.

    Raises:
      ValueError: a field is unknown or makes no sense.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(overrides.keys() - set(known)):
      said = [f"{n} is unknown{config_lib.nearest(n, known)}" for n in unknown]
      raise ValueError(f"{'; '.join(said)}; known are {', '.join(known)}")
    fields: dict[str, Any] = {
      **dict.fromkeys(DEFAULTS),
      **FIXED,
      **overrides,
    }
    for name, given in fields.items():
      if isinstance(given, ml_collections.ConfigDict):  # no Mapping
        fields[name] = given.to_dict()
    for name in ("guidance_scale", "negative_prompt"):
      given = fields[name]
      if isinstance(given, AV):
        given = given._asdict()
      elif not isinstance(given, Mapping):
        given = dict.fromkeys(AV._fields, given)
      if strange := sorted(map(str, given.keys() - set(AV._fields))):
        raise ValueError(
          f"{name}: {strange[0]!r:.60} is unknown; expected"
          f" {' and '.join(AV._fields)}"
        )
      fields[name] = dict.fromkeys(AV._fields) | dict(given)
    mesh = {} if fields["mesh"] is None else fields["mesh"]
    if not isinstance(mesh, Mapping):
      raise ValueError(
        f"mesh: expected a mapping of {', '.join(meshes.AXES)} to numbers of"
        f" devices, got {type(mesh).__name__}"
      )
    fields["mesh"] = dict.fromkeys(meshes.AXES, 0) | dict(mesh)
    fields = {name: _plain(value) for name, value in fields.items()}
    return cls.from_config(ml_collections.ConfigDict(fields), advised)

  def metadata(self) -> dict[str, Any]:
    """Fields that decide what a clip is, for the JSON beside it."""
    return dict(self._recorded)

  @functools.cached_property
  def _recorded(self) -> dict[str, Any]:
    fields = dataclasses.asdict(self)
    for name in _NOT_RECORDED:
      del fields[name]
    for name in ("guidance_scale", "negative_prompt"):
      fields[name] = getattr(self, name)._asdict()
    return fields


def _plain(value: Any) -> Any:
  """A value with Python's numbers and text in place of NumPy's scalars."""
  if isinstance(value, Mapping):
    return {name: _plain(each) for name, each in value.items()}
  return value.item() if isinstance(value, np.generic) else value


def out_of_bounds(values: Mapping[str, Any]) -> list[str]:
  """What is wrong with numbers, in words, by the names of `BOUNDS`."""
  problems = []
  for name, value in values.items():
    least, largest = BOUNDS[name]
    kinds = (int,) if type(least) is int else (int, float)
    if type(value) not in kinds or not least <= value <= largest:
      problems.append(
        f"{name} must be from {least:g} to {largest:g}, got {value!r:.40}"
      )
  return problems


def recommended(advised: Mapping[str, Any]) -> dict[str, Any]:
  """The values of all fields of `DEFAULTS`, as advised or published.

  Raises:
    ValueError: fields that cannot be advised, or values of another kind.
  """
  result = dict(DEFAULTS)
  for name, value in advised.items():
    if name not in DEFAULTS:
      known = ", ".join(DEFAULTS)
      raise ValueError(
        f"sampling: field {name!r:.60} is unknown; weights may advise {known}"
      )
    result[name] = _alike(f"sampling.{name}", value, DEFAULTS[name])
  return result


def recommended_of(manifest: weights_dir.Manifest) -> dict[str, Any]:
  """`recommended` of weights, without skipping a block that they do not have.

  Raises:
    ValueError: see `recommended`.
  """
  result = recommended(manifest.sampling)
  if result["slg_layer"] >= num_layers(manifest.architecture.fusion):
    result["slg_layer"] = 0
  return result


def num_layers(towers: AV[Any]) -> int:
  """Blocks of the towers; both have as many."""
  return min(tower.num_layers for tower in towers.present().values())


def _alike(name: str, value: Any, example: Any) -> Any:
  """A value of the kind of an example."""
  if isinstance(example, Mapping):
    if not isinstance(value, Mapping) or value.keys() != example.keys():
      keys = ", ".join(example)
      raise ValueError(f"{name}: expected values of {keys}, got {value!r:.60}")
    return {
      key: _alike(f"{name}.{key}", value[key], example[key]) for key in example
    }
  kinds = (int, float) if isinstance(example, float) else (type(example),)
  if not isinstance(value, kinds) or isinstance(value, bool):
    raise ValueError(
      f"{name}: expected a {type(example).__name__}, got {value!r:.60}"
    )
  return type(example)(value)


def _filled(value: Any, default: Any) -> Any:
  """A value, with the default where it, or a part of it, is `None`."""
  if isinstance(default, Mapping) and isinstance(value, Mapping):
    return {
      key: _filled(part, default[key]) if key in default else part
      for key, part in value.items()
    }
  return default if value is None else value
