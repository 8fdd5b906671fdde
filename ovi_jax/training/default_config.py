"""Defaults shared by the training configs in `configs/`.

`training` and `codec` have the released sizes; `apply_mini` overrides them with
sizes that train on one core. Fields are explained in
`ovi_jax/training/settings.py` and the classes that it names. A `ConfigDict` has
no static types for its fields, so configs are returned as `Any`.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from ovi_jax import config_files

MINI = "mini"
AUDIO_ROPE = 0.19676  # ratio of the towers' token rates, as released
TOWER = {
  "hidden_dim": 3072,
  "num_layers": 30,
  "num_heads": 24,
  "mlp_dim": 14336,
  "text_dim": 4096,
  "max_text_len": 512,
}
VIDEO = {"channels": 48, "patch": (1, 2, 2)}
AUDIO = {"channels": 20, "patch": (1,), "rope_scale": AUDIO_ROPE}
CLIP = (31, 44, 46)  # latents of 121 frames of 704 by 736 pixels
CLIP_AUDIO = 157  # latents of 5.04 s

# Overrides of `:mini`, by dotted path. A video token has 2·2·48 numbers, each
# with noise; a narrower tower could not represent them. Both towers have heads
# of the same size.
MINI_TOWERS = {
  "video": {"hidden_dim": 224, "num_heads": 7},
  "audio": {"hidden_dim": 96, "num_heads": 3},
}
MINI_TOWER = {
  "num_layers": 4,
  "mlp_dim": 256,
  "text_dim": 48,
  "max_text_len": 32,
}
MINI_OPTIMIZER = {
  "optimizer.learning_rate": 3e-3,
  "optimizer.schedule": "cosine",
  "optimizer.warmup_steps": 10,
  "optimizer.ema_decay": 0.99,
}
MINI_TRAINING = MINI_OPTIMIZER | {
  "data.video_buckets": ((31, 4, 4),),
  "data.num_workers": 0,
  "eval_samples.num_steps": 20,
  "num_train_steps": 200,
  "batch_size": 8,
  "remat": "none",
  "checkpoint_every": 50,
  "keep_period": 0,
}
MINI_CODEC = MINI_OPTIMIZER | {
  "data.num_workers": 0,
  "num_train_steps": 200,
  "batch_size": 4,
  "checkpoint_every": 200,
}
CONDITIONS = (
  "first_frame_prob",
  "last_frame_prob",
  "prefix_prob",
  "whole_prob",
  "span_prob",
  "reference_prob",
)
OPTIMIZER = {
  "name": "adamw",
  "learning_rate": 1e-4,
  "schedule": "constant",
  "warmup_steps": 1000,  # ours
  "end_lr_factor": 0.0,
  "beta1": 0.9,
  "muon_beta": 0.95,
  "beta2": 0.999,
  "eps": 1e-8,
  "weight_decay": 0.01,  # ours
  "grad_clip_norm": 1.0,  # ours
  "ema_decay": 0.9999,  # ours
  "ema_on_host": False,
}
MESH = {"data": 1, "fsdp": 0, "context": 1, "tensor": 1}


def is_mini(arg: str) -> bool:
  """Whether the argument in `--config=FILE:ARG` is `mini`.

  Raises:
    ValueError: it is something else.
  """
  if arg not in ("", MINI):
    raise ValueError(f"config size {arg!r} is unknown; use :mini or nothing")
  return arg == MINI


def apply_mini(config: Any) -> None:
  """Override a stage's config with sizes that train on one core."""
  for name, tower in config.model.items():
    if tower is not None:
      tower.update(MINI_TOWER | MINI_TOWERS[name])
  config.update_from_flattened_dict(MINI_TRAINING)


def codec(
  component: str, model: Mapping[str, Any], objective: Mapping[str, Any]
) -> Any:
  """The config of a codec's run, see `training.settings.CodecSettings`.

  Args:
    component: a key of `training.settings.CODECS`.
    model: sizes of the component.
    objective: weights of its loss terms, and its other settings.
  """
  return ml_collections.ConfigDict(
    {
      "component": component,
      "model": model,
      "init_from": "",
      "trainable": "all",
      "objective": objective,
      "data": {
        "sources": ("world:0",),
        "split": "train",
        "num_frames": 0,
        "num_audio_samples": 0,
        "tokenizer": "",
        "max_text_len": 64,
        "num_workers": 8,
        "prefetch_batches": 2,
        "exclude_records": "",
        "max_damaged_records": 0,
      },
      "optimizer": OPTIMIZER,
      "num_train_steps": 100_000,
      "batch_size": 64,
      "grad_accum_steps": 1,
      "seed": 0,
      "dtype": "auto",
      "mesh": MESH,
      "log_every": 10,
      "checkpoint_every": 1000,
      "checkpoint_every_minutes": 0.0,  # in addition; 0 = never
      "preemption_grace_seconds": 0.0,  # exit so long after SIGTERM; 0 = wait
      "profile_steps": (0, 0),
      "sdc_check_every": 0,
      "skip_bad_steps": 0,
      "skip_loss_spikes": 0.0,
      "step_timeout_seconds": 3600.0,
      "max_to_keep": 2,
      "keep_period": 0,
    },
    convert_dict=True,
  )


def with_conditions(base: str, conditions: Mapping[str, Any]) -> Any:
  """The config of a stage, trained with given latents.

  Half of the examples have independent timesteps for the two modalities, so
  that a clean modality is not the only one at another noise level.

  Args:
    base: of a config of both towers, see `config_files.load`; empty for
      `fusion`.
    conditions: fields of `objective.conditions`, by dotted path; the others are
      set to 0.
  """
  config: Any = config_files.load(base or "fusion")
  for name in ("video", "audio"):
    config.objective.conditions[name].update(dict.fromkeys(CONDITIONS, 0.0))
  config.objective.conditions.update_from_flattened_dict(conditions)
  config.objective.timesteps.shared_prob = 0.5
  return config


def training(video: bool, audio: bool) -> Any:
  """The config of a stage, with values that most stages share."""
  return ml_collections.ConfigDict(
    {
      "model": {
        "video": TOWER | VIDEO if video else None,
        "audio": TOWER | AUDIO if audio else None,
      },
      "init_from": {
        "video": "" if video else None,
        "audio": "" if audio else None,
      },
      "trainable": "all",  # or "attention", or "lora"
      "lora": {"targets": "fusion", "rank": 32, "alpha": 32.0, "dropout": 0.0},
      "objective": {
        "loss_weights": {"video": float(video), "audio": float(audio)},
        "timesteps": {
          "distribution": "uniform",  # the paper's
          "mean": 0.0,
          "std": 1.0,
          "shift": 1.0,
          "shared_prob": 1.0,
        },
        # Fraction of examples with the empty prompt, for each tower; ours.
        "cfg_dropout": {"video": 0.1, "audio": 0.1},
        # Fraction of examples of which latents are given, by kind.
        "conditions": {
          "video": dict.fromkeys(CONDITIONS, 0.0),
          "audio": dict.fromkeys(CONDITIONS, 0.0),
          "prefix_seconds": (0.1, 2.0),
          "reference_seconds": (1.0, 3.0),
        },
      },
      "optimizer": OPTIMIZER,
      "data": {
        "sources": ("",),
        # Sampling weights of the sources; empty: their numbers of records.
        "mixture_weights": (),
        # Latent T, H, W of batches; a record goes to the smallest that fits.
        "video_buckets": (CLIP,),
        # Audio latents of batches, combined with each video bucket.
        "audio_buckets": (CLIP_AUDIO,),
        "caption_sampling": "random",
        "crop": "random",
        "skip_unfit": False,
        "token_balanced_batches": False,
        "batch_multiple": 0,
        "encode_on_the_fly": False,  # from mp4 and PCM; False: cached latents
        # Cached "embeddings", or "captions", which are embedded on the fly.
        "text_source": "embeddings",
        "num_workers": 8,
        "prefetch_batches": 2,
        "exclude_records": "",
        "max_damaged_records": 0,
        # Limits of the losses of tokenizer and codecs on the data; 1.0, 0 and
        # 0 disable the checks.
        "max_unknown_words": 0.2,  # fraction
        "min_codec_psnr": 20.0,  # dB
        "max_codec_mel_error": 8.0,  # dB
      },
      "pretrained": "",
      "eval": {"split": "test", "batch_size": 0, "num_timestep_bins": 4},
      "eval_samples": {
        "num_samples": 4,
        "num_steps": 50,
        "solver": "unipc",
        "flow_shift": 5.0,
        "guidance_scale": {"video": 4.0, "audio": 3.0},
        "seed": 0,
        "protocols": (),  # such as ("basic",)
      },
      "num_train_steps": 50_000,
      "batch_size": 8,
      "grad_accum_steps": 1,
      "seed": 0,
      "dtype": "auto",
      "frozen_param_dtype": "auto",
      "attention": "auto",
      "context_parallelism": "ulysses",  # or ring
      "remat": "auto",
      "mesh": MESH,
      "log_every": 10,
      "checkpoint_every": 1000,
      "checkpoint_every_minutes": 0.0,  # in addition; 0 = never
      "preemption_grace_seconds": 0.0,  # exit so long after SIGTERM; 0 = wait
      "eval_every": 0,  # needs a held-out split
      "sample_every": 0,  # needs a held-out split and `pretrained`
      "profile_steps": (0, 0),
      "sdc_check_every": 0,
      "skip_bad_steps": 0,
      "skip_loss_spikes": 0.0,
      "step_timeout_seconds": 3600.0,
      "max_to_keep": 2,
      "keep_period": 10_000,
    },
    convert_dict=True,
  )
