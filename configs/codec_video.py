"""The video autoencoder, small, for clips of one world or dataset.

  python train.py --config=configs/codec_video.py:mini --workdir=DIR

Crops are short and many: clips that differ teach more than frames that follow
each other. Without `:mini`, Wan2.2's sizes; how those were trained is not
known. Terms and their weights are ours.
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
  "dim": 16,
  "dec_dim": 24,
  "z_dim": 16,
  "latent_mean": (0.0,) * 16,  # until `assemble` measures them
  "latent_std": (1.0,) * 16,
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
    {"pixels": 1.0, "moving": 0.1, "kl": 1e-5, "smooth": 1.0},
  )
  config.data.frames = 9 if mini else 17
  config.batch = 8 if mini else 64
  config.optimizer.weight_decay = 0.0
  config.optimizer.average_decay = 0.995 if mini else 0.9999
  if mini:
    config.optimizer.kind = "muon"
    config.optimizer.learning_rate = 1e-2
  return config
