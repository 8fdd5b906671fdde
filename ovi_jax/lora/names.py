"""Names of layers in LoRA files, and the parameters that they update.

A name is a prefix of the tool, a layer and what it holds:

  our own     blocks/video/self_attention/query/lora_down/3
  ComfyUI     diffusion_model.video_model.blocks.3.self_attn.q.lora_A.weight
  musubi      lora_unet_blocks_3_self_attn_q.lora_down.weight
  diffusers   transformer.blocks.3.attn1.to_q.lora_A.weight

Layers have the names of Ovi's checkpoints, or those of Wan2.2 without
`video_model.`, which mean the video tower. The table that converts checkpoints
also converts updates, so that rows of queries and keys are reordered alike.
"""

import functools
import re
from collections.abc import Mapping
from typing import NamedTuple

from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import normalize
from ovi_jax.lora import adapter
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.models import dit

OWN, COMFYUI, MUSUBI, DIFFUSERS = "ovi_jax", "comfyui", "musubi", "diffusers"
FORMATS = (OWN, COMFYUI, MUSUBI, DIFFUSERS)
PEFT = "base_model.model."
# Prefixes in the files of tools, also several; longer ones first.
_PREFIXES = (
  PEFT,
  "model.",
  "module.",
  "diffusion_model.",
  "transformer.",
  "lora_transformer_",
  "lora_unet__",
  "lora_unet_",
)
_MOST_PREFIXES = 8
# Layers of Wan's image-to-video models of 14 B, which Ovi lacks.
ABSENT = re.compile(r"(?:^|[._])(?:k_img|v_img|norm_k_img|img_emb)(?:[._]|$)")
WEIGHT, BIAS, MODULATION = "weight", "bias", "modulation"


class Target(NamedTuple):
  """The parameter that a tensor of a checkpoint becomes.

  Attributes:
    slot: of the parameter.
    row: of the table.
  """

  slot: adapter.Slot
  row: mapping.Row


class Table:
  """The layers of a model under the names of all tools.

  Attributes:
    targets: by layer, as Ovi's checkpoints name it, and kind of tensor.
    names: layer and kind by the slot of the parameter.
  """

  def __init__(self, config: AV[dit.DiTConfig]):
    self.targets: dict[tuple[str, str], Target] = {}
    for row in fusion.rows(config):
      if row.ours is not None:
        for index in row.indices:
          (name,) = row.names(index)
          target = Target(adapter.Slot(row.ours, index), row)
          self.targets[_layer_and_kind(name)] = target
    self.names = {target.slot: name for name, target in self.targets.items()}
    self._layers: dict[str, str] = {}
    for layer in dict.fromkeys(layer for layer, _ in self.targets):
      for other in _spellings(layer):
        self._layers.setdefault(other, layer)
        self._layers.setdefault(other.replace(".", "_"), layer)

  def layer(self, name: str) -> str | None:
    """The layer that a tool's name means; `None` if it is unknown."""
    name = normalize.unwrapped(name)
    for _ in range(_MOST_PREFIXES):
      if (found := self._layers.get(name)) is not None:
        return found
      prefix = next((p for p in _PREFIXES if name.startswith(p)), None)
      if prefix is None:
        break
      name = name[len(prefix) :]
    return None

  def written(self, slot: adapter.Slot, style: str, bare: bool) -> str:
    """The name of a parameter's layer in a tool's files.

    Args:
      slot: of the parameter.
      style: one of `FORMATS`, not our own.
      bare: whether to use Wan's names, without the prefix of the tower.
    """
    layer, _ = self.names[slot]
    if bare:
      layer = layer.removeprefix(fusion.PREFIXES.video)
    if style == DIFFUSERS:
      return f"transformer.{_in_diffusers(layer)}"
    if style == MUSUBI:
      return f"lora_unet_{layer.replace('.', '_')}"
    return f"diffusion_model.{layer}"


_DIFFUSERS = next(d for d in fusion.DIALECTS if d.name == "diffusers")
_BLOCK_MODULATION = ".modulation.modulation"  # in Ovi's files


def _layer_and_kind(name: str) -> tuple[str, str]:
  """The layer of a tensor of Ovi's checkpoints, and what it is of it."""
  if name.endswith(_BLOCK_MODULATION):
    return name.removesuffix(_BLOCK_MODULATION), MODULATION
  layer, _, kind = name.rpartition(".")
  return layer, kind


def _in_diffusers(layer: str) -> str:
  """The name of a layer in diffusers; the same if it has no other."""
  found = _DIFFUSERS.names(f"{layer}.{WEIGHT}")
  return found[0].removesuffix(f".{WEIGHT}") if found else layer


def _spellings(layer: str) -> list[str]:
  """The names of a layer, without the prefixes of tools."""
  names = [layer]
  if layer.startswith(fusion.PREFIXES.video):
    names.append(layer.removeprefix(fusion.PREFIXES.video))
  return names + [_in_diffusers(name) for name in names]


@functools.lru_cache(maxsize=4)
def table(config: AV[dit.DiTConfig]) -> Table:
  """The table of a model."""
  return Table(config)


@functools.lru_cache(maxsize=4)
def shapes(config: AV[dit.DiTConfig]) -> Mapping[str, tuple[int, ...]]:
  """Shapes of the towers' parameters, by path."""
  tree = architecture.parameter_shapes("fusion", config)
  return {path: tuple(x.shape) for path, x in mapping.flatten(tree).items()}
