"""Sampling: text to video with sound, or a first frame to video with sound.

  python sample.py --weights=DIR --prompt="…" --config.seed=7

A field without a value here has the value that the weights recommend, or else
the default of the original code (in the comment). docs/how_to/sample.md
explains each field. The small Ovi in the package runs on any machine;
docs/explanation/memory.md has the memory that released weights need.
"""

from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from ovi_jax import geometry
from ovi_jax.sharding import mesh


def get_config() -> ml_collections.ConfigDict:
  config: Any = ml_collections.ConfigDict()
  # Require weights of this variant; empty accepts any.
  config.variant = ""
  config.mode = "auto"  # auto, t2v (ignore images), i2v (require them)
  # Aspect ratio; the area is always that of the variant.
  config.height, config.width = geometry.DEFAULT_SIZE
  config.num_steps = placeholder(int)  # 50
  config.solver = placeholder(str)  # "unipc"; or dpm++, euler
  config.flow_shift = placeholder(float)  # 5.0
  config.seed = 103
  config.samples_per_prompt = 1
  # Maximum number of clips of the same size that are denoised together. Larger
  # batches use an accelerator better and multiply the memory for activations.
  config.batch_size = 1
  config.guidance_scale = ml_collections.ConfigDict()
  config.guidance_scale.video = placeholder(float)  # 4.0
  config.guidance_scale.audio = placeholder(float)  # 3.0
  # Block that the negative pass omits (skip-layer guidance); 0 omits none.
  config.slg_layer = placeholder(int)  # 11
  config.negative_prompt = ml_collections.ConfigDict()
  config.negative_prompt.video = placeholder(str)
  config.negative_prompt.audio = placeholder(str)
  config.dtype = "auto"  # bfloat16 on accelerators, float32 on a CPU
  config.attention = "auto"  # see ovi_jax/attention/attention.py
  # Devices along each axis; 0 takes the remaining devices; all 0: automatic.
  config.mesh = ml_collections.ConfigDict(dict.fromkeys(mesh.AXES, 0))
  config.context_parallelism = "ulysses"  # or ring
  # BLOCK.HEAD,… for --attention_maps; "" for those of highest alignment.
  config.attention_heads = ""
  # Shard each clip over the devices of all processes, or give each process
  # clips of its own.
  config.shard_clips_over_hosts = False
  return config
