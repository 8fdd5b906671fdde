"""What the stages' configs share; not a stage itself.

Sizes are the released model's, or `mini` ones that train on one core. Fields
are explained in `ovi_jax/training/settings.py` and the classes it names.
"""

import ml_collections

MINI = "mini"
FULL_TOWER = {
  "width": 3072,
  "blocks": 30,
  "heads": 24,
  "feed_forward": 14336,
  "text_width": 4096,
  "text_length": 512,
}
MINI_TOWER = {
  "blocks": 4,
  "feed_forward": 256,
  "text_width": 48,
  "text_length": 32,
}
# A token of the video has 2·2·48 numbers, with noise in all of them: a narrower
# tower could not let them through. Heads of both towers are of one size.
MINI_WIDTHS = {
  "video": {"width": 224, "heads": 7},
  "audio": {"width": 96, "heads": 3},
}
AUDIO_ROPE = 0.19676  # ratio of the towers' token rates, as released
CLIP = (31, 44, 46)  # latents of 121 frames of 704 by 736 pixels
MINI_CLIP = (31, 4, 4)
CLIP_AUDIO = 157  # latents of 5.04 s


def size(arg: str) -> bool:
  """Whether the part of `--config=FILE:ARG` asks for the mini size.

  Raises:
    ValueError: it asks for something else.
  """
  if arg not in ("", MINI):
    raise ValueError(f"config size {arg!r} is unknown; give :mini or nothing")
  return arg == MINI


def towers(mini: bool, video: bool, audio: bool) -> dict:
  """Sizes of the towers of a stage."""
  shared = MINI_TOWER if mini else FULL_TOWER
  widths = MINI_WIDTHS if mini else {"video": {}, "audio": {}}
  return {
    "video": {
      **shared,
      **widths["video"],
      "channels": 48,
      "patch": (1, 2, 2),
    }
    if video
    else None,
    "audio": {
      **shared,
      **widths["audio"],
      "channels": 20,
      "patch": (1,),
      "rope_scale": AUDIO_ROPE,
    }
    if audio
    else None,
  }


def optimizer(mini: bool) -> dict:
  """How parameters are moved."""
  return {
    "learning_rate": 3e-3 if mini else 1e-4,
    "kind": "adamw",
    "schedule": "cosine" if mini else "constant",
    "warmup_steps": 10 if mini else 1000,  # ours
    "final_share": 0.0,
    "beta1": 0.9,
    "momentum": 0.95,  # of Muon
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,  # ours
    "clip_norm": 1.0,  # ours
    "average_decay": 0.99 if mini else 0.9999,  # ours
    "average_on_host": False,
  }


def codec(
  mini: bool, component: str, model: dict, task: dict
) -> ml_collections.ConfigDict:
  """Fields of a codec's run, explained in `ovi_jax/training/codecs`.

  Args:
    mini: for one core.
    component: a key of `codecs/table.py`.
    model: its sizes.
    task: weights of its terms.
  """
  return ml_collections.ConfigDict(
    {
      "component": component,
      "model": model,
      "initial": "",
      "trains": "all",
      "task": task,
      "data": {
        "sources": ("world:0",),
        "split": "train",
        "frames": 0,
        "samples": 0,
        "tokenizer": "",
        "text_rows": 64,
        "workers": 0 if mini else 8,
        "prefetch": 2,
      },
      "optimizer": optimizer(mini),
      "steps": 200 if mini else 100_000,
      "batch": 4 if mini else 64,
      "parts": 1,
      "seed": 0,
      "dtype": "auto",
      "mesh": {"data": 1, "fsdp": 0, "context": 1, "tensor": 1},
      "cadence": {"log": 10, "save": 200 if mini else 1000},
      "profile_steps": (0, 0),
      "keep": {"last": 2, "every": 0},
    },
    convert_dict=True,
  )


def training(mini: bool, video: bool, audio: bool) -> ml_collections.ConfigDict:
  """Fields with the values that most stages have."""
  return ml_collections.ConfigDict(
    {
      "model": towers(mini, video, audio),
      "initial": {
        "video": "" if video else None,
        "audio": "" if audio else None,
      },
      "trains": "all",
      "objective": {
        "scales": {"video": float(video), "audio": float(audio)},
        "times": {
          "distribution": "uniform",  # the paper's
          "mean": 0.0,
          "deviation": 1.0,
          "shift": 1.0,
          "shared": 1.0,
        },
        "prompt_dropout": {"video": 0.1, "audio": 0.1},  # ours
        "first_frame": 0.0,
      },
      "optimizer": optimizer(mini),
      "data": {
        "sources": ("",),
        "weights": (),
        "video": (MINI_CLIP if mini else CLIP,),
        "audio": (CLIP_AUDIO,),
        "caption": "random",
        "crop": "random",
        "drop_unfit": False,
        "scale_batch": False,
        "multiple": 0,
        "media": False,  # straight from mp4 and PCM, or cached latents
        "text": "embeddings",  # cached, or "captions"
        "workers": 0 if mini else 8,
        "prefetch": 2,
        # What tokenizer and codecs may lose of the data; 1.0, 0 and 0 for any.
        "max_unknown_words": 0.2,  # share
        "min_codec_psnr": 20.0,  # dB
        "max_codec_mel_error": 8.0,  # dB
      },
      "components": "",
      "held_out": {"split": "test", "batch": 0, "levels": 4},
      "samples": {
        "count": 4,
        "steps": 20 if mini else 50,
        "solver": "unipc",
        "shift": 5.0,
        "guidance": {"video": 4.0, "audio": 3.0},
        "seed": 0,
      },
      "steps": 200 if mini else 50_000,
      "batch": 8,
      "parts": 1,
      "seed": 0,
      "dtype": "auto",
      "frozen_dtype": "auto",
      "attention": "auto",
      "context_attention": "all_to_all",  # or ring: context divides no heads
      "remat": "none" if mini else "full",
      "mesh": {"data": 1, "fsdp": 0, "context": 1, "tensor": 1},
      "cadence": {
        "log": 10,
        "save": 50 if mini else 1000,
        "held_out": 0,  # needs a split that is held out
        "samples": 0,  # needs that and components
      },
      "profile_steps": (0, 0),
      "keep": {"last": 2, "every": 0 if mini else 10_000},
    },
    convert_dict=True,
  )
