"""Whether the audio tower's rotary positions keep the video's time.

  python -m ovi_jax.synthetic.ablation --ablation=configs/ablations/audio_rope.py
    --root=DIR

Ovi scales them by the ratio of the towers' rates, 31/157, so that tokens of
one moment stand at one angle (paper, section 3.2). An ablation is one such
file: variants are changes of fields of the stages' configs.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.name = "audio_rope"
  config.seeds = (0, 1, 2)
  config.clips = 2000  # of the world, to train on
  config.world_seed = 0
  # Steps of each stage; the last one is scored.
  config.stages = {"video_pretrain": 500, "audio_finetune": 400, "fusion": 1200}
  # Where towers come from: "fresh", or a stage above.
  config.initial = {
    "video_pretrain": {"video": "fresh"},
    "audio_finetune": {"audio": "fresh"},
    "fusion": {"video": "video_pretrain", "audio": "audio_finetune"},
  }
  # FIELD=VALUE of all stages and variants: towers smaller than the shipped.
  config.fields = (
    "batch=8",
    "optimizer.average_decay=0.99",
    "objective.times.shared=0.0",  # so that each tower needs the other
    "model.video.width=128",
    "model.video.heads=4",
    "model.video.feed_forward=384",
    "model.video.blocks=4",
    "model.audio.width=96",
    "model.audio.heads=3",
    "model.audio.feed_forward=256",
    "model.audio.blocks=4",
  )
  config.variants = {
    "scaled": (f"model.audio.rope_scale={base.AUDIO_ROPE}",),
    "unscaled": ("model.audio.rope_scale=1.0",),
  }
  config.prompts = 32
  config.prompts_seed = 3000
  return config
