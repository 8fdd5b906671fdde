"""A release directory: which file holds which component, under which names.

`kind` and `misfit` say in one line what an unexpected file of tensors is.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax import untrusted
from ovi_jax.convert import audio_vae
from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import normalize
from ovi_jax.convert import reader
from ovi_jax.convert import umt5
from ovi_jax.convert import video_vae
from ovi_jax.convert import vocoder
from ovi_jax.modality import AV
from ovi_jax.models import architecture
from ovi_jax.pretrained import tensor_file

TOKENIZER = "Wan2.2-TI2V-5B/google/umt5-xxl"
# What a release directory holds.
FOLDERS = ("Ovi", "Wan2.2-TI2V-5B", "MMAudio", "DreamID_Omni")
# The transformer of Wan2.2-TI2V-5B on its own: the video tower that fusion
# training starts from.
WAN = "wan2.2_ti2v_5b"
WAN_TRANSFORMER = "Wan2.2-TI2V-5B/diffusion_pytorch_model*.safetensors"
# DreamID-Omni (github.com/Guoxu1233/DreamID-Omni): Ovi's towers, trained on
# with reference pictures and voices. It has the tensors of Ovi's checkpoints,
# name by name.
DREAMID = "dreamid_omni"
DREAMID_CHECKPOINT = "DreamID_Omni/dreamid_omni.safetensors"
# Ratio of its clips' video to audio latents, 31 / 157, in bfloat16: with it the
# original turns the positions of sound, whatever its JSON file says.
_DREAMID_ROPE = 0.197265625
_DREAMID_CLIP = {"T": 31, "H": 44, "W": 80, "A": 157}
# Where the settings of its inference differ from Ovi's. Its scale of the voice
# term is 2; here 1 is no guidance.
_DREAMID_SAMPLING: Mapping[str, Any] = {
  "guidance_scale": {"video": 3.0, "audio": 4.0},
  "slg_layer": 0,
  "conditioning": "renoise",
  "voice_guidance_scale": 3.0,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where a component lies in a release.

  Attributes:
    file: path below the release directory, or a pattern of shards.
    rows: from the component's config to its table.
    key: the dictionary entry under which a torch file is exported.
    dialects: other names of the table's tensors.
    towers: prefixes that a file of one tower may lack.
  """

  file: str
  rows: Callable[[Any], Sequence[mapping.Row]]
  key: str | None = None
  dialects: tuple[mapping.Dialect, ...] = ()
  towers: tuple[str, ...] = ()


SOURCES = {
  "umt5": Source(
    file="Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth",
    rows=umt5.rows,
    dialects=umt5.DIALECTS,
  ),
  "video_vae": Source(
    file="Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
    rows=video_vae.rows,
    dialects=video_vae.DIALECTS,
  ),
  "audio_vae": Source(
    file="MMAudio/ext_weights/v1-16.pth", rows=audio_vae.rows
  ),
  "vocoder": Source(
    file="MMAudio/ext_weights/best_netG.pt",
    rows=vocoder.rows,
    key="generator",
    dialects=vocoder.DIALECTS,
  ),
}


def source(
  component: str,
  variant: str | None,
  release: pathlib.Path | None = None,
  config: Any = None,
) -> Source:
  """Where `component` of a variant lies.

  Args:
    component: one of `architecture.COMPONENTS`.
    variant: a released variant, `WAN`, `DREAMID`, or `None` for other sizes:
      the one checkpoint under `Ovi/` is then meant, or Wan's transformer if
      there is none and `config` has a video tower alone.
    release: the release directory; `None` if the file is named elsewhere.
    config: sizes of the component.

  Raises:
    ValueError: an unknown variant, or no single checkpoint under `Ovi/`.
  """
  if component != "fusion":
    return SOURCES[component]
  if variant == DREAMID:
    return Source(
      file=DREAMID_CHECKPOINT,
      rows=fusion.rows,
      dialects=fusion.DIALECTS,
      towers=tuple(fusion.PREFIXES),
    )
  if variant == WAN:
    return Source(
      file=WAN_TRANSFORMER,
      rows=lambda config: fusion.wan_rows(config.video),
      dialects=fusion.DIALECTS,
    )
  file = ""
  if variant is not None:
    file = f"Ovi/{geometry.variant(variant).checkpoint}"
  elif release is not None:
    file = _only(release, config)
  return Source(
    file=file,
    rows=fusion.rows,
    dialects=fusion.DIALECTS,
    towers=tuple(fusion.PREFIXES),
  )


def target(component: str, variant: str | None) -> Source:
  """Where an exported component goes: one file, never shards."""
  if component == "fusion" and variant is None:
    variant = next(iter(geometry.VARIANTS))
  found = source(component, variant)
  return dataclasses.replace(found, file=found.file.replace("*", ""))


def known_variants() -> tuple[str, ...]:
  """Names for `--variant`."""
  return (*geometry.VARIANTS, WAN, DREAMID)


def sizes_of(variant: str) -> Mapping[str, Any]:
  """Sizes of a known variant, in the original's form."""
  sizes: Mapping[str, Any] = architecture.released_sizes()
  if variant != DREAMID:
    return sizes
  rope = {"temporal_rope_scaling_factor": _DREAMID_ROPE}
  audio = {**sizes["fusion"]["audio"], **rope}
  towers = {**sizes["fusion"], "audio": audio}
  return {**sizes, "fusion": towers, "latents": dict(_DREAMID_CLIP)}


def sampling_of(variant: str | None) -> Mapping[str, Any]:
  """Sampling settings that are published for a variant, if not Ovi's."""
  return _DREAMID_SAMPLING if variant == DREAMID else {}


def _only(release: pathlib.Path, config: AV[Any] | None) -> str:
  """The checkpoint of weights that are no released variant."""
  names = [v.checkpoint for v in geometry.VARIANTS.values()]
  found = [n for n in names if (release / "Ovi" / n).is_file()]
  alone = config is not None and tuple(config.present()) == ("video",)
  if not found and alone and list(release.glob(WAN_TRANSFORMER)):
    return WAN_TRANSFORMER
  if len(found) != 1:
    raise ValueError(
      f"expected one checkpoint in {release / 'Ovi'}, named one of {names};"
      f" found {found or 'none'}; name the file with --fusion=FILE"
    )
  return f"Ovi/{found[0]}"


# Names beside, or in place of, the quantized weights of other tools.
_QUANTIZED = (
  r"\.(?:qweight|qzeros|g_idx|absmax|nested_absmax|quant_map|SCB|quant_state"
  r"|weight_format|weight\._data|weight\._scale|input_scale|output_scale)\b"
)
# What most names of a file match -> what the file is.
_KINDS = {
  normalize.ADAPTER.pattern: (
    "a LoRA file: it changes a model and is none; use the model's own file"
  ),
  _QUANTIZED: "weights quantized by another tool; use the 16-bit file",
  r"(?:exp_avg|exp_avg_sq|fp32_flat_groups|optimizer)\b": (
    "an optimizer's state; use the file of the model"
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
  for other, rows, source in _tables():
    if other == component:
      continue
    try:
      fits = normalize.normalize([file], rows, source.dialects, source.towers)
    except ValueError:
      continue
    dialect = f", as {fits.dialect} names them" if fits.dialect else ""
    return f"the tensors of {other}{dialect}; pass it with --{other}=FILE"
  for pattern, what in _KINDS.items():
    found = sum(bool(re.search(pattern, name)) for name in names)
    if found >= _SHARE * len(names):
      return what
  listed = untrusted.printable(", ".join(names[:3]))
  return f"another model; its first tensors are {listed}"


def _tables() -> Iterator[tuple[str, Sequence[mapping.Row], Source]]:
  """(component, table, source) at the released sizes."""
  sizes: Mapping[str, Any] = architecture.released_sizes()
  arch = architecture.Architecture.from_release(sizes)
  variant = known_variants()[0]
  for component in architecture.COMPONENTS:
    found = source(component, variant)
    yield component, found.rows(arch.config(component)), found


def misfit(
  component: str, config: Any, tensors: normalize.Normalized
) -> str | None:
  """What a file of the right names and wrong sizes is, if that is known."""
  if any(re.search(_QUANTIZED, name) for name in tensors.shapes):
    return f"it holds {_KINDS[_QUANTIZED]}"
  if component == "fusion":
    return (
      _other_transformer(config, tensors)
      or _missing_shards(component, tensors)
      or _incomplete(config, tensors.shapes)
    )
  other = _other_text_encoder if component == "umt5" else _other_mel_bins
  return _missing_shards(component, tensors) or other(config, tensors)


def _other_transformer(
  config: Any, tensors: normalize.Normalized
) -> str | None:
  """What a transformer of another width is."""
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
  return None


def _other_text_encoder(
  config: Any, tensors: normalize.Normalized
) -> str | None:
  """What a text encoder of the T5 family is that is not the expected UMT5."""
  shapes = tensors.shapes
  rows = (*shapes.get("token_embedding.weight", ()), 0)[0]
  width = (*shapes.get("norm.weight", ()), 0)[0]
  biases = [name for name in shapes if ".pos_embedding." in name]
  blocks = _blocks(shapes)
  first = "blocks.0.pos_embedding.embedding.weight"
  is_whole = rows > 0 and width > 0
  if any(name.endswith(".DenseReluDense.wi.weight") for name in shapes):
    what = "T5 1.0"
  elif biases == [first] and blocks > 1 and is_whole:
    # T5 1.1 (also Flan-T5) and mT5 differ in their vocabulary alone.
    what = "mT5" if rows > _T5_ROWS else "T5 1.1"
  elif width and width != config.dim:
    return (
      f"this is another text encoder, of width {width} with {blocks} blocks;"
      f" expected width {config.dim} with {config.num_layers}"
    )
  else:
    return None
  return f"this is the text encoder of {what}; Ovi needs that of UMT5-XXL"


_T5_ROWS = 32_128
# Tensors of the audio VAE and the vocoder, the latter with and without weight
# normalization, whose second axis is the bins of the spectrogram.
_OF_MEL_BINS = (
  "encoder.conv_in.weight",
  "conv_pre.parametrizations.weight.original1",
  "conv_pre.weight",
)


def _other_mel_bins(config: Any, tensors: normalize.Normalized) -> str | None:
  """What an audio VAE or vocoder of other spectrograms is."""
  bins = getattr(config, "mel_bins", getattr(config, "data_dim", None))
  for name in _OF_MEL_BINS if bins else ():
    shape = tensors.shapes.get(name, ())
    if len(shape) > 1 and shape[1] != bins:
      known = " (MMAudio's of 44.1 kHz have 128)" if shape[1] == 128 else ""
      return (
        f"it is made for spectrograms of {shape[1]} mel bins{known}, expected"
        f" {bins}"
      )
  return None


def _missing_shards(
  component: str, tensors: normalize.Normalized
) -> str | None:
  """Which shards of a model are missing, going by the names of the files."""
  found: dict[tuple[str, str, str], set[int]] = {}
  for path in {tensor.span.path for tensor in tensors.tensors.values()}:
    if shard := reader.SHARD.fullmatch(str(path)):
      stem, number, total, suffix = shard.groups()
      found.setdefault((stem, total, suffix), set()).add(int(number))
  for (stem, total, suffix), numbers in found.items():
    if len(numbers) < int(total):
      listed = ", ".join(map(str, sorted(numbers)))
      return (
        f"it is shard {listed} of {int(total)} alone; pass all of them, as in"
        f" --{component}='{stem}-*-of-{total}{suffix}'"
      )
  return None


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
    joining = sum("_fusion" in name for name in names)
    if not joining:
      return None
    (tower,) = towers
    return (
      f"this is the {tower} tower of an Ovi checkpoint, with"
      f" {untrusted.counted(joining, 'tensor')} that join it to the other"
      " tower, and sizes of one tower were given; convert both towers"
      " (--fusion=VIDEO,AUDIO with --variant), or save the tower without the"
      " tensors that have '_fusion' in their names"
    )
  present = [
    t
    for t in towers
    if any(n.startswith(getattr(fusion.PREFIXES, t)) for n in names)
  ]
  if len(present) == 1:
    return (
      f"this is the {present[0]} tower alone; pass the other tower's file too,"
      " as in --fusion=VIDEO,AUDIO (or FILE::video,FILE::audio of one file), or"
      " sizes of one tower"
    )
  if not any("_fusion" in name for name in names):
    return "these towers have no attention to each other: they are not Ovi's"
  return None
