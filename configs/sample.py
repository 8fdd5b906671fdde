"""Sampling: text to video with sound, or a first frame to video with sound.

  python sample.py --weights=DIR --prompt="…" --config.seed=7

A field without a value here takes the one that the weights' manifest
recommends, or else the one Ovi publishes (on the right).
Any machine: released weights need about 40 GB of accelerator memory in
bfloat16, those that come with the package need none. See
docs/how_to/sample.md for what each field does.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from ovi_jax import geometry
from ovi_jax.sharding import mesh


def get_config() -> ml_collections.ConfigDict:
  config: Any = ml_collections.ConfigDict()
  # Weights name their own variant; one given here is required of them.
  config.variant = ""
  config.mode = "auto"  # auto, t2v (ignore images), i2v (require them)
  # The aspect, as height and width; the area is always the variant's.
  config.height, config.width = geometry.DEFAULT_SIZE
  config.num_steps = placeholder(int)  # 50
  config.solver = placeholder(str)  # "unipc"; or dpm++, euler
  config.flow_shift = placeholder(float)  # 5.0
  config.seed = 103
  config.samples_per_prompt = 1
  # Clips of the same size that are denoised together, at most. More use an
  # accelerator better, and its memory for activations that many times.
  config.batch_size = 1
  config.guidance_scale = ml_collections.ConfigDict()
  config.guidance_scale.video = placeholder(float)  # 4.0
  config.guidance_scale.audio = placeholder(float)  # 3.0
  # Left out of the negative pass; 0 leaves out none.
  config.slg_layer = placeholder(int)  # 11
  config.negative_prompt = ml_collections.ConfigDict()
  config.negative_prompt.video = placeholder(str)
  config.negative_prompt.audio = placeholder(str)
  config.dtype = "auto"  # bfloat16 on accelerators, float32 on a CPU
  config.attention = "auto"  # see ovi_jax/attention/attention.py
  # Devices along each axis; 0 takes what is left over or is 1; all 0: chosen.
  config.mesh = ml_collections.ConfigDict(dict.fromkeys(mesh.AXES, 0))
  config.context_parallelism = "ulysses"  # or ring
  # BLOCK.HEAD,… of the sound, for --attention_maps; "" for the sharpest.
  config.attention_heads = ""
  # Shard each clip over the devices of all processes, or give each process
  # clips of its own.
  config.shard_clips_over_hosts = False
  return config
