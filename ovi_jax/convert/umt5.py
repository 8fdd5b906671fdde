"""Names of the UMT5 text encoder in the release and in our parameters."""

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Dialect
from ovi_jax.models import umt5

FILE = "Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth"

_TRANSPOSE = mapping.Rearrange("o i -> i o")

# Name within a block -> path within ours.
_LINEARS = {
  "attn.q": "attention/q",
  "attn.k": "attention/k",
  "attn.v": "attention/v",
  "attn.o": "attention/out",
  "ffn.gate.0": "feed_forward/gate",
  "ffn.fc1": "feed_forward/up",
  "ffn.fc2": "feed_forward/down",
}
_NORMS = {"norm1": "attention_norm", "norm2": "feed_forward_norm"}

_BLOCK = "block.{i}.layer"
_TRANSFORMERS = (
  ("token_embedding.weight", "embed_tokens.weight"),
  ("norm.weight", "final_layer_norm.weight"),
  ("blocks.{i}.norm1.weight", f"{_BLOCK}.0.layer_norm.weight"),
  ("blocks.{i}.norm2.weight", f"{_BLOCK}.1.layer_norm.weight"),
  ("blocks.{i}.attn.{p}.weight", f"{_BLOCK}.0.SelfAttention.{{p}}.weight"),
  (
    "blocks.{i}.pos_embedding.embedding.weight",
    f"{_BLOCK}.0.SelfAttention.relative_attention_bias.weight",
  ),
  ("blocks.{i}.ffn.gate.0.weight", f"{_BLOCK}.1.DenseReluDense.wi_0.weight"),
  ("blocks.{i}.ffn.fc1.weight", f"{_BLOCK}.1.DenseReluDense.wi_1.weight"),
  ("blocks.{i}.ffn.fc2.weight", f"{_BLOCK}.1.DenseReluDense.wo.weight"),
)
# The encoder of the Transformers library, which ComfyUI's files follow; its
# stack of blocks alone lacks the prefix.
DIALECTS = (
  Dialect(
    name="transformers",
    patterns=(
      ("token_embedding.weight", "shared.weight"),
      *(
        (ours, f"{prefix}{theirs}")
        for prefix in ("encoder.", "")
        for ours, theirs in _TRANSFORMERS
      ),
    ),
    ignored=("decoder.{rest}", "lm_head.weight", "spiece_model"),
  ),
)


def rows(config: umt5.UMT5Config) -> list[mapping.Row]:
  """The table of `FILE` for an encoder of the given sizes."""
  stack = config.num_layers

  def block(torch: str, ours: str, op: mapping.Rearrange) -> mapping.Row:
    return mapping.Row(f"blocks.{{}}.{torch}.weight", ours, op, stack)

  same = mapping.Rearrange()
  return [
    mapping.Row("token_embedding.weight", "embedding"),
    *(block(t, f"blocks/{o}/kernel", _TRANSPOSE) for t, o in _LINEARS.items()),
    *(block(t, f"blocks/{o}/scale", same) for t, o in _NORMS.items()),
    block("pos_embedding.embedding", "blocks/attention/position", same),
    mapping.Row("norm.weight", "norm/scale"),
  ]
