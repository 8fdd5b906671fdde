"""What a run of `sample.py` is told, checked before anything is loaded."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from ovi_jax import fields as fields_lib
from ovi_jax.attention import attention
from ovi_jax.attention import context
from ovi_jax.checkpoint import directory
from ovi_jax.modality import AV
from ovi_jax.parallel import mesh as meshes
from ovi_jax.sampling import requests
from ovi_jax.sampling import solver

DTYPES = ("auto", "bfloat16", "float32")
# What Ovi publishes for its weights. A directory of other weights may advise
# other values of these fields (`sampling` of its manifest).
PUBLISHED: Mapping[str, Any] = {
  "steps": 50,
  "solver": "unipc",
  "shift": 5.0,
  "guidance": {"video": 4.0, "audio": 3.0},
  "skip_layer": 11,
  "negative_prompt": {
    "video": "jitter, bad hands, blur, distortion",
    "audio": "robotic, muffled, echo, distorted",
  },
}


# Least and largest value of each number. The solvers' coefficients are finite
# within them. The model knows 1000 noise levels; the rest is generous.
BOUNDS: Mapping[str, tuple[float, float]] = {
  "height": (1, 2**16),
  "width": (1, 2**16),
  "steps": (1, 1000),
  "shift": (0.01, 100.0),
  "each_example_n_times": (1, 10_000),
  "guidance.video": (-100.0, 100.0),
  "guidance.audio": (-100.0, 100.0),
  "skip_layer": (-1, 2**9),
}
_PAIRED = {"guidance.video", "guidance.audio"}
# Fields that say where a clip is made, not what it is.
_ELSEWHERE = ("mesh", "context_attention", "attention_heads", "together")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The fields of `configs/sample.py`, which says what each means.

  Raises:
    ValueError: lists every field that does not make sense.
  """

  variant: str
  mode: str
  height: int
  width: int
  steps: int
  solver: str
  shift: float
  seed: int
  each_example_n_times: int
  guidance: AV[float]
  skip_layer: int
  negative_prompt: AV[str]
  dtype: str
  attention: str
  context_attention: str
  mesh: Mapping[str, int]
  attention_heads: str
  together: bool

  def __post_init__(self):
    fields_lib.check(type(self), vars(self), "config")
    problems = [
      *self._unknown("solver", solver.SOLVERS),
      *self._unknown("mode", requests.MODES),
      *self._unknown("dtype", DTYPES),
      *self._unknown("attention", ("auto", *attention.BACKENDS)),
      *self._unknown("context_attention", context.SCHEMES),
    ]
    values = {name: getattr(self, name) for name in BOUNDS.keys() - _PAIRED}
    values |= {f"guidance.{n}": v for n, v in self.guidance._asdict().items()}
    problems += out_of_bounds(values)
    last = self.seed + max(1, self.each_example_n_times) - 1
    if self.seed < 0 or last >= requests.SEEDS:
      problems.append(f"seeds must be in [0, 2^32), got {self.seed} to {last}")
    for name, text in self.negative_prompt._asdict().items():
      if problem := requests.unreadable(text):
        problems.append(f"negative_prompt.{name}: {problem}")
    if self.mesh.keys() != set(meshes.AXES) or min(self.mesh.values()) < 0:
      problems.append(
        f"mesh must give 0 or more devices to each of {', '.join(meshes.AXES)},"
        f" got {dict(self.mesh)}"
      )
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  def _unknown(self, field: str, known: Any) -> list[str]:
    value = getattr(self, field)
    if value in known:
      return []
    return [f"{field} {value!r} is unknown; choose from {', '.join(known)}"]

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    advised: Mapping[str, Any] | None = None,
  ) -> "Settings":
    """From the flags' config.

    Args:
      config: of `configs/sample.py`; `None` leaves a field of `PUBLISHED` to
        what is advised, or else to what is published.
      advised: by the weights, see `advice`.

    Raises:
      ValueError: a field is missing, unknown or makes no sense.
    """
    fields = config.to_dict()
    known = {field.name for field in dataclasses.fields(cls)}
    wrong = fields.keys() ^ known
    if wrong:
      raise ValueError(f"config fields missing or unknown: {sorted(wrong)}")
    for name, value in advice(advised or {}).items():
      fields[name] = _filled(fields[name], value)
    for name in ("guidance", "negative_prompt"):
      fields[name] = AV(**fields[name])
    return cls(**fields)

  def recipe(self) -> dict[str, Any]:
    """Fields that decide what a clip is, for the JSON beside it."""
    fields = dataclasses.asdict(self)
    for name in _ELSEWHERE:
      del fields[name]
    for name in ("guidance", "negative_prompt"):
      fields[name] = getattr(self, name)._asdict()
    return fields


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


def advice(advised: Mapping[str, Any]) -> dict[str, Any]:
  """The values of all fields of `PUBLISHED`, as advised or published.

  Raises:
    ValueError: fields that cannot be advised, or values of another kind.
  """
  result = dict(PUBLISHED)
  for name, value in advised.items():
    if name not in PUBLISHED:
      known = ", ".join(PUBLISHED)
      raise ValueError(
        f"sampling: field {name!r:.60} is unknown; weights may advise {known}"
      )
    result[name] = _alike(f"sampling.{name}", value, PUBLISHED[name])
  return result


def advice_of(manifest: directory.Manifest) -> dict[str, Any]:
  """`advice` of weights, without skipping a block that they do not have.

  Raises:
    ValueError: see `advice`.
  """
  result = advice(manifest.sampling)
  if result["skip_layer"] >= num_blocks(manifest.architecture.fusion):
    result["skip_layer"] = 0
  return result


def num_blocks(towers: AV[Any]) -> int:
  """Blocks of the towers; both have as many."""
  return min(tower.blocks for tower in towers.present().values())


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
