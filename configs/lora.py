"""Train a LoRA of converted weights of any size.

  python train.py --config=configs/lora.py:WEIGHTS[:DEVICES] --workdir=DIR
    --config.data.sources="('DATASET',)"

WEIGHTS is as for `fine_tune.py`, and sizes, buckets, text encoder and codecs
are taken from it in the same way. The weights are frozen; the factors of all
attention kernels, those between the towers included, are trained. Rank, alpha,
learning rate and number of steps are LTX-2's and have not been tried at full
size.

DEVICES is a key of `DEVICES`: settings with which a step of `720x720_5s` fits.
docs/how_to/lora.md has the memory that they need; `--aot` reports it for TPUs.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from ovi_jax import config as config_lib
from ovi_jax import config_files
from ovi_jax import storage

_NAME = re.compile(r"[\w.+-]+")  # of devices, and no part of a path or URL
# A clip at a time; gradients of eight are summed.
_ONE_GPU = {"batch_size": 8, "grad_accum_steps": 8}
# Devices -> config fields.
DEVICES: Mapping[str, Mapping[str, Any]] = {
  # One GPU, by its memory; the first needs weights of 8 bits.
  "24gb": _ONE_GPU | {"remat": "full"},
  "48gb": _ONE_GPU | {"remat": "full"},
  "80gb": _ONE_GPU | {"remat": "attention"},
  "141gb": _ONE_GPU | {"remat": "attention+projections+mlp"},
  # TPU slices, by their names in Google Cloud: 8, 8 and 4 chips.
  "v5e-8": {"batch_size": 8, "mesh.fsdp": 8},
  "v6e-8": {"batch_size": 8, "mesh.fsdp": 8},
  "v5p-8": {"batch_size": 8, "grad_accum_steps": 2, "mesh.fsdp": 4},
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if not arg:
    raise ValueError(
      "lora needs the weights to adapt: --config=lora:WEIGHTS, a directory that"
      " ovi-convert (convert_torch_weights.py) or ovi_jax.training.export wrote"
    )
  weights, _, devices = arg.rpartition(":")
  if devices not in DEVICES:
    if weights and _NAME.fullmatch(devices) and not os.path.exists(arg):
      near = config_lib.nearest(devices.lower(), DEVICES)
      # A name in an object store may have a colon.
      if near or not storage.is_remote(weights):
        raise ValueError(
          f"devices {devices!r} are unknown{near}; choose from"
          f" {', '.join(DEVICES)}"
        )
    weights, devices = arg, ""
  config: Any = config_files.load(f"fine_tune:{weights}")
  config.trainable = "lora"
  config.batch_size = 8
  config.optimizer.learning_rate = 1e-4
  if devices:
    config.update_from_flattened_dict(DEVICES[devices])
  return config
