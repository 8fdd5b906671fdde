"""Stage 1: the audio tower alone, on speech of up to 12 s, from scratch.

  python train.py --config=configs/audio_pretrain.py --workdir=DIR
    --config.data.sources="('DIR',)"

The paper: 50k steps at batch size 2,880, learning rate 1e-4, betas 0.9 and
0.999, hundreds of thousands of hours of sound. The hardware was not published.
`:mini` takes a minute on two cores.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.training(video=False, audio=True)
  config.init_from.audio = "scratch"
  config.batch_size = 2880
  # Latents of 3, 6, 9 and 12 s at 31.25 a second.
  config.data.audio_buckets = (93, 187, 281, 375)
  if default_config.is_mini(arg):
    default_config.apply_mini(config)
  return config
