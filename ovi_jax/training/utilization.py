"""Model-FLOPs utilization: arithmetic that training needs, over the peak.

Counts what the geometry asks for (`ovi_jax.flops`), not what was executed: work
done twice to save memory does not count. Peaks are dense bfloat16 figures of
the makers' data sheets; on a device kind that is not listed nothing is said.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ovi_jax import flops
from ovi_jax.data import schema
from ovi_jax.modality import AV
from ovi_jax.training import task

# TFLOP/s of one device, by JAX's `device_kind`.
PEAKS: Mapping[str, float] = {
  "TPU v4": 275,
  "TPU v5 lite": 197,
  "TPU v5e": 197,
  "TPU v5": 459,
  "TPU v5p": 459,
  "TPU v6 lite": 918,
  "TPU v6e": 918,
  "NVIDIA A100-SXM4-40GB": 312,
  "NVIDIA A100-SXM4-80GB": 312,
  "NVIDIA A100 80GB PCIe": 312,
  "NVIDIA H100 80GB HBM3": 989.4,
  "NVIDIA H100 PCIe": 756,
  "NVIDIA H200": 989.4,
}


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
  peak = PEAKS.get(device_kind)
  if peak is None:
    return None
  return operations / seconds / (peak * 1e12 * devices)
