"""Names and shapes of CLIP and of an aesthetic head, as released."""

from tests.lib.curation import seeded


def names(width=128, feed=192, out=24, layers=3, side=32, patch=8):
  """Of the image tower in the Transformers library, and their shapes."""
  part = "vision_model.embeddings"
  tokens = (side // patch) ** 2 + 1
  shapes = {
    f"{part}.class_embedding": (width,),
    f"{part}.patch_embedding.weight": (width, 3, patch, patch),
    f"{part}.position_embedding.weight": (tokens, width),
    "visual_projection.weight": (out, width),
  }
  norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
  for number in range(layers):
    layer = f"vision_model.encoder.layers.{number}"
    norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    linears = {
      f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")
    }
    linears |= {"mlp.fc1": (feed, width), "mlp.fc2": (width, feed)}
    for name, shape in linears.items():
      shapes[f"{layer}.{name}.weight"] = shape
      shapes[f"{layer}.{name}.bias"] = shape[:1]
  for norm in norms:
    shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
  return shapes


def head_tensors(layers):
  shapes = {}
  for number, (inputs, outputs) in layers.items():
    shapes[f"layers.{number}.weight"] = (outputs, inputs)
    shapes[f"layers.{number}.bias"] = (outputs,)
  return seeded.tensors(shapes)
