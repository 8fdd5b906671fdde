"""A release directory: which file holds which component, under which names."""

import dataclasses
import pathlib
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from ovi_jax import geometry
from ovi_jax.checkpoint import tensor_file
from ovi_jax.convert import audio_vae
from ovi_jax.convert import fusion
from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.convert import umt5
from ovi_jax.convert import video_vae
from ovi_jax.convert import vocoder
from ovi_jax.modality import AV

TOKENIZER = "Wan2.2-TI2V-5B/google/umt5-xxl"
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
    key: for a torch file, the dictionary entry that holds the tensors.
  """

  file: str
  rows: Callable[[Any], Sequence[mapping.Row]]
  key: str | None = None

  def open(self, release: pathlib.Path) -> tensor_file.TensorFile:
    """The component's tensors; ValueError says which file is expected."""
    return reader.open_tensors(release / self.file, self.key)


SOURCES = {
  "umt5": Source(
    file="Wan2.2-TI2V-5B/models_t5_umt5-xxl-enc-bf16.pth", rows=umt5.rows
  ),
  "video_vae": Source(
    file="Wan2.2-TI2V-5B/Wan2.2_VAE.pth", rows=video_vae.rows
  ),
  "audio_vae": Source(
    file="MMAudio/ext_weights/v1-16.pth", rows=audio_vae.rows
  ),
  "vocoder": Source(
    file="MMAudio/ext_weights/best_netG.pt",
    rows=vocoder.rows,
    key="generator",
  ),
}


def source(
  component: str, variant: str | None, release: pathlib.Path
) -> Source:
  """Where `component` of a variant lies.

  Args:
    component: one of `architecture.COMPONENTS`.
    variant: a released variant, `WAN`, or `None` for weights of other sizes:
      the one checkpoint under `Ovi/` is then meant.
    release: the release directory.

  Raises:
    ValueError: an unknown variant, or no single checkpoint under `Ovi/`.
  """
  if component != "fusion":
    return SOURCES[component]
  if variant == WAN:
    return Source(file=WAN_TRANSFORMER, rows=_wan_rows)
  name = variant and geometry.variant(variant).checkpoint
  return Source(file=f"Ovi/{name or _only(release)}", rows=fusion.rows)


def target(component: str, variant: str | None) -> Source:
  """Where an exported component goes: one file, never shards."""
  if component == "fusion" and variant is None:
    variant = next(iter(geometry.VARIANTS))
  found = source(component, variant, pathlib.Path())
  return dataclasses.replace(found, file=found.file.replace("*", ""))


def known_variants() -> tuple[str, ...]:
  """Names for `--variant`."""
  return (*geometry.VARIANTS, WAN)


def _only(release: pathlib.Path) -> str:
  """The checkpoint of weights that are no released variant."""
  names = [v.checkpoint for v in geometry.VARIANTS.values()]
  found = [n for n in names if (release / "Ovi" / n).is_file()]
  if len(found) != 1:
    raise ValueError(
      f"expected one checkpoint in {release / 'Ovi'}, named one of {names};"
      f" found {found or 'none'}"
    )
  return found[0]


def _wan_rows(config: AV[Any]) -> Sequence[mapping.Row]:
  return fusion.wan_rows(config.video)
