"""The video autoencoder, small, for clips of one world or dataset.

  python train.py --config=configs/codec_video.py:mini --workdir=DIR

Of one core, `:mini` takes about a second a step of 4 crops of 17 frames of 64
by 64 pixels. Without it, Wan2.2's sizes; how those were trained is not known.
Terms and their weights are ours.
"""

import ml_collections

from configs import base

FULL = {
  "dim": 160,
  "dec_dim": 256,
  "z_dim": 48,
  "dim_mult": (1, 2, 4, 4),
  "temporal_downsample": (False, True, True),
  "num_res_blocks": 2,
  "patch": 2,
}
# The same strides from larger patches and one stage less: convolutions of few
# channels over many pixels are slow on a CPU.
MINI = {
  "dim": 24,
  "dec_dim": 32,
  "z_dim": 48,
  "dim_mult": (1, 2, 2),
  "temporal_downsample": (True, True),
  "num_res_blocks": 1,
  "patch": 4,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.codec(
    mini,
    "video_vae",
    MINI if mini else FULL,
    {"pixels": 1.0, "moving": 0.5, "kl": 5e-4, "smooth": 0.05},
  )
  config.data.frames = 17
  config.optimizer.learning_rate = 2e-3 if mini else 1e-4
  config.optimizer.weight_decay = 0.0
  return config
