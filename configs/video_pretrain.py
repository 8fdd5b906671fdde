"""A video tower alone, for models of other sizes than the released one.

  python train.py --config=configs/video_pretrain.py --workdir=DIR
    --config.data.sources="('DIR',)"

Ovi starts from Wan2.2-TI2V-5B instead; all numbers are ours.
"""

import ml_collections

from configs import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.training(mini, video=True, audio=False)
  config.initial.video = "fresh"
  config.batch = 8 if mini else 512
  config.objective.first_frame = 0.2
  return config
