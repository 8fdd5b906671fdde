"""What a run of `sample.py` is told, checked before anything is loaded."""

import dataclasses
import math
from typing import Any

import ml_collections

from ovi_jax.modality import AV
from ovi_jax.models import attention
from ovi_jax.sampling import requests
from ovi_jax.sampling import solver

DTYPES = ("auto", "bfloat16", "float32")


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

  def __post_init__(self):
    problems = [
      *self._unknown("solver", solver.SOLVERS),
      *self._unknown("mode", requests.MODES),
      *self._unknown("dtype", DTYPES),
      *self._unknown("attention", ("auto", *attention.BACKENDS)),
    ]
    for name in ("height", "width", "steps", "each_example_n_times"):
      if getattr(self, name) < 1:
        problems.append(f"{name} must be positive, got {getattr(self, name)}")
    if not 0 < self.shift < math.inf:
      problems.append(f"shift must be positive, got {self.shift}")
    last = self.seed + max(1, self.each_example_n_times) - 1
    if self.seed < 0 or last >= 2**32:
      problems.append(f"seeds must be in [0, 2^32), got {self.seed} to {last}")
    for name, scale in self.guidance._asdict().items():
      if not math.isfinite(scale):
        problems.append(f"guidance.{name} must be a number, got {scale}")
    if problems:
      raise ValueError("config: " + "; ".join(problems))

  def _unknown(self, field: str, known: Any) -> list[str]:
    value = getattr(self, field)
    if value in known:
      return []
    return [f"{field} {value!r} is unknown; choose from {', '.join(known)}"]

  @classmethod
  def from_config(cls, config: ml_collections.ConfigDict) -> "Settings":
    """From the flags' config; an unknown field is a ValueError."""
    fields = config.to_dict()
    known = {field.name for field in dataclasses.fields(cls)}
    wrong = fields.keys() ^ known
    if wrong:
      raise ValueError(f"config fields missing or unknown: {sorted(wrong)}")
    for name in ("guidance", "negative_prompt"):
      fields[name] = AV(**fields[name])
    return cls(**fields)

  def recipe(self) -> dict[str, Any]:
    """The fields as plain values, for the JSON beside a sample."""
    fields = dataclasses.asdict(self)
    for name in ("guidance", "negative_prompt"):
      fields[name] = getattr(self, name)._asdict()
    return fields
