"""Stage 3: both towers, attending to each other, on clips with their sound.

  python train.py --config=configs/fusion.py --workdir=DIR
    --config.initial.video=WAN --config.initial.audio=STAGE_2
    --config.data.sources="('DIR',)"

The paper: from Wan2.2-TI2V-5B and stage 2, 40k steps of 768 clips of 121
frames at 720 by 720, learning rate 5e-5, betas 0.9 and 0.95; self-attention,
cross-attention and the text embedding are trained, 5.7 B of 11.7 B parameters.
"""

import ml_collections

from configs import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.training(mini, video=True, audio=True)
  config.trains = "attention"
  config.objective.scales.video = 0.85
  config.objective.scales.audio = 0.15
  config.objective.first_frame = 0.2  # ours
  config.batch = 8 if mini else 768
  config.steps = 200 if mini else 40_000
  config.optimizer.learning_rate = 3e-3 if mini else 5e-5
  config.optimizer.beta2 = 0.95
  return config
