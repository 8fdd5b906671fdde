"""The audio VAE.

  python train.py --config=configs/codec_audio.py:mini --workdir=DIR

`:mini` is a small VAE for the sounds of one world or dataset; a step of 4
sounds of 2 s takes less than 0.1 s of one core. Without `:mini`, sizes are
MMAudio's, whose training is not published. Loss terms and weights are ours.
For sounds other than the synthetic world's, first measure the mel statistics:
`python -m scripts.measure_mel --source=DIR`.
"""

import ml_collections

from ovi_jax.training import default_config

# Mel statistics of `world:0`, log10 magnitudes.
# fmt: off
MEL_MEAN = (
  -4.3044, -4.0890, -4.0480, -4.0968, -4.0958, -4.0759, -4.1020, -4.2217,
  -4.3501, -4.4100, -4.3994, -4.3557, -4.3444, -4.4077, -4.3707, -4.2355,
  -4.2522, -4.3219, -4.4155, -4.3932, -4.3111, -4.2904, -4.3260, -4.3360,
  -4.3474, -4.2272, -4.2451, -4.2853, -4.4182, -4.4838, -4.5252, -4.4648,
  -4.4824, -4.5915, -4.6105, -4.6210, -4.6324, -4.6311, -4.6213, -4.6016,
  -4.5393, -4.4609, -4.4409, -4.5427, -4.5969, -4.5850, -4.4759, -4.3965,
  -4.4591, -4.5245, -4.5554, -4.6219, -4.6237, -4.5161, -4.5335, -4.6775,
  -4.7092, -4.7153, -4.6799, -4.5120, -4.5195, -4.7542, -4.8613, -4.8645,
  -4.7658, -4.8067, -4.9079, -4.9170, -4.9166, -4.8097, -4.7345, -4.8577,
  -4.9164, -4.9182, -4.9195, -4.9205, -4.9214, -4.9220, -4.9225, -4.9228,
)
MEL_STD = (
  1.2751, 1.6000, 1.6116, 1.4780, 1.4637, 1.5483, 1.4960, 1.3904,
  1.2614, 1.2217, 1.2652, 1.3394, 1.3380, 1.2014, 1.2435, 1.4568,
  1.4609, 1.3483, 1.2186, 1.2501, 1.4251, 1.4303, 1.2968, 1.2425,
  1.2285, 1.4361, 1.4662, 1.3394, 1.1531, 1.1058, 1.0955, 1.2493,
  1.2465, 1.0264, 0.9788, 0.9440, 0.9081, 0.8952, 0.8994, 0.9131,
  1.0229, 1.2332, 1.2192, 0.9877, 0.8927, 0.9068, 1.1168, 1.3317,
  1.1698, 1.0871, 1.0872, 0.9685, 0.9299, 1.1292, 1.1059, 0.8443,
  0.8221, 0.8091, 0.7980, 1.1113, 1.0783, 0.7064, 0.4945, 0.4868,
  0.7920, 0.6531, 0.4155, 0.3916, 0.3937, 0.6045, 0.8367, 0.4958,
  0.4066, 0.3978, 0.3915, 0.3867, 0.3829, 0.3799, 0.3779, 0.3766,
)
# fmt: on
FULL = {
  "data_dim": 80,
  "embed_dim": 20,
  "hidden_dim": 384,
  "channel_multipliers": (1, 2, 4),
  "res_blocks": 2,
  "down_layers": (0,),
  "mel_mean": MEL_MEAN,
  "mel_std": MEL_STD,
}
MINI = {
  "model.hidden_dim": 64,
  "model.channel_multipliers": (1, 2, 2),
  "model.res_blocks": 1,
  "data.num_audio_samples": 64 * 512,
  "optimizer.learning_rate": 2.5e-3,
  "optimizer.name": "muon",
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.codec(
    "audio_vae", FULL, {"silence_weight": 0.5, "kl_weight": 1e-3}
  )
  config.data.num_audio_samples = 157 * 512
  config.optimizer.learning_rate = 3e-4
  config.optimizer.weight_decay = 0.0  # outputs do not depend on filter norms
  if default_config.is_mini(arg):
    config.update_from_flattened_dict(default_config.MINI_CODEC | MINI)
  return config
