"""The vocoder, small, for the sounds of one world or dataset.

  python train.py --config=configs/codec_vocoder.py:mini --workdir=DIR

`:mini` takes about 0.35 s of a core a step of 4 sounds of half a second, and
turns 5 s of mels into sound in 0.2 s. Without it, the sizes of MMAudio's
BigVGAN, which was trained with adversaries too; here there is none. Terms and
their weights are ours.
"""

import ml_collections

from configs import base

FULL = {
  "upsample_initial_channel": 1536,
  "upsample_rates": (4, 4, 2, 2, 2, 2),
  "upsample_kernel_sizes": (8, 8, 4, 4, 4, 4),
  "resblock_kernel_sizes": (3, 7, 11),
  "resblock_dilation_sizes": ((1, 3, 5),) * 3,
}
MINI = {
  "upsample_initial_channel": 96,
  "upsample_rates": (8, 8, 4),
  "upsample_kernel_sizes": (16, 16, 8),
  "resblock_kernel_sizes": (3, 7),
  "resblock_dilation_sizes": ((1, 3), (1, 3)),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.codec(
    mini,
    "vocoder",
    {"mel_bins": 80, **(MINI if mini else FULL)},
    {
      "convergence_scale": 3.0,
      "magnitude_scale": 1.0,
      "mel_scale": 2.0,
      "noise": 0.1,
    },
  )
  config.data.samples = 8192 if mini else 32 * 512
  config.optimizer.learning_rate = 4e-3 if mini else 1e-4
  config.optimizer.kind = "muon" if mini else "adamw"
  config.optimizer.weight_decay = 0.0
  return config
