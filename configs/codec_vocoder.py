"""The vocoder.

  python train.py --config=configs/codec_vocoder.py:mini --workdir=DIR

`:mini` is a small vocoder for the sounds of one world or dataset. A step of 4
sounds of half a second takes about 0.35 s of one core, and decoding 5 s of mels
takes 0.2 s. Without `:mini`, sizes are those of MMAudio's BigVGAN. BigVGAN was
also trained with discriminators; this objective has none. Loss terms and
weights are ours.
"""

import ml_collections

from ovi_jax.training import default_config

FULL = {
  "mel_bins": 80,
  "upsample_initial_channel": 1536,
  "upsample_rates": (4, 4, 2, 2, 2, 2),
  "upsample_kernel_sizes": (8, 8, 4, 4, 4, 4),
  "resblock_kernel_sizes": (3, 7, 11),
  "resblock_dilation_sizes": ((1, 3, 5),) * 3,
}
MINI = {
  "model.upsample_initial_channel": 96,
  "model.upsample_rates": (8, 8, 4),
  "model.upsample_kernel_sizes": (16, 16, 8),
  "model.resblock_kernel_sizes": (3, 7),
  "model.resblock_dilation_sizes": ((1, 3), (1, 3)),
  "data.num_audio_samples": 8192,
  "optimizer.learning_rate": 4e-3,
  "optimizer.name": "muon",
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.codec(
    "vocoder",
    FULL,
    {
      "convergence_weight": 3.0,
      "magnitude_weight": 1.0,
      "mel_weight": 2.0,
      "noise_std": 0.1,
    },
  )
  config.data.num_audio_samples = 32 * 512
  config.optimizer.weight_decay = 0.0
  if default_config.is_mini(arg):
    config.update_from_flattened_dict(default_config.MINI_CODEC | MINI)
  return config
