"""The video VAE.

  python train.py --config=configs/codec_video.py:mini --workdir=DIR

`:mini` is a small VAE for the clips of one world or dataset. Crops are short
and many, because different clips are more informative than consecutive frames.
Without `:mini`, sizes are Wan2.2's, whose training is not published. Loss terms
and weights are ours.
"""

import ml_collections

from ovi_jax.training import default_config

FULL = {
  "dim": 160,
  "dec_dim": 256,
  "z_dim": 48,
  "dim_mult": (1, 2, 4, 4),
  "temporal_downsample": (False, True, True),
  "num_res_blocks": 2,
  "patch": 2,
}
# The same strides with larger patches and one stage less, because convolutions
# with few channels over many pixels are slow on a CPU.
MINI_MODEL = {
  "dim": 16,
  "dec_dim": 24,
  "z_dim": 16,
  "latent_mean": (0.0,) * 16,  # replaced by measured ones in `assemble`
  "latent_std": (1.0,) * 16,
  "dim_mult": (1, 2, 2),
  "temporal_downsample": (True, True),
  "num_res_blocks": 1,
  "patch": 4,
}
MINI = {
  "data.num_frames": 9,
  "batch_size": 8,
  "optimizer.ema_decay": 0.995,
  "optimizer.name": "muon",
  "optimizer.learning_rate": 1e-2,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = default_config.is_mini(arg)
  config = default_config.codec(
    "video_vae",
    MINI_MODEL if mini else FULL,
    {
      "recon_weight": 1.0,
      "motion_weight": 0.1,
      "kl_weight": 1e-5,
      "smoothness_weight": 1.0,
    },
  )
  config.data.num_frames = 17
  config.optimizer.weight_decay = 0.0
  if mini:
    config.update_from_flattened_dict(default_config.MINI_CODEC | MINI)
  return config
