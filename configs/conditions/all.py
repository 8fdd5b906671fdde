"""All conditions that sampling has: a stage trained with given latents.

  python train.py --config=configs/conditions/all.py:BASE --workdir=DIR

BASE is the config of a stage with both towers, such as `fusion`, `small` or
`fine_tune:WEIGHTS`; without it, `fusion`. The probabilities are ours and have
not been tried at full size.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  conditions = {
    "video.first_frame_prob": 0.2,
    "video.last_frame_prob": 0.1,
    "video.prefix_prob": 0.2,
    "video.whole_prob": 0.2,
    "video.span_prob": 0.1,
    "audio.prefix_prob": 0.15,
    "audio.whole_prob": 0.2,
    "audio.span_prob": 0.1,
    "audio.reference_prob": 0.3,
  }
  return default_config.with_conditions(arg, conditions)
