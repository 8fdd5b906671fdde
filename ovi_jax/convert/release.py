"""A release directory: which file holds which component, under which names."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax.convert import audio_vae
from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import umt5
from ovi_jax.convert import video_vae
from ovi_jax.convert import vocoder
from ovi_jax.convert.dialects import Dialect
from ovi_jax.modality import AV

TOKENIZER = "Wan2.2-TI2V-5B/google/umt5-xxl"
# What a release directory holds.
FOLDERS = ("Ovi", "Wan2.2-TI2V-5B", "MMAudio")
# The transformer of Wan2.2-TI2V-5B on its own: the video tower that fusion
# training starts from.
WAN = "wan2.2_ti2v_5b"
WAN_TRANSFORMER = "Wan2.2-TI2V-5B/diffusion_pytorch_model*.safetensors"


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
  dialects: tuple[Dialect, ...] = ()
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
    variant: a released variant, `WAN`, or `None` for weights of other sizes:
      the one checkpoint under `Ovi/` is then meant, or Wan's transformer if
      there is none and `config` has a video tower alone.
    release: the release directory; `None` if the file is named elsewhere.
    config: sizes of the component.

  Raises:
    ValueError: an unknown variant, or no single checkpoint under `Ovi/`.
  """
  if component != "fusion":
    return SOURCES[component]
  if variant == WAN:
    return Source(
      file=WAN_TRANSFORMER, rows=_wan_rows, dialects=fusion.DIALECTS
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
  return (*geometry.VARIANTS, WAN)


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


def _wan_rows(config: AV[Any]) -> Sequence[mapping.Row]:
  return fusion.wan_rows(config.video)
