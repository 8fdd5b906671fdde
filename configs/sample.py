"""Sampling: text to video with sound, or a first frame to video with sound.

  python sample.py --weights=DIR --prompt="…" --config.seed=7

Fields are the original's, with its published defaults. Any machine: released
weights need about 40 GB of accelerator memory in bfloat16, the stand-in of
`make sample` needs none. See docs/sampling.md for what each field does.
"""

import ml_collections

from ovi_jax import geometry


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  # Weights name their own variant; give one here to insist on it.
  config.variant = ""
  config.mode = "auto"  # auto, t2v (ignore images), i2v (require them)
  # The aspect, as height and width; the area is always the variant's.
  config.height, config.width = geometry.DEFAULT_SIZE
  config.steps = 50
  config.solver = "unipc"  # unipc, dpm++, euler
  config.shift = 5.0
  config.seed = 103
  config.each_example_n_times = 1
  config.guidance = ml_collections.ConfigDict({"video": 4.0, "audio": 3.0})
  config.skip_layer = 11  # left out of the negative pass; 0 leaves out none
  config.negative_prompt = ml_collections.ConfigDict(
    {
      "video": "jitter, bad hands, blur, distortion",
      "audio": "robotic, muffled, echo, distorted",
    }
  )
  config.dtype = "auto"  # bfloat16 on accelerators, float32 on a CPU
  config.attention = "auto"  # see ovi_jax/models/attention.py
  return config
