"""The stand-in's files in the formats of other tools."""

import re
from collections.abc import Callable

import numpy as np
from safetensors import numpy as safetensors

from ovi_jax.convert import torch_file

Tensors = dict[str, np.ndarray]


def renamed(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
  """Tensors with every pattern replaced in their names."""
  result = {}
  for name, tensor in tensors.items():
    for pattern, other in pairs:
      name = re.sub(pattern, other, name)
    assert name not in result
    result[name] = tensor
  return result


def transformers(tensors: Tensors) -> Tensors:
  """UMT5 as `UMT5EncoderModel` saves it."""
  return renamed(
    tensors,
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^token_embedding\.", "shared."),
    (r"^blocks\.", "encoder.block."),
    (
      r"\.pos_embedding\.embedding\.",
      ".layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
  )


def transformers_stack(tensors: Tensors) -> Tensors:
  """UMT5's stack of blocks alone, as `model.encoder.state_dict()` gives it."""
  return renamed(
    transformers(tensors),
    (r"^shared\.", "embed_tokens."),
    (r"^encoder\.", ""),
  )


def comfy_t5(tensors: Tensors) -> Tensors:
  """UMT5 as ComfyUI keeps it: with the tokenizer as bytes."""
  extra = {"spiece_model": np.zeros(5, np.uint8)}
  return transformers(tensors) | extra


def whole_t5(tensors: Tensors) -> Tensors:
  """UMT5 with a decoder, and the embedding three times."""
  named = transformers(tensors)
  return named | {
    "encoder.embed_tokens.weight": named["shared.weight"],
    "decoder.embed_tokens.weight": named["shared.weight"],
    "decoder.block.0.layer.0.SelfAttention.q.weight": np.ones((2, 2), "f4"),
    "decoder.final_layer_norm.weight": np.ones(2, "f4"),
    "lm_head.weight": np.ones((2, 2), "f4"),
  }


def diffusers_vae(tensors: Tensors) -> Tensors:
  """The video VAE as `AutoencoderKLWan` saves it."""
  return renamed(
    tensors,
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(\w+)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (
      r"\.downsamples\.(\d+)\.downsamples\.\d+\.(resample|time_conv)",
      r".down_blocks.\1.downsampler.\2",
    ),
    (
      r"\.upsamples\.(\d+)\.upsamples\.\d+\.(resample|time_conv)",
      r".up_blocks.\1.upsampler.\2",
    ),
    (
      r"\.(down|up)samples\.(\d+)\.\w+samples\.(\d+)\.",
      r".\1_blocks.\2.resnets.\3.",
    ),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
  )


def diffusers_transformer(tensors: Tensors) -> Tensors:
  """Towers as `WanTransformer3DModel` names its own."""
  return renamed(
    tensors,
    (r"\bhead\.modulation$", "scale_shift_table"),
    (r"\bmodulation(\.modulation)?$", "scale_shift_table"),
    (r"\bhead\.head\.", "proj_out."),
    (
      r"\b(text|time)_embedding\.0\.",
      r"condition_embedder.\1_embedder.linear_1.",
    ),
    (
      r"\b(text|time)_embedding\.2\.",
      r"condition_embedder.\1_embedder.linear_2.",
    ),
    (r"\btime_projection\.1\.", "condition_embedder.time_proj."),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.([qkv])\.", r".to_\1."),
    (r"\.o\.", ".to_out.0."),
  )


def short_modulation(tensors: Tensors) -> Tensors:
  """Towers whose modulation is named as in Wan."""
  return renamed(tensors, (r"\.modulation\.modulation$", ".modulation"))


def old_weight_norm(tensors: Tensors) -> Tensors:
  """A vocoder saved before torch's parametrizations."""
  return renamed(
    tensors,
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
  )


def unchanged(tensors: Tensors) -> Tensors:
  return tensors


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
  return lambda tensors: {prefix + n: t for n, t in tensors.items()}


def compiled(tensors: Tensors) -> Tensors:
  """Modules that torch.compile and FSDP wrapped, some of them."""
  return renamed(
    tensors,
    (r"^([^.]+)\.", r"module.\1._orig_mod."),
    (r"blocks\.(\d+)\.", r"blocks.\1._fsdp_wrapped_module."),
    (r"^(?!module)", "module."),
  )


def peft(tensors: Tensors) -> Tensors:
  """A model that PEFT wrapped, with its adapters left out."""
  layers = r"^(.*\.(?:self_attn|ffn|attn|to_qkv|convs1)\b.*)\."
  return prefixed("base_model.model.")(
    renamed(tensors, (layers + r"(weight|bias)$", r"\1.base_layer.\2"))
  )


def half_prefixed(tensors: Tensors) -> Tensors:
  """Every second tensor under a prefix."""
  return {
    f"model.{name}" if number % 2 else name: tensor
    for number, (name, tensor) in enumerate(tensors.items())
  }


def parallel_towers(tensors: Tensors) -> Tensors:
  """Modules within the model that DistributedDataParallel wrapped."""
  return renamed(tensors, (r"^([^.]+)\.", r"\1.module."))


def save(path, tensors: Tensors, wrap: str | None = None):
  """Write tensors in the format that a name or a wrapper asks for."""
  if path.suffix == ".safetensors" and wrap is None:
    safetensors.save_file(
      {n: np.asarray(t, order="C") for n, t in tensors.items()}, path
    )
  else:
    torch_file.save(path, tensors, wrap)
  return path
