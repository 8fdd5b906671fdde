"""Train a LoRA of converted weights of any size.

  python train.py --config=configs/lora.py:WEIGHTS --workdir=DIR
    --config.data.sources="('DATASET',)"

WEIGHTS is as for `fine_tune.py`, and sizes, buckets, text encoder and codecs
are taken from it in the same way. The weights are frozen; factors of all
attention, that between the towers included, are trained. Rank, alpha, learning
rate and number of steps are LTX-2's and have not been tried at full size.
"""

from typing import Any

import ml_collections

from ovi_jax import config_files


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if not arg:
    raise ValueError(
      "lora needs the weights to adapt: --config=lora:WEIGHTS, a directory that"
      " ovi-convert (convert_torch_weights.py) or ovi_jax.training.export wrote"
    )
  config: Any = config_files.load(f"fine_tune:{arg}")
  config.trainable = "lora"
  config.batch_size = 8
  config.optimizer.learning_rate = 1e-4
  return config
