"""Reads and writes LoRA files (safetensors) of several tools.

  ΔW = strength · alpha / rank · up @ down      down [rank, in], up [out, rank]

Formats are those of `names`. `lora_down` is `lora_A`, `lora_up` is `lora_B`;
without `alpha`, the factor is 1. `diff`, `diff_b` and `diff_m` are updates of a
whole weight, bias and modulation table. diffusers has alpha in the metadata
(`lora_adapter_metadata`, PEFT's LoraConfig as JSON).

Files are untrusted: names, shapes, dtypes and values are checked, the header
before any tensor is read. Tensors keep their dtype, and a file that is read and
written in its format has the same tensors, except that `lora_down` of a
convolution, which may be a matrix, is written with all axes.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.convert import normalize
from ovi_jax.lora import adapter
from ovi_jax.lora import layouts
from ovi_jax.lora import names
from ovi_jax.lora import peft
from ovi_jax.modality import AV
from ovi_jax.models import dit
from ovi_jax.models import low_rank
from ovi_jax.pretrained import tensor_file
from ovi_jax.pretrained import weights

DTYPES = ("float32", "bfloat16", "float16")
_DTYPES = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16)))
# Largest |alpha / rank|; those in use are at most hundreds.
MAX_SCALE = 1e6
FORMAT_KEY, FORMAT = "ovi_jax.format", f"{names.OWN} 1"
BASE_KEY = "ovi_jax.base"  # digest of the weights that were adapted
# How given latents were shown in its training, if it was trained with them.
CONDITIONING_KEY, CLEAN = "ovi_jax.conditioning", "clean"
DOWN, UP, ALPHA, DIFF = "down", "up", "alpha", "diff"
_KINDS = {
  "diff": names.WEIGHT,
  "diff_b": names.BIAS,
  "diff_m": names.MODULATION,
}
_OWN = re.compile(
  rf"(?P<layer>[\w/]+)/(?P<part>{low_rank.DOWN}|{low_rank.UP}|lora_alpha|diff)"
  r"(?:/(?P<block>0|[1-9]\d{0,4}))?"
)
_OWN_PARTS = {
  low_rank.DOWN: DOWN,
  low_rank.UP: UP,
  "lora_alpha": ALPHA,
  "diff": DIFF,
}
_PAIR = re.compile(
  r"(?P<layer>.+?)(?:\.default)?\.lora_(?P<part>A|B|down|up)"
  r"(?:\.default)?(?:\.weight)?"
)
_OTHER = re.compile(
  r"(?P<layer>.+?)(?:\.default)?\.(?P<part>alpha|diff|diff_b|diff_m)"
)
# ComfyUI's own name of a modulation table, before `.diff`; Ovi's has it twice.
_MODULATION = re.compile(r"(?P<layer>.+?)(?:\.modulation){1,2}")
_PARTS = {"A": DOWN, "down": DOWN, "B": UP, "up": UP}
# Adapters of other kinds, by a part of a name.
_OTHER_KINDS = {
  "dora_scale": "DoRA",
  "lora_magnitude_vector": "DoRA",
  "hada_": "LoHa",
  "lokr_": "LoKr",
  "oft_": "OFT",
  "lora_mid": "LoCon with a middle convolution",
  "lora_B.bias": "LoRA with biases",
}
# Layers whose input has the width of the tower.
_OF_WIDTH = re.compile(
  r".*/(?:(?:self|cross)_attention/(?:query|key|value|out)|feed_forward/in)"
  r"/kernel"
)
# Widths of other models, to tell them apart.
_MODELS = {5120: "Wan of 14 B parameters", 1536: "Wan of 1.3 B parameters"}


class _Named(NamedTuple):
  """A tensor of a file.

  Attributes:
    name: in the file.
    target: what it updates.
    part: DOWN, UP, ALPHA or DIFF.
  """

  name: str
  target: names.Target
  part: str


def read(
  path: str | os.PathLike[str], config: AV[dit.DiTConfig]
) -> adapter.Adapter:
  """Read a LoRA file of any of the formats.

  Args:
    path: of the file; may be in an object store.
    config: the towers that it will be applied to.

  Raises:
    ValueError: the file is missing or damaged, is no LoRA, or does not fit the
      towers; one line that names the file and the first tensor.
  """
  file = _open(path)
  path = storage.locate(path)
  if not file.spans:
    raise ValueError(f"{path}: expected a LoRA, found no tensors")
  named, notes = _named(file, config)
  by_slot: dict[tuple[adapter.Slot, str], _Named] = {}
  for each in named:
    key = each.target.slot, each.part
    if key in by_slot:
      raise ValueError(
        f"{path}: '{untrusted.printable(each.name)}' and"
        f" '{untrusted.printable(by_slot[key].name)}' are the same tensor; a"
        " file has one LoRA"
      )
    by_slot[key] = each
  _check(file, named, by_slot, config)
  alphas = _alphas(file, by_slot)
  for slot, alpha in alphas.items():
    up = by_slot[slot, UP].name
    scale = alpha / _rank(file.shapes[up], _is_own(file))
    if not abs(scale) <= MAX_SCALE:
      raise ValueError(
        f"{file.source}: expected |alpha / rank| of at most {MAX_SCALE:g}, got"
        f" {scale:g} for '{untrusted.printable(up)}'"
      )
  pairs: dict[adapter.Slot, adapter.Pair] = {}
  deltas: dict[adapter.Slot, np.ndarray] = {}
  is_own = _is_own(file)
  for (slot, part), each in by_slot.items():
    if part == DIFF:
      array = _finite(file, each.name)
      deltas[slot] = array if is_own else each.target.row.op.to_ours(array)
    elif part == DOWN:
      target, shape = each.target, _shape_of(slot, config)
      down = _finite(file, each.name)
      up = _finite(file, by_slot[slot, UP].name)
      pairs[slot] = adapter.Pair(
        down=down if is_own else layouts.down_to_ours(down, target, shape),
        up=up if is_own else layouts.up_to_ours(up, target),
        alpha=alphas.get(slot),
      )
  if pairs and not alphas and any(n.startswith(names.PEFT) for n in file.spans):
    notes.append(
      f"{file.source}: has no alpha, so updates are not scaled. PEFT writes"
      " alpha into adapter_config.json beside the file: if it is not the rank,"
      " give alpha / rank as strength"
    )
  changing = (x.down.any() and x.up.any() for x in pairs.values())
  if not any(changing) and not any(x.any() for x in deltas.values()):
    notes.append(
      f"{file.source}: all its updates are zero, so it changes nothing; its"
      " training may not have begun, or its download may be incomplete"
    )
  return adapter.Adapter(
    pairs=pairs, deltas=deltas, metadata=dict(file.values), notes=tuple(notes)
  )


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
  """The metadata of a LoRA file; its tensors are not read.

  Raises:
    ValueError: the file is missing or damaged.
  """
  return dict(_open(path).values)


def _open(path: str | os.PathLike[str]) -> tensor_file.TensorFile:
  """The header of a LoRA file."""
  path = storage.locate(path)
  if not storage.exists(path):
    raise ValueError(f"LoRA: there is no file {path}")
  return tensor_file.open_safetensors(path)


def _is_own(file: tensor_file.TensorFile) -> bool:
  """Whether it has our own format; ValueError for another version of it."""
  found = file.values.get(FORMAT_KEY, "")
  if found and found != FORMAT:
    raise ValueError(
      f"{file.source}: expected the format '{FORMAT}', found"
      f" '{untrusted.printable(found, 40)}'"
    )
  return bool(found)


def _named(
  file: tensor_file.TensorFile, config: AV[dit.DiTConfig]
) -> tuple[list[_Named], list[str]]:
  """The tensors of a file by what they update, and notes."""
  table, is_own = names.table(config), _is_own(file)
  slots = {t.slot: t for t in table.targets.values()}
  found: list[_Named] = []
  unknown: list[str] = []
  absent: list[str] = []
  others: list[str] = []
  both = _of_both(config)
  for name in file.spans:
    each = _own(name, slots) if is_own else _foreign(name, table)
    if each is not None:
      found.append(each)
    elif names.ABSENT.search(name):
      absent.append(name)
    elif both is not None and _is_of(name, both, is_own):
      others.append(name)
    else:
      unknown.append(name)
  if unknown:
    _check_widths(file, found, config)
    raise ValueError(_unknown(file, unknown, config))
  notes = []
  if others:
    (tower,) = config.present()
    other = "audio" if tower == "video" else "video"
    what = f"of the {other} tower, or of layers between the towers"
    if not found:
      raise ValueError(
        f"{file.source}: all {untrusted.counted(len(others), 'tensor')} are"
        f" {what}, and the {tower} tower is used alone; leave out"
        f" --generate={tower}, or the LoRA"
      )
    notes.append(
      f"{file.source}: left out: {untrusted.counted(len(others), 'tensor')}"
      f" {what}, the first is '{untrusted.printable(others[0])}'"
    )
  if absent:
    notes.append(
      f"{file.source}: left out: {untrusted.counted(len(absent), 'tensor')} of"
      " layers for image embeddings, the first is"
      f" '{untrusted.printable(absent[0])}'"
    )
  return found, notes


def _of_both(config: AV[dit.DiTConfig]) -> AV[dit.DiTConfig] | None:
  """Both towers, with the sizes of the only one; None if there are two."""
  found = list(config.present().items())
  if len(found) != 1:
    return None
  ((tower, sizes),) = found
  patch = (1,) if tower == "video" else (1, 2, 2)
  other = dataclasses.replace(sizes, patch=patch)
  return AV(sizes, other) if tower == "video" else AV(other, sizes)


def _is_of(name: str, config: AV[dit.DiTConfig], is_own: bool) -> bool:
  """Whether a tensor updates something of these towers."""
  table = names.table(config)
  if is_own:
    return _own(name, {t.slot: t for t in table.targets.values()}) is not None
  return _foreign(name, table) is not None


def _own(
  name: str, slots: Mapping[adapter.Slot, names.Target]
) -> _Named | None:
  """A tensor of our own format."""
  if (match := _OWN.fullmatch(name)) is None:
    return None
  block, part = match["block"], _OWN_PARTS[match["part"]]
  path = match["layer"] if part == DIFF else f"{match['layer']}/kernel"
  slot = adapter.Slot(path, None if block is None else int(block))
  if slot not in slots:
    return None
  return _Named(name, slots[slot], part)


def _foreign(name: str, table: names.Table) -> _Named | None:
  """A tensor of a format of other tools."""
  if match := _PAIR.fullmatch(name):
    part, kind = _PARTS[match["part"]], names.WEIGHT
  elif match := _OTHER.fullmatch(name):
    kind = _KINDS.get(match["part"], names.WEIGHT)
    part = ALPHA if match["part"] == ALPHA else DIFF
  else:
    return None
  named = match["layer"]
  if match["part"] == "diff" and (table_of := _MODULATION.fullmatch(named)):
    named, kind = table_of["layer"], names.MODULATION
  layer = table.layer(named)
  target = table.targets.get((layer or "", kind))
  if target is None or (
    part != DIFF and not target.slot.path.endswith(f"/{low_rank.KERNEL}")
  ):
    return None
  return _Named(name, target, part)


def _unknown(
  file: tensor_file.TensorFile,
  unknown: Sequence[str],
  config: AV[dit.DiTConfig],
) -> str:
  """What to say about tensors that are none of a LoRA of the towers."""
  shown = untrusted.printable(unknown[0])
  for part, kind in _OTHER_KINDS.items():
    if any(part in name for name in unknown):
      return (
        f"{file.source}: expected a LoRA, found {kind}, which is not supported;"
        " merge it into the weights with the tool that made it"
      )
  towers = " and ".join(config.present())
  others = [n for n in unknown if not normalize.ADAPTER.search(n)]
  if len(others) == len(unknown):
    return (
      f"{file.source}: {len(unknown)} of {len(file.spans)} tensors are none of"
      f" a LoRA, the first is '{shown}'; expected names such as"
      " 'diffusion_model.blocks.0.self_attn.q.lora_A.weight'"
    )
  return (
    f"{file.source}: {len(unknown)} of {len(file.spans)} tensors are of layers"
    f" that the model ({towers}, {_blocks(config)} blocks) lacks, the first is"
    f" '{shown}'; it is a LoRA of another model, or of a tool whose names are"
    " not known"
  )


def _blocks(config: AV[dit.DiTConfig]) -> int:
  return next(iter(config.present().values())).num_layers


def _check_widths(
  file: tensor_file.TensorFile,
  found: Iterable[_Named],
  config: AV[dit.DiTConfig],
) -> None:
  """ValueError for a LoRA of a model of another width."""
  for each in found:
    slot, shape = each.target.slot, file.spans[each.name].shape
    has_width = _OF_WIDTH.fullmatch(slot.path) is not None
    if not has_width or each.part != DOWN or len(shape) != 2 or _is_own(file):
      continue
    width = getattr(config, slot.tower).hidden_dim
    if shape[1] != width:
      known = _MODELS.get(shape[1])
      what = f" ({known})" if known else ""
      raise ValueError(
        f"{file.source}: a LoRA of a model of width {shape[1]}{what}; the"
        f" {slot.tower} tower's is {width}"
      )


def _check(
  file: tensor_file.TensorFile,
  named: Sequence[_Named],
  by_slot: Mapping[tuple[adapter.Slot, str], _Named],
  config: AV[dit.DiTConfig],
) -> None:
  """Check dtypes, pairs and shapes; reads no tensor.

  Raises:
    ValueError: one line for the first kind of problem.
  """
  wrong = [
    f"'{untrusted.printable(each.name)}' is {file.dtypes[each.name]}"
    for each in named
    if file.dtypes[each.name] not in _DTYPES
    and not (each.part == ALPHA and file.dtypes[each.name].kind in "iuf")
  ]
  _refuse(file, wrong, f"expected tensors of {', '.join(DTYPES)}")
  _check_widths(file, named, config)
  empty = [
    f"'{untrusted.printable(each.name)}' has shape {file.shapes[each.name]}"
    for each in named
    if 0 in file.shapes[each.name]
  ]
  _refuse(file, empty, "tensors have no elements")
  lonely = [
    f"'{untrusted.printable(each.name)}'"
    for (slot, part), each in by_slot.items()
    if (part == DOWN and (slot, UP) not in by_slot)
    or (part == UP and (slot, DOWN) not in by_slot)
    or (part == ALPHA and (slot, DOWN) not in by_slot)
  ]
  _refuse(file, lonely, "a pair of lora_down and lora_up is incomplete")
  problems = []
  for (slot, part), each in by_slot.items():
    shape = file.shapes[each.name]
    if part == DIFF:
      ok = _fits(each, shape, config, _is_own(file))
    elif part == DOWN:
      up = file.shapes[by_slot[slot, UP].name]
      ok = _pair_fits(each, shape, up, config, _is_own(file))
      if ok and (rank := _rank(up, _is_own(file))) > _max_rank(slot, config):
        raise ValueError(
          f"{file.source}: expected ranks of at most {_max_rank(slot, config)},"
          f" '{untrusted.printable(each.name)}' has {rank}"
        )
    else:
      ok = part == UP or math.prod(shape) == 1
    if not ok:
      problems.append(f"'{untrusted.printable(each.name)}' has shape {shape}")
  _refuse(file, problems, "shapes do not fit the model")
  if not any(part in (DOWN, DIFF) for _, part in by_slot):
    raise ValueError(f"{file.source}: expected a LoRA, found no updates")


def _refuse(
  file: tensor_file.TensorFile, problems: Sequence[str], what: str
) -> None:
  """ValueError for problems of one kind."""
  if problems:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise ValueError(f"{file.source}: {what}: {problems[0]}{more}")


def _shape_of(slot: adapter.Slot, config: AV[dit.DiTConfig]) -> tuple[int, ...]:
  """The shape of a parameter, of one block."""
  shape = names.shapes(config)[slot.path]
  return shape if slot.block is None else shape[1:]


def _fits(
  each: _Named, shape: tuple[int, ...], config: AV[dit.DiTConfig], is_own: bool
) -> bool:
  """Whether a tensor has the shape of the parameter that it updates."""
  expected = _shape_of(each.target.slot, config)
  if is_own:
    return shape == expected
  try:
    return each.target.row.op.shape(shape) == expected
  except ValueError:
    return False


def _pair_fits(
  each: _Named,
  down: tuple[int, ...],
  up: tuple[int, ...],
  config: AV[dit.DiTConfig],
  is_own: bool,
) -> bool:
  """Whether a pair updates the kernel of its target."""
  if len(down) < 2 or len(up) < 2:
    return False
  *inputs, outputs = _shape_of(each.target.slot, config)
  rank = _rank(up, is_own)
  if is_own:
    return down == (*inputs, rank) and up == (rank, outputs)
  # A kernel of a convolution has more axes than our input.
  axes = layouts.torch_inputs(each.target, (*inputs, outputs))
  return (
    up[:2] == (outputs, rank)
    and math.prod(up[2:]) == 1
    and down in ((rank, *axes), (rank, math.prod(axes)))
  )


def _rank(up: tuple[int, ...], is_own: bool) -> int:
  """The rank of a pair by the shape of its lora_up."""
  return up[0] if is_own else up[1]


def _max_rank(slot: adapter.Slot, config: AV[dit.DiTConfig]) -> int:
  """The largest rank of an update: that of the kernel, or the tower's width."""
  *inputs, outputs = _shape_of(slot, config)
  width = getattr(config, slot.tower).hidden_dim
  return max(width, min(math.prod(inputs), outputs))


def _finite(file: tensor_file.TensorFile, name: str) -> np.ndarray:
  """A tensor without NaN and infinity."""
  array = file.read(name)
  if not normalize.is_finite(array):
    raise ValueError(
      f"{file.source}: tensor '{untrusted.printable(name)}' holds NaN or"
      " infinity; the file is damaged, or its training diverged"
    )
  return array


def _alphas(
  file: tensor_file.TensorFile,
  by_slot: Mapping[tuple[adapter.Slot, str], _Named],
) -> dict[adapter.Slot, float]:
  """alpha of each pair; empty if the file has none.

  Raises:
    ValueError: some pairs have alpha and others do not, or it is no number.
  """
  slots = [slot for slot, part in by_slot if part == DOWN]
  found: dict[adapter.Slot, float] = {}
  for slot in slots:
    if each := by_slot.get((slot, ALPHA)):
      found[slot] = float(_finite(file, each.name).reshape(()))
  if not found:
    return _peft_alphas(file, by_slot)
  if lacking := [slot for slot in slots if slot not in found]:
    name = untrusted.printable(by_slot[lacking[0], DOWN].name)
    raise ValueError(
      f"{file.source}: {len(lacking)} of {len(slots)} pairs have no alpha, the"
      f" first is '{name}'; expected one for all or for none"
    )
  return found


def _peft_alphas(
  file: tensor_file.TensorFile,
  by_slot: Mapping[tuple[adapter.Slot, str], _Named],
) -> dict[adapter.Slot, float]:
  """alpha of each pair that has one in the metadata."""
  if not (text := file.values.get(peft.KEY)):
    return {}
  ranks = {
    match["layer"]: next(iter(file.shapes[match.string]), 0)
    for match in filter(None, map(_PAIR.fullmatch, file.spans))
    if _PARTS[match["part"]] == DOWN
  }
  try:
    alphas = peft.alphas(text, ranks)
  except ValueError as error:
    raise ValueError(f"{file.source}: {error}") from error
  found: dict[adapter.Slot, float] = {}
  for (slot, part), each in by_slot.items():
    match = _PAIR.fullmatch(each.name)
    if part == DOWN and match and match["layer"] in alphas:
      found[slot] = alphas[match["layer"]]
  return found


def write(
  path: str | os.PathLike[str],
  lora: adapter.Adapter,
  config: AV[dit.DiTConfig],
  style: str = names.COMFYUI,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Write a LoRA file.

  Args:
    path: of the file.
    lora: what to write, in its dtype, see `Adapter.astype`.
    config: the towers that it is for.
    style: one of `names.FORMATS`. "diffusers" has names for Wan's layers only.
      If all updates are of Wan's layers, the tower has no prefix in names, so
      that tools for Wan2.2-TI2V-5B can read the file.
    metadata: text by name; by default that of the LoRA.

  Raises:
    ValueError: the format is unknown, or lacks names for some layers.
    OSError: the file cannot be written.
  """
  if style not in names.FORMATS:
    raise ValueError(
      f"LoRA format {style!r} is unknown; choose from"
      f" {', '.join(names.FORMATS)}"
    )
  tensors = (
    _own_tensors(lora)
    if style == names.OWN
    else _foreign_tensors(lora, config, style)
  )
  text = dict(lora.metadata if metadata is None else metadata)
  text.pop(FORMAT_KEY, None)
  if style == names.OWN:
    text[FORMAT_KEY] = FORMAT
  if style == names.DIFFUSERS:
    table = names.table(config)
    layers = {table.written(s, style, True): p for s, p in lora.pairs.items()}
    text |= peft.metadata(layers)
  with weights.Writer(path, tensors, text) as writer:
    for name, array in tensors.items():
      writer.write(name, None, array)


def _own_tensors(lora: adapter.Adapter) -> dict[str, np.ndarray]:
  """Tensors of our own format."""
  found: dict[str, np.ndarray] = {}
  for slot, pair in lora.pairs.items():
    end = "" if slot.block is None else f"/{slot.block}"
    found[low_rank.beside(slot.path, low_rank.DOWN) + end] = pair.down
    found[low_rank.beside(slot.path, low_rank.UP) + end] = pair.up
    if pair.alpha is not None:
      alpha = np.asarray(pair.alpha, np.float32)
      found[low_rank.beside(slot.path, "lora_alpha") + end] = alpha
  for slot, delta in lora.deltas.items():
    end = "" if slot.block is None else f"/{slot.block}"
    found[f"{slot.path}/diff{end}"] = delta
  return found


def is_wan(slot: adapter.Slot) -> bool:
  """Whether Wan2.2-TI2V-5B has the layer."""
  return slot.tower == "video" and not slot.is_fusion


def _foreign_tensors(
  lora: adapter.Adapter, config: AV[dit.DiTConfig], style: str
) -> dict[str, np.ndarray]:
  """Tensors of a format of other tools."""
  table = names.table(config)
  slots = {t.slot: t for t in table.targets.values()}
  others = [s for s in (*lora.pairs, *lora.deltas) if not is_wan(s)]
  if others and style == names.DIFFUSERS:
    raise ValueError(
      f"the format {style} has no name for {len(others)} updates, the first is"
      f" of {others[0].path}; write the video tower alone (--wan)"
    )
  down, up = ("down", "up") if style == names.MUSUBI else ("A", "B")
  found: dict[str, np.ndarray] = {}
  for slot, pair in lora.pairs.items():
    layer = table.written(slot, style, bare=not others)
    target = slots[slot]
    found[f"{layer}.lora_{down}.weight"] = layouts.down_to_torch(
      pair.down, target
    )
    found[f"{layer}.lora_{up}.weight"] = layouts.up_to_torch(pair, target)
    if pair.alpha is not None and style != names.DIFFUSERS:
      found[f"{layer}.alpha"] = np.asarray(pair.alpha, np.float32)
  ends = {kind: name for name, kind in _KINDS.items()}
  for slot, delta in lora.deltas.items():
    layer = table.written(slot, style, bare=not others)
    kind = table.names[slot][1]
    (found[f"{layer}.{ends[kind]}"],) = slots[slot].row.op.to_torch(delta)
  return {name: np.ascontiguousarray(x) for name, x in found.items()}
