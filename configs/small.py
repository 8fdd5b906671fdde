"""Fine-tune the small Ovi that comes with the package, on your own clips.

  python train.py --config=configs/small.py --workdir=DIR
    --config.data.sources="('DATASET',)"

Towers, text encoder and codecs start from `ovi_jax/synthetic/weights`; sizes and
buckets are theirs. Runs on a CPU. What the small model can learn, and what it
cannot: docs/fine_tuning.md.
"""

import ml_collections

from configs import base
from ovi_jax import synthetic

TOWER = {"blocks": 6, "text_width": 64, "text_length": 48}
WIDTHS = {
  "video": {"width": 192, "heads": 6, "feed_forward": 512, "channels": 16},
  "audio": {"width": 128, "heads": 4, "feed_forward": 384, "channels": 20},
}


def get_config() -> ml_collections.ConfigDict:
  config = base.training(True, video=True, audio=True)
  weights = str(synthetic.WEIGHTS)
  for name, tower in config.model.items():
    tower.update(TOWER | WIDTHS[name])
    config.initial[name] = weights
  config.components = weights
  config.steps = 500
  config.batch = 8
  # Muon and the noise levels of the stage that made the weights, at a hundredth
  # of its learning rate (docs/fine_tuning.md has what other rates do).
  config.optimizer.kind = "muon"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.warmup_steps = 20
  config.objective.scales.video = 0.85
  config.objective.scales.audio = 0.15
  config.objective.times.shift = 3.0
  config.objective.times.shared = 0.5
  config.objective.first_frame = 0.2
  config.data.drop_unfit = True
  config.samples.shift = 3.0
  config.samples.guidance.video = 1.5
  config.samples.guidance.audio = 1.5
  config.cadence.save = 100
  return config
