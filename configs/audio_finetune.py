"""Stage 2: the audio tower on clips of 5.04 s, speech and sound effects.

  python train.py --config=configs/audio_finetune.py --workdir=DIR
    --config.initial.audio=STAGE_1 --config.data.sources="('DIR',)"

The paper gives no numbers for it; learning rate, batch and steps are ours.
"""

import ml_collections

from configs import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.training(mini, video=False, audio=True)
  config.batch = 8 if mini else 1536
  config.steps = 200 if mini else 20_000
  config.optimizer.learning_rate = 3e-3 if mini else 5e-5
  return config
