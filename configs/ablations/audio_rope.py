"""Scaled and unscaled rotary positions of the audio tower.

  python -m scripts.small_ovi.ablation --ablation=ablations/audio_rope
    --root=DIR

Ovi scales them by the ratio of the towers' token rates, 31/157, so that
simultaneous tokens have the same angle (paper, section 3.2). An ablation is
one such file; its variants change fields of the stages' configs.
"""

from typing import Any

import ml_collections

from ovi_jax.training import default_config


def get_config() -> ml_collections.ConfigDict:
  config: Any = ml_collections.ConfigDict()
  config.name = "audio_rope"
  config.seeds = (0, 1, 2)
  config.num_train_clips = 2000  # of the world, to train on
  config.world_seed = 0
  # Steps of each stage; the last one is scored.
  config.stages = {"video_pretrain": 500, "audio_finetune": 400, "fusion": 1200}
  # Where towers come from: "scratch", or a stage above.
  config.init_from = {
    "video_pretrain": {"video": "scratch"},
    "audio_finetune": {"audio": "scratch"},
    "fusion": {"video": "video_pretrain", "audio": "audio_finetune"},
  }
  # FIELD=VALUE of all stages and variants: towers smaller than the shipped.
  config.overrides = (
    "batch_size=8",
    "optimizer.ema_decay=0.99",
    "objective.timesteps.shared_prob=0.0",  # so that each tower needs the other
    "model.video.hidden_dim=128",
    "model.video.num_heads=4",
    "model.video.mlp_dim=384",
    "model.video.num_layers=4",
    "model.audio.hidden_dim=96",
    "model.audio.num_heads=3",
    "model.audio.mlp_dim=256",
    "model.audio.num_layers=4",
  )
  config.variants = {
    "scaled": (f"model.audio.rope_scale={default_config.AUDIO_ROPE}",),
    "unscaled": ("model.audio.rope_scale=1.0",),
  }
  config.num_eval_prompts = 32
  config.eval_prompts_seed = 3000
  return config
