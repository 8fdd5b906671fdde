"""Say in one line what a file of tensors is, if it is not what was expected."""

import re
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax import untrusted
from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import normalize
from ovi_jax.convert import release as releases
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.pretrained import tensor_file

# Names beside, or in place of, the quantized weights of other tools.
_QUANTIZED = (
  r"\.(?:qweight|qzeros|g_idx|absmax|nested_absmax|quant_map|SCB|quant_state"
  r"|weight_format|weight\._data|weight\._scale|input_scale|output_scale)\b"
)
# What most names of a file match -> what the file is.
_KINDS = {
  normalize.ADAPTER.pattern: (
    "a LoRA file: it changes a model and is none; give the model's own file"
  ),
  _QUANTIZED: "weights quantized by another tool; give the 16-bit file",
  r"(?:exp_avg|exp_avg_sq|fp32_flat_groups|optimizer)\b": (
    "an optimizer's state; give the file of the model"
  ),
  r"(?:^|\.)_?flat_param(?:_\d+)?$": (
    "FSDP's flattened shards; gather the full state dict before saving"
  ),
  r"(?:down|up)samples\.\d+\.(?:residual|resample|shortcut|time_conv)\b": (
    "the video VAE of Wan 2.1 (16 channels); Ovi needs that of Wan 2.2"
  ),
  r"up_blocks\.\d+\.upsamplers\.0\.": (
    "diffusers' names of an image or Wan 2.1 VAE; Ovi needs that of Wan 2.2"
  ),
  r"joint_blocks\.": "MMAudio's generator, of which Ovi has no part",
  r"(?:visual\.transformer|vision_model)\.": "a CLIP image encoder",
}
_MODELS = {1536: "1.3 B", 3072: "5 B", 5120: "14 B"}
_SHARE = 0.5  # of the names


def kind(file: tensor_file.TensorFile, component: str) -> str:
  """What a file is that has not the names of `component`."""
  names = list(file.spans)
  if {"digest", "table"} <= file.values.keys():
    return "weights that are converted already; sample.py reads their folder"
  for pattern, what in _KINDS.items():
    found = sum(bool(re.search(pattern, name)) for name in names)
    if found >= _SHARE * len(names):
      return what
  for other, rows, source in _tables():
    if other == component:
      continue
    try:
      fits = normalize.normalize([file], rows, source.dialects, source.towers)
    except ValueError:
      continue
    dialect = f", as {fits.dialect} names them" if fits.dialect else ""
    return f"the tensors of {other}{dialect}; give it with --{other}=FILE"
  listed = untrusted.printable(", ".join(names[:3]))
  return f"another model; its first tensors are {listed}"


def _tables() -> Iterator[tuple[str, Sequence[mapping.Row], releases.Source]]:
  """(component, table, source) at the released sizes."""
  sizes: Mapping[str, Any] = architecture.released_sizes()
  arch = architecture.Architecture.from_release(sizes)
  variant = releases.known_variants()[0]
  for component in architecture.COMPONENTS:
    source = releases.source(component, variant)
    yield component, source.rows(arch.config(component)), source


def misfit(
  component: str, config: Any, tensors: normalize.Normalized
) -> str | None:
  """What a file of the right names and wrong sizes is, if that is known."""
  if any(re.search(_QUANTIZED, name) for name in tensors.shapes):
    return f"it holds {_KINDS[_QUANTIZED]}"
  if component != "fusion":
    return None
  layout = f" in the layout of {tensors.dialect}" if tensors.dialect else ""
  for tower, sizes in config.present().items():
    span = tensors.tensors.get(
      f"{_prefix(config, tensors, tower)}{_STEM[tower]}"
    )
    if span is None or not span.span.shape:
      continue
    width = span.span.shape[0]
    if width != sizes.hidden_dim:
      blocks = _blocks(tensors.shapes)
      known = f", the {_MODELS[width]} model" if width in _MODELS else ""
      return (
        f"this is another transformer{layout}, of width {width} with"
        f" {blocks} blocks{known}; expected width {sizes.hidden_dim} with"
        f" {sizes.num_layers}"
      )
  return _incomplete(config, tensors.shapes)


_STEM = {"video": "patch_embedding.weight", "audio": "patch_embedding.0.weight"}


def _prefix(config: AV[Any], tensors: normalize.Normalized, tower: str) -> str:
  """The prefix of a tower's names in the table."""
  prefix = getattr(fusion.PREFIXES, tower)
  bare = not any(n.startswith(prefix) for n in tensors.shapes)
  return "" if bare and len(config.present()) == 1 else prefix


def _blocks(names: Sequence[str] | Mapping[str, Any]) -> int:
  """The number of blocks that names count."""
  found = (re.search(r"(?:^|\.)blocks\.(\d{1,4})\.", name) for name in names)
  return 1 + max((int(m[1]) for m in found if m), default=-1)


def _incomplete(config: AV[Any], names: Mapping[str, Any]) -> str | None:
  """Whether a whole tower, or what joins the towers, is missing."""
  towers = config.present()
  if len(towers) < 2:
    return None
  present = [
    t
    for t in towers
    if any(n.startswith(getattr(fusion.PREFIXES, t)) for n in names)
  ]
  if len(present) == 1:
    return (
      f"this is the {present[0]} tower alone; give the other tower's file too,"
      " as in --fusion=VIDEO,AUDIO (or FILE::video,FILE::audio of one file), or"
      " sizes of one tower"
    )
  if not any("_fusion" in name for name in names):
    return "these towers have no attention to each other: they are not Ovi's"
  return None
