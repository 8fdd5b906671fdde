"""A training step on the stand-in's weights, and a random batch."""

import functools

import numpy as np

from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.models import fusion
from ovi_jax.training import conditions
from ovi_jax.training import optimizer
from ovi_jax.training import param_filter
from ovi_jax.training import step
from ovi_jax.training.objectives import flow_matching
from tests.lib import standin_models

CONFIG = standin_models.fusion_config()
NULL = np.random.default_rng(9).standard_normal((1, 48), np.float32)
SETTINGS = optimizer.OptimizerConfig(learning_rate=1e-3, ema_decay=0.9)
FIRST_FRAMES = conditions.ConditionsConfig(
  video=conditions.ConditionProbs(first_frame_prob=0.3)
)
OBJECTIVE = flow_matching.ObjectiveConfig(conditions=FIRST_FRAMES)


def batch(size: int = 8) -> schema.Batch:
  random = np.random.default_rng(0)
  lengths = AV(np.full(size, 2), np.arange(size) % 4 + 6)
  lengths.video[1] = lengths.audio[2] = 0
  text = random.standard_normal((size, 5, 48), np.float32)
  return schema.Batch(
    latents=AV(
      random.standard_normal((size, 2, 4, 6, 48), np.float32),
      random.standard_normal((size, 9, 20), np.float32),
    ),
    lengths=AV(*(x.astype(np.int32) for x in lengths)),
    text=AV(text, text),
    ids=np.arange(size),
  )


@functools.cache
def step_config(
  parts: int = 1, trainable: str = param_filter.ATTENTION, **changes
):
  model = fusion.FusionDiT(CONFIG)
  flow = flow_matching.FlowMatching(model, OBJECTIVE)
  made = step.TrainStepConfig(flow, SETTINGS, 100, parts)
  made = made._replace(**changes)
  params = param_filter.flat(standin_models.fusion_params())
  return made, step.init_state(
    made, *param_filter.split(params, trainable), seed=1
  )
