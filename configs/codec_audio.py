"""The audio VAE, small, for the sounds of one world or dataset.

  python train.py --config=configs/codec_audio.py:mini --workdir=DIR

`:mini` takes less than 0.1 s of a core a step of 4 sounds of 2 s. Without it,
MMAudio's sizes; how those were trained is not known. Terms and their weights
are ours. For other sounds than the world's, measure the mels anew:
`python -m ovi_jax.training.codecs.measure_mel --source=DIR`.
"""

import ml_collections

from configs import base

MULTIPLIERS = {"full": (1, 2, 4), "mini": (1, 2, 2)}
# Of `world:0`, log10 magnitudes.
# fmt: off
MEL_MEAN = (
  -4.2810, -4.0600, -4.0210, -4.0708, -4.0653, -4.0490, -4.1089, -4.2286,
  -4.3473, -4.3698, -4.3680, -4.3248, -4.3183, -4.3883, -4.3501, -4.2853,
  -4.2742, -4.3056, -4.3495, -4.3525, -4.2803, -4.2658, -4.3046, -4.3390,
  -4.3504, -4.2100, -4.1927, -4.2435, -4.3855, -4.4533, -4.4952, -4.5175,
  -4.5017, -4.4868, -4.5125, -4.5614, -4.5877, -4.5966, -4.5923, -4.5823,
  -4.5311, -4.4608, -4.4724, -4.5372, -4.5476, -4.5580, -4.4633, -4.3919,
  -4.4615, -4.5674, -4.5757, -4.5616, -4.5679, -4.5049, -4.5312, -4.6712,
  -4.7029, -4.7101, -4.6786, -4.5186, -4.5623, -4.7479, -4.8038, -4.8446,
  -4.7677, -4.8101, -4.9082, -4.9176, -4.9173, -4.8110, -4.7360, -4.8589,
  -4.9172, -4.9189, -4.9202, -4.9213, -4.9221, -4.9227, -4.9232, -4.9235,
)
MEL_DEVIATION = (
  1.2895, 1.6160, 1.6241, 1.4860, 1.4717, 1.5535, 1.4772, 1.3611,
  1.2611, 1.2723, 1.2856, 1.3538, 1.3434, 1.1998, 1.2396, 1.3579,
  1.4218, 1.4087, 1.3040, 1.2775, 1.4283, 1.4251, 1.2908, 1.2111,
  1.1786, 1.4351, 1.5008, 1.3530, 1.1556, 1.1023, 1.0871, 1.0859,
  1.1637, 1.2434, 1.1647, 1.0186, 0.9492, 0.9182, 0.9146, 0.9190,
  1.0170, 1.2119, 1.1435, 0.9924, 0.9805, 0.9312, 1.1211, 1.3318,
  1.1660, 0.9991, 1.0153, 1.0923, 1.0262, 1.1314, 1.1049, 0.8535,
  0.8318, 0.8190, 0.8049, 1.1073, 0.9959, 0.7209, 0.6753, 0.5120,
  0.7835, 0.6470, 0.4133, 0.3895, 0.3915, 0.6013, 0.8330, 0.4927,
  0.4039, 0.3952, 0.3890, 0.3841, 0.3804, 0.3774, 0.3754, 0.3740,
)
# fmt: on


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.codec(
    mini,
    "audio_vae",
    {
      "data_dim": 80,
      "embed_dim": 20,
      "hidden_dim": 64 if mini else 384,
      "channel_multipliers": MULTIPLIERS["mini" if mini else "full"],
      "res_blocks": 1 if mini else 2,
      "down_layers": (0,),
      "mel_mean": MEL_MEAN,
      "mel_deviation": MEL_DEVIATION,
    },
    {"silence": 0.5, "kl": 1e-3},
  )
  config.data.samples = (64 if mini else 157) * 512
  # Filters have norm 1: twice this, and the run falls back to silence.
  config.optimizer.learning_rate = 1.2e-3 if mini else 3e-4
  config.optimizer.weight_decay = 0.0  # filters' norms mean nothing
  return config
