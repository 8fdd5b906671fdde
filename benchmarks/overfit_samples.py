"""Samples of a trained run: its averaged weights, the project's own sampler."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ovi_jax.checkpoint import init_from
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import fusion
from ovi_jax.sampling import denoise
from ovi_jax.sampling import guidance
from ovi_jax.sampling import pipeline
from ovi_jax.sampling import solver
from ovi_jax.training import settings as settings_lib
from ovi_jax.training import stage
from ovi_jax.training import trainable

STEPS, SHIFT, GUIDANCE, SOLVER = 30, 3.0, 1.0, "unipc"
SEED = 990_001  # training's noise comes from keys folded from 0


def about() -> str:
  """The sampler in words."""
  return f"{SOLVER}, {STEPS} steps, shift {SHIFT}, guidance {GUIDANCE}"


def trained(settings: settings_lib.Settings, run: Any) -> dict[str, Any]:
  """Averaged weights of a run's newest checkpoint, as a later stage has them."""
  source = init_from.Source(path=str(run / stage.CHECKPOINTS), take=(".*",))
  shapes = stage.parameter_shapes(settings)
  return _loaded(settings, init_from.plan(shapes, [source]))


def before(settings: settings_lib.Settings) -> dict[str, Any]:
  """The weights that a run begins with: its towers, not yet joined."""
  return _loaded(settings, stage.initial_plan(settings))


def _loaded(
  settings: settings_lib.Settings, plan: init_from.Plan
) -> dict[str, Any]:
  """All parameters of a plan, nested, on one device."""

  def fresh(key: jax.Array) -> Any:
    return architecture.init("fusion", settings.model, key)

  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return trainable.nested(init_from.load(plan, fresh, settings.seed, one))


def sample(
  settings: settings_lib.Settings,
  params: dict[str, Any],
  texts: Sequence[np.ndarray],
  empty: np.ndarray,
  lengths: Sequence[int],
  steps: int = STEPS,
) -> list[AV[np.ndarray]]:
  """One sample for each caption.

  Args:
    settings: of the stage.
    params: of its model.
    texts: text_SE of each caption.
    empty: text_SE of the empty prompt.
    lengths: audio latents of each.
    steps: of the solver.

  Returns:
    Latents of each, video_THWC and audio_TC.
  """
  model = stage.trainer_of(settings).model
  found: dict[int, AV[np.ndarray]] = {}
  for audio in sorted(set(lengths)):
    places = [i for i, n in enumerate(lengths) if n == audio]
    latents = _batch(
      settings, model, params, [texts[i] for i in places], empty, audio, steps
    )
    for row, place in enumerate(places):
      found[place] = jax.tree.map(lambda x, row=row: np.asarray(x[row]), latents)
  return [found[i] for i in range(len(texts))]


def _batch(
  settings: settings_lib.Settings,
  model: fusion.FusionDiT,
  params: dict[str, Any],
  texts: Sequence[np.ndarray],
  empty: np.ndarray,
  audio: int,
  steps: int,
) -> AV[jax.Array]:
  """Samples of captions whose sounds are equally long."""
  method = solver.named(SOLVER)
  bucket = settings.data.buckets[0]
  shapes = AV(
    video=bucket.video and (*bucket.video, settings.data.geometry.video_channels),
    audio=(audio, settings.data.geometry.audio_channels),
  )
  kinds = settings.model.present()
  draw = np.random.default_rng([SEED, audio])
  noise = AV(
    **{
      kind: jnp.asarray(
        draw.standard_normal((len(texts), *getattr(shapes, kind))), jnp.float32
      )
      for kind in kinds
    }
  )
  rows = next(iter(kinds.values())).text_length
  padded = [
    np.pad(t, ((0, rows - len(t)), (0, 0))) for t in [*texts, *[empty] * len(texts)]
  ]
  text = AV(**{kind: jnp.asarray(np.stack(padded)) for kind in kinds})
  depth = next(iter(kinds.values())).blocks
  inputs = denoise.Inputs(
    pipeline.conditions(model, params, guidance.both(noise), text),
    jnp.asarray(guidance.kept_blocks(depth, len(texts), 0)),
    AV(video=GUIDANCE, audio=GUIDANCE),
  )
  levels = method.schedule(steps, SHIFT)
  return denoise.denoise(model, method, params, inputs, noise, levels)
