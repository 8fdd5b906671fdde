"""Pretraining of a video tower, for models of other sizes than the released.

  python train.py --config=configs/video_pretrain.py --workdir=DIR
    --config.data.sources="('DIR',)"

Ovi itself starts from Wan2.2-TI2V-5B; all hyper-parameters here are ours.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.training(video=True, audio=False)
  config.init_from.video = "scratch"
  config.batch_size = 512
  config.objective.conditions.video.first_frame_prob = 0.2
  if default_config.is_mini(arg):
    default_config.apply_mini(config)
  return config
