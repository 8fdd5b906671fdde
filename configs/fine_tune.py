"""Fine-tune converted weights of any size, or the result of an earlier run.

  python train.py --config=configs/fine_tune.py:WEIGHTS --workdir=DIR
    --config.data.sources="('DATASET',)"

WEIGHTS is a directory written by `convert_torch_weights.py` or
`ovi_jax.training.export`, or, for `--aot` without weights, the name of a
released variant. The sizes of the towers, the buckets, the text encoder and the
codecs are taken from it. As in the paper's last stage, attention and the text
projections are trained. Learning rate, batch size and number of steps are ours
and have not been tried at full size. The small model has its own settings in
`configs/small.py`.
"""

import dataclasses
import math
import os
import pathlib

import ml_collections

from ovi_jax import geometry
from ovi_jax.pretrained import weights_dir
from ovi_jax.training import default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  if not arg:
    raise ValueError(
      "fine_tune needs the weights to start from: --config=fine_tune:WEIGHTS, a"
      " directory that ovi-convert (convert_torch_weights.py) or"
      " ovi_jax.training.export wrote"
    )
  is_variant = arg in geometry.VARIANTS and not os.path.exists(arg)
  read = weights_dir.released if is_variant else weights_dir.manifest_of
  manifest = read(arg)
  towers = manifest.architecture.fusion
  config = default_config.training(
    video=towers.video is not None, audio=towers.audio is not None
  )
  weights = "" if is_variant else str(pathlib.Path(arg).absolute())
  for name, tower in towers.present().items():
    config.model[name].update(dataclasses.asdict(tower))
    config.init_from[name] = weights
  config.pretrained = weights
  clip = manifest.architecture.clip or _square(manifest.geometry)
  size = clip.latent_frames, clip.latent_height, clip.latent_width
  config.data.video_buckets, config.data.audio_buckets = (
    (size,),
    (clip.audio_latents,),
  )
  if len(towers.present()) == 2:
    config.trainable = "attention"
    config.objective.loss_weights.video = 0.85
    config.objective.loss_weights.audio = 0.15
    config.objective.conditions.video.first_frame_prob = 0.2
  config.num_train_steps = 2000
  config.batch_size = 16
  config.optimizer.learning_rate = 1e-5
  config.optimizer.warmup_steps = 100
  config.optimizer.beta2 = 0.95
  config.optimizer.ema_decay = 0.999
  config.checkpoint_every = 250
  advised = manifest.sampling
  for name in ("num_steps", "solver", "flow_shift"):
    config.eval_samples[name] = advised.get(name, config.eval_samples[name])
  config.eval_samples.guidance_scale.update(advised.get("guidance_scale", {}))
  return config


def _square(variant: geometry.Variant) -> geometry.Clip:
  """The largest square clip of a released variant's area."""
  multiple = geometry.PIXEL_MULTIPLE
  side = math.isqrt(variant.area) // multiple * multiple
  return variant.clip(side, side)
