"""Sampling: text to video with sound; frames, video or sound may be given.

  python sample.py --weights=DIR --prompt="…" --config.seed=7

A field without a value here takes the one recommended by the weights' manifest,
or else Ovi's published default (in the comment beside it). Released weights
take up to 22 GiB of device memory in bfloat16, plus activations; the weights
that come with the package also run on a CPU. docs/how_to/sample.md explains
each field.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from ovi_jax import geometry
from ovi_jax.sharding import mesh


def get_config() -> ml_collections.ConfigDict:
  config: Any = ml_collections.ConfigDict()
  # If given, the weights must be of this variant.
  config.variant = ""
  config.mode = "auto"  # auto, t2v (ignore images), i2v (require them)
  # Height and width give the aspect ratio; the area is the variant's.
  config.height, config.width = geometry.DEFAULT_SIZE
  config.num_steps = placeholder(int)  # 50
  config.solver = placeholder(str)  # "unipc"; or dpm++, euler
  config.flow_shift = placeholder(float)  # 5.0
  config.seed = 103
  config.samples_per_prompt = 1
  # Maximum number of clips of the same size that are denoised together. More
  # clips use an accelerator better, but multiply activation memory.
  config.batch_size = 1
  # Longest part of a clip that is denoised at once; 0: the training length of
  # the weights. Longer clips are sampled in overlapping windows.
  config.window_seconds = 0.0
  # Latent frames of the previous window that condition a window; 7 are 1 s.
  config.window_overlap = 7
  # 4.0 for video, 3.0 for audio.
  config.guidance_scale = ml_collections.ConfigDict()
  config.guidance_scale.video = placeholder(float)
  config.guidance_scale.audio = placeholder(float)
  # Block that the negative pass skips; 0 for none.
  config.slg_layer = placeholder(int)  # 11
  config.negative_prompt = ml_collections.ConfigDict()
  config.negative_prompt.video = placeholder(str)
  config.negative_prompt.audio = placeholder(str)
  # Noise level of conditioning latents: "clean" (t = 0), or "renoise" (that of
  # the step), for weights that were not trained with conditioning latents.
  config.conditioning = placeholder(str)  # "renoise"
  # Of a reference voice; 1 is without a third pass of the model in a step.
  config.voice_guidance_scale = placeholder(float)  # 1.0
  config.dtype = "auto"  # bfloat16 on accelerators, float32 on a CPU
  config.attention = "auto"  # see ovi_jax/attention/attention.py
  # Devices along each axis; 0 for the remaining ones. All 0: data=2 for the
  # two guidance passes, then context up to the number of heads, then fsdp.
  config.mesh = ml_collections.ConfigDict(dict.fromkeys(mesh.AXES, 0))
  config.context_parallelism = "ulysses"  # or ring
  # BLOCK.HEAD,… of the audio tower, for --attention_maps; "": the sharpest.
  config.attention_heads = ""
  # Shard each clip over the devices of all processes; False: each process
  # makes its own clips.
  config.shard_clips_over_hosts = False
  return config
