"""Clips that are continued: a stage trained with given latents.

  python train.py --config=configs/conditions/extend.py:BASE --workdir=DIR

BASE is the config of a stage with both towers, such as `fusion`, `small` or
`fine_tune:WEIGHTS`; without it, `fusion`. The probabilities are ours and have
not been tried at full size.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  conditions = {
    "video.first_frame_prob": 0.1,
    "video.prefix_prob": 0.6,
    "audio.prefix_prob": 0.5,
    "prefix_seconds": (0.1, 2.0),
  }
  return default_config.with_conditions(arg, conditions)
