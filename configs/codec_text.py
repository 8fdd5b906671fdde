"""The text encoder.

  python train.py --config=configs/codec_text.py:mini --workdir=DIR
    --config.data.tokenizer=FILE

`:mini` is a small encoder for the captions of one world or dataset; a step of
32 captions takes about 0.2 s of one core. Without `:mini`, sizes are those of
UMT5-XXL. `python -m ovi_jax.data.tokenizer --out=FILE` writes a tokenizer of
the synthetic world's words. The training task and its settings are ours.
"""

import ml_collections

from ovi_jax.training import default_config

FULL = {
  "vocab_size": 256_384,
  "dim": 4096,
  "dim_attn": 4096,
  "dim_ffn": 10_240,
  "num_heads": 64,
  "encoder_layers": 24,  # number of transformer blocks
  "num_buckets": 32,
}
MINI = {
  "model.vocab_size": 128,
  "model.dim": 64,
  "model.dim_attn": 64,
  "model.dim_ffn": 128,
  "model.num_heads": 4,
  "model.encoder_layers": 3,
  "data.max_text_len": 32,
  "batch_size": 32,
  "optimizer.learning_rate": 4e-3,
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config = default_config.codec(
    "umt5", FULL, {"context_window": 4, "mask_prob": 0.15}
  )
  config.data.tokenizer = ""  # must be given
  config.data.max_text_len = 512
  config.batch_size = 256
  config.optimizer.weight_decay = 0.0
  if default_config.is_mini(arg):
    config.update_from_flattened_dict(default_config.MINI_CODEC | MINI)
  return config
