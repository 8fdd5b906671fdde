"""Samples of a trained run: its averaged weights, the project's own sampler."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.training import init_from
from ovi_jax.training import param_filter
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import task as tasks
from ovi_jax.training import trainer
from ovi_jax.training.evaluators import eval_samples

STEPS, SHIFT, GUIDANCE, SOLVER = 30, 5.0, 1.0, "unipc"
SEED = 990_001  # training's noise comes of another key altogether


def about() -> str:
  """The sampler in words."""
  return f"{SOLVER}, {STEPS} steps, shift {SHIFT}, guidance {GUIDANCE}"


def trained(settings: settings_lib.Settings, run: Any) -> dict[str, Any]:
  """Averaged weights of a run, as a later stage reads them."""
  source = init_from.Source(
    path=str(run / trainer.CHECKPOINTS), include=(".*",)
  )
  shapes = tasks.make(settings).parameter_shapes()
  return _loaded(settings, init_from.plan(shapes, [source]))


def before(settings: settings_lib.Settings) -> dict[str, Any]:
  """The weights that a run begins with: its towers, not yet joined."""
  return _loaded(settings, tasks.make(settings).init_plan())


def _loaded(
  settings: settings_lib.Settings, plan: init_from.Plan
) -> dict[str, Any]:
  """All parameters of a plan, nested, on one device."""

  def fresh(key: jax.Array) -> Any:
    return architecture.init("fusion", settings.model, key)

  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return param_filter.nested(init_from.load(plan, fresh, settings.seed, one))


def deaf(params: dict[str, Any]) -> dict[str, Any]:
  """The same weights, but what a tower hears of the other is nothing."""
  return param_filter.nested(
    {
      path: jnp.zeros_like(x) if "/fusion_value/" in path else x
      for path, x in param_filter.flat(params).items()
    }
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """Which samples.

  Attributes:
    texts: text_SE of each caption.
    empty: text_SE of the empty prompt.
    lengths: audio latents of each.
    steps: of the solver.
  """

  texts: Sequence[np.ndarray]
  empty: np.ndarray
  lengths: Sequence[int]
  steps: int


def sample(
  settings: settings_lib.Settings, params: dict[str, Any], asked: Asked
) -> list[AV[np.ndarray]]:
  """One sample for each caption: latents video_THWC and audio_TC."""
  model = tasks.make(settings).step_config.objective.model
  found: dict[int, AV[np.ndarray]] = {}
  for length in sorted(set(asked.lengths)):
    places = [i for i, n in enumerate(asked.lengths) if n == length]
    how = eval_samples.EvalSamplesConfig(
      num_samples=len(places),
      num_steps=asked.steps,
      solver=SOLVER,
      flow_shift=SHIFT,
      guidance_scale=AV(GUIDANCE, GUIDANCE),
      seed=SEED,
    )
    latents = eval_samples.denoise(
      model,
      params,
      [asked.texts[i] for i in places],
      asked.empty,
      dataclasses.replace(settings.data.buckets[0], audio=length),
      how,
    )
    for row, place in enumerate(places):
      found[place] = AV(
        **{n: np.asarray(x[row]) for n, x in latents.present().items()}
      )
  return [found[i] for i in range(len(asked.texts))]
