"""Fine-tune the small Ovi that comes with the package on your own clips.

  python train.py --config=configs/small.py --workdir=DIR
    --config.data.sources="('DATASET',)"

Towers, text encoder and codecs start from `ovi_jax/synthetic/weights`; sizes
and buckets match them. Runs on a CPU. docs/how_to/fine_tune.md says what the
small model can and cannot learn.
"""

import ml_collections

from ovi_jax import synthetic
from ovi_jax.training import default_config

TOWER = {"num_layers": 6, "text_dim": 64, "max_text_len": 48}
WIDTHS = {
  "video": {"hidden_dim": 192, "num_heads": 6, "mlp_dim": 512, "channels": 16},
  "audio": {"hidden_dim": 128, "num_heads": 4, "mlp_dim": 384, "channels": 20},
}


def get_config() -> ml_collections.ConfigDict:
  config = default_config.training(video=True, audio=True)
  default_config.apply_mini(config)
  weights = str(synthetic.WEIGHTS)
  for name, tower in config.model.items():
    tower.update(TOWER | WIDTHS[name])
    config.init_from[name] = weights
  config.pretrained = weights
  config.num_train_steps = 500
  config.batch_size = 8
  # Muon and the noise levels of the stage that trained the weights, with a
  # hundredth of its learning rate; docs/lab_notebook.md compares rates.
  config.optimizer.name = "muon"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 20
  config.objective.loss_weights.video = 0.85
  config.objective.loss_weights.audio = 0.15
  config.objective.timesteps.shift = 3.0
  config.objective.timesteps.shared_prob = 0.5
  config.objective.conditions.video.first_frame_prob = 0.2
  config.data.skip_unfit = True
  config.eval_samples.flow_shift = 3.0
  config.eval_samples.guidance_scale.video = 1.5
  config.eval_samples.guidance_scale.audio = 1.5
  config.checkpoint_every = 100
  return config
