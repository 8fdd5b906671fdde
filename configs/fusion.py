"""Stage 3: both towers with cross-attention between them, on clips with sound.

  python train.py --config=configs/fusion.py --workdir=DIR
    --config.init_from.video=WAN --config.init_from.audio=STAGE_2
    --config.data.sources="('DIR',)"

The paper: from Wan2.2-TI2V-5B and stage 2; 40k steps at batch size 768, clips
of 121 frames at 720 by 720, learning rate 5e-5, betas 0.9 and 0.95.
Self-attention and cross-attention (with their norms) and the text projection of
each tower are trained, 5.7 B of 11.7 B parameters.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.training(video=True, audio=True)
  config.trainable = "attention"
  config.objective.loss_weights.video = 0.85
  config.objective.loss_weights.audio = 0.15
  config.objective.conditions.video.first_frame_prob = 0.2  # ours
  config.batch_size = 768
  config.num_train_steps = 40_000
  config.optimizer.learning_rate = 5e-5
  config.optimizer.beta2 = 0.95
  if default_config.is_mini(arg):
    default_config.apply_mini(config)
  return config
