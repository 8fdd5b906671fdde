"""Sampling: text to video with sound, or a first frame to video with sound.

  python sample.py --weights=DIR --prompt="…" --config.seed=7

Fields are the original's. Where a field has no value here, it is what the
weights advise in their directory, or else what Ovi publishes (on the right).
Any machine: released weights need about 40 GB of accelerator memory in
bfloat16, those that come with the package need none. See docs/sampling.md for
what each field does.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from ovi_jax import geometry
from ovi_jax.sharding import mesh


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  # Weights name their own variant; give one here to insist on it.
  config.variant = ""
  config.mode = "auto"  # auto, t2v (ignore images), i2v (require them)
  # The aspect, as height and width; the area is always the variant's.
  config.height, config.width = geometry.DEFAULT_SIZE
  config.steps = placeholder(int)  # 50
  config.solver = placeholder(str)  # "unipc"; or dpm++, euler
  config.shift = placeholder(float)  # 5.0
  config.seed = 103
  config.each_example_n_times = 1
  config.guidance = ml_collections.ConfigDict()
  config.guidance.video = placeholder(float)  # 4.0
  config.guidance.audio = placeholder(float)  # 3.0
  # Left out of the negative pass; 0 leaves out none.
  config.skip_layer = placeholder(int)  # 11
  config.negative_prompt = ml_collections.ConfigDict()
  config.negative_prompt.video = placeholder(str)
  config.negative_prompt.audio = placeholder(str)
  config.dtype = "auto"  # bfloat16 on accelerators, float32 on a CPU
  config.attention = "auto"  # see ovi_jax/attention/attention.py
  # Devices along each axis; 0 takes what is left over or is 1; all 0: chosen.
  config.mesh = ml_collections.ConfigDict(dict.fromkeys(mesh.AXES, 0))
  config.context_attention = "all_to_all"  # or ring
  # BLOCK.HEAD,… of the sound, for --attention_maps; "" for the sharpest.
  config.attention_heads = ""
  # Whether processes make every clip together, or each its share of them.
  config.together = False
  return config
