"""The text encoder, small, for the captions of one world or dataset.

  python train.py --config=configs/codec_text.py:mini --workdir=DIR
    --config.data.tokenizer=FILE

The tokenizer is one of the world's words, which
`python -m ovi_jax.data.tokenizer --out=FILE` writes. `:mini` takes about
0.2 s of a core a step of 32 captions. Without it, the sizes of UMT5-XXL. The
task and its settings are ours.
"""

import ml_collections

from configs import base

FULL = {
  "vocab_size": 256_384,
  "dim": 4096,
  "dim_attn": 4096,
  "dim_ffn": 10_240,
  "num_heads": 64,
  "encoder_layers": 24,
  "num_buckets": 32,
}
MINI = {
  "vocab_size": 128,
  "dim": 64,
  "dim_attn": 64,
  "dim_ffn": 128,
  "num_heads": 4,
  "encoder_layers": 3,
  "num_buckets": 32,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  mini = base.size(arg)
  config = base.codec(
    mini, "umt5", MINI if mini else FULL, {"reach": 4, "hidden": 0.15}
  )
  config.data.tokenizer = ""  # must be given
  config.data.text_rows = 32 if mini else 512
  config.batch = 32 if mini else 256
  config.optimizer.learning_rate = 4e-3 if mini else 1e-4
  config.optimizer.weight_decay = 0.0
  return config
