"""Names of the denoiser: Ovi's checkpoints and bare Wan2.2-TI2V-5B.

Queries and keys are reordered within each head from interleaved to half-split
rotary pairs (see `models.rope`), together with the norms over them.
"""

from ovi_jax.convert import mapping
from ovi_jax.convert.mapping import Dialect
from ovi_jax.convert.mapping import Rearrange
from ovi_jax.convert.mapping import Row
from ovi_jax.convert.mapping import affine
from ovi_jax.convert.mapping import linear
from ovi_jax.convert.mapping import norm
from ovi_jax.modality import AV
from ovi_jax.models import dit

# Prefix of a tower's tensors in Ovi's files.
PREFIXES = AV(video="video_model.", audio="audio_model.")

_EMBEDDER = "condition_embedder"
_WAN = (("blocks.{i}.modulation.modulation", "blocks.{i}.modulation"),)
_OVI = (("blocks.{i}.modulation", "blocks.{i}.modulation.modulation"),)
_DIFFUSERS = (
  ("text_embedding.0.{p}", f"{_EMBEDDER}.text_embedder.linear_1.{{p}}"),
  ("text_embedding.2.{p}", f"{_EMBEDDER}.text_embedder.linear_2.{{p}}"),
  ("time_embedding.0.{p}", f"{_EMBEDDER}.time_embedder.linear_1.{{p}}"),
  ("time_embedding.2.{p}", f"{_EMBEDDER}.time_embedder.linear_2.{{p}}"),
  ("time_projection.1.{p}", f"{_EMBEDDER}.time_proj.{{p}}"),
  ("head.modulation", "scale_shift_table"),
  ("head.head.{p}", "proj_out.{p}"),
  ("blocks.{i}.modulation", "blocks.{i}.scale_shift_table"),
  ("blocks.{i}.modulation.modulation", "blocks.{i}.scale_shift_table"),
  ("blocks.{i}.norm3.{p}", "blocks.{i}.norm2.{p}"),
  ("blocks.{i}.ffn.0.{p}", "blocks.{i}.ffn.net.0.proj.{p}"),
  ("blocks.{i}.ffn.2.{p}", "blocks.{i}.ffn.net.2.{p}"),
  *(
    (f"blocks.{{i}}.{ours}.{part}.{{p}}", f"blocks.{{i}}.{theirs}.{name}.{{p}}")
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for part, name in (
      ("q", "to_q"),
      ("k", "to_k"),
      ("v", "to_v"),
      ("o", "to_out.0"),
      ("norm_q", "norm_q"),
      ("norm_k", "norm_k"),
      # Only Ovi has these; diffusers has no such model.
      ("k_fusion", "k_fusion"),
      ("v_fusion", "v_fusion"),
      ("pre_attn_norm_fusion", "pre_attn_norm_fusion"),
      ("norm_k_fusion", "norm_k_fusion"),
    )
  ),
)
DIALECTS = tuple(
  Dialect(
    name=name,
    patterns=tuple(
      (prefix + ours, prefix + theirs)
      for prefix in ("", *PREFIXES)
      for ours, theirs in patterns
    ),
  )
  for name, patterns in (
    ("Wan", _WAN),
    ("Ovi", _OVI),
    ("diffusers", _DIFFUSERS),
  )
)


def rows(config: AV[dit.DiTConfig]) -> list[Row]:
  """The table of an Ovi checkpoint with the towers that `config` names."""
  fused = len(config.present()) == 2
  table: list[Row] = []
  for name, tower in config.present().items():
    prefix = getattr(PREFIXES, name)
    table += _ends(tower, prefix, name)
    modulation = f"{prefix}blocks.{{}}.modulation.modulation"
    table += _blocks(tower, prefix, f"blocks/{name}", modulation, fused)
  return table


def wan_rows(config: dit.DiTConfig) -> list[Row]:
  """The table of a Wan2.2-TI2V-5B transformer as published, a video tower."""
  return [
    *_ends(config, "", "video"),
    *_blocks(config, "", "blocks/video", "blocks.{}.modulation", False),
  ]


def _ends(config: dit.DiTConfig, torch: str, ours: str) -> list[Row]:
  """Embeddings and head of one tower."""
  embedding = f"{torch}patch_embedding"
  if config.is_audio:
    conv = Rearrange("o i t -> t i o")
    stem = affine(f"{embedding}.0", f"{ours}/patch_embedding/in", conv)
    for theirs, part in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
      path = f"{ours}/patch_embedding/{part}/kernel"
      weight = f"{embedding}.2.{theirs}.weight"
      stem.append(Row(weight, path, conv))
  else:
    sizes = tuple(zip("tpq", config.patch))
    patch = Rearrange("o i t p q -> (t p q i) o", sizes)
    stem = affine(embedding, f"{ours}/patch_embedding", patch)
  text, time = f"{torch}text_embedding", f"{torch}time_embedding"
  return [
    *stem,
    *linear(f"{text}.0", f"{ours}/text_embedding/in"),
    *linear(f"{text}.2", f"{ours}/text_embedding/out"),
    *linear(f"{time}.0", f"{ours}/time_embedding/in"),
    *linear(f"{time}.2", f"{ours}/time_embedding/out"),
    *linear(f"{torch}time_projection.1", f"{ours}/time_projection"),
    *linear(f"{torch}head.head", f"{ours}/head"),
    Row(
      f"{torch}head.modulation",
      f"{ours}/head_modulation",
      Rearrange("1 p d -> p d"),
    ),
  ]


def _blocks(
  config: dit.DiTConfig,
  torch: str,
  ours: str,
  modulation: str,
  fused: bool,
) -> list[Row]:
  """All blocks of one tower, stacked."""
  stack = config.num_layers
  block = f"{torch}blocks.{{}}"
  table = [
    Row(modulation, f"{ours}/modulation", Rearrange("1 p d -> p d"), stack),
    *norm(f"{block}.norm3", f"{ours}/cross_norm", stack),
    *linear(f"{block}.ffn.0", f"{ours}/feed_forward/in", stack),
    *linear(f"{block}.ffn.2", f"{ours}/feed_forward/out", stack),
  ]
  for theirs, mine in (
    ("self_attn", "self_attention"),
    ("cross_attn", "cross_attention"),
  ):
    table += _attention(config, f"{block}.{theirs}", f"{ours}/{mine}")
  if fused:
    theirs, mine = f"{block}.cross_attn", f"{ours}/cross_attention"
    table += [
      *norm(f"{theirs}.pre_attn_norm_fusion", f"{mine}/fusion_norm", stack),
      *_turned(config, f"{theirs}.k_fusion", f"{mine}/fusion_key"),
      *linear(f"{theirs}.v_fusion", f"{mine}/fusion_value", stack),
      _turned_norm(
        config, f"{theirs}.norm_k_fusion", f"{mine}/fusion_key_norm"
      ),
    ]
  return table


def _attention(config: dit.DiTConfig, torch: str, ours: str) -> list[Row]:
  stack = config.num_layers
  return [
    *_turned(config, f"{torch}.q", f"{ours}/query"),
    *_turned(config, f"{torch}.k", f"{ours}/key"),
    *linear(f"{torch}.v", f"{ours}/value", stack),
    *linear(f"{torch}.o", f"{ours}/out", stack),
    _turned_norm(config, f"{torch}.norm_q", f"{ours}/query_norm"),
    _turned_norm(config, f"{torch}.norm_k", f"{ours}/key_norm"),
  ]


def _turned(config: dit.DiTConfig, torch: str, ours: str) -> list[Row]:
  """A projection whose output is rotated, pairs reordered."""
  sizes = (("n", config.num_heads), ("r", 2))
  kernel = Rearrange("(n k r) i -> i (n r k)", sizes)
  return [
    Row(f"{torch}.weight", f"{ours}/kernel", kernel, config.num_layers),
    Row(f"{torch}.bias", f"{ours}/bias", _pairs(config), config.num_layers),
  ]


def _turned_norm(config: dit.DiTConfig, torch: str, ours: str) -> Row:
  return Row(
    f"{torch}.weight", f"{ours}/scale", _pairs(config), config.num_layers
  )


def _pairs(config: dit.DiTConfig) -> mapping.Rearrange:
  sizes = (("n", config.num_heads), ("r", 2))
  return Rearrange("(n k r) -> (n r k)", sizes)
