"""Stage 2: the audio tower on clips of 5.04 s, speech and sound effects.

  python train.py --config=configs/audio_finetune.py --workdir=DIR
    --config.init_from.audio=STAGE_1 --config.data.sources="('DIR',)"

The paper gives no hyper-parameters for this stage; learning rate, batch size
and number of steps are ours.
"""

import ml_collections

from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.training(video=False, audio=True)
  config.batch_size = 1536
  config.num_train_steps = 20_000
  config.optimizer.learning_rate = 5e-5
  if default_config.is_mini(arg):
    default_config.apply_mini(config)
  return config
