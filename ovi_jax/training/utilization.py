"""Model-FLOPs utilization: arithmetic that training needs, over the peak.

Counts what the geometry asks for (`ovi_jax.flops`), not what was executed: work
done twice to save memory does not count. Peaks are those of `chips`.
"""

from typing import Any

import numpy as np

from ovi_jax import chips
from ovi_jax import flops
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training import task


def cost(
  towers: AV[Any], attention_only: bool, batch: schema.Batch
) -> task.Cost:
  """What a step of the denoiser on a batch of latents is.

  Args:
    towers: sizes of each tower, `None` for an absent one.
    attention_only: whether only the attention stage's parameters are trained.
    batch: of all rows.
  """
  latents = batch.latents.present()
  tokens = AV(
    **{
      name: int(np.prod(towers._asdict()[name].grid(x.shape)))
      for name, x in latents.items()
    }
  )
  clips = next(iter(latents.values())).shape[0]
  operations = flops.forward(towers, tokens).training(attention_only)
  return task.Cost(sum(tokens.present().values()) * clips, operations * clips)


def share(
  operations: float, seconds: float, device_kind: str, devices: int
) -> float | None:
  """Share of the peak that a step reached.

  Args:
    operations: of the whole step, all devices together.
    seconds: it took.
    device_kind: as `jax.Device.device_kind` says.
    devices: how many.

  Returns:
    In [0, 1] if all is well; `None` for a kind whose peak is not known.
  """
  chip = chips.CHIPS.get(device_kind)
  if chip is None:
    return None
  return operations / seconds / (chip.tflops * 1e12 * devices)
