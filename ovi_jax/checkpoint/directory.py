"""A directory of converted weights, as `convert_torch_weights.py` leaves it.

ovi_jax.json        what it holds: variant, sizes, identity of each component
<component>.safetensors
tokenizer.json
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ovi_jax import geometry
from ovi_jax.models import architecture

MANIFEST = "ovi_jax.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1
CUSTOM = "custom"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """What a directory of weights holds.

  Attributes:
    variant: released variant, or `None` for weights of other sizes.
    sizes: of the architecture, in the original's form.
    digests: sha256 of the contents of each component present.
    version: of ovi_jax that wrote it.
  """

  variant: str | None
  sizes: Mapping[str, Any]
  digests: Mapping[str, str]
  version: str
  format: int = FORMAT

  @property
  def architecture(self) -> architecture.Architecture:
    return architecture.Architecture.from_release(self.sizes)

  @property
  def geometry(self) -> geometry.Variant:
    """Length and area of the clips these weights make.

    Raises:
      ValueError: weights of other sizes without `latents`.
    """
    if self.variant is not None:
      return geometry.variant(self.variant)
    clip = self.architecture.clip
    if clip is None:
      raise ValueError(
        "weights of other sizes need default 'latents' in their --arch file"
      )
    height, width = clip.pixels
    return geometry.Variant(
      name=CUSTOM,
      checkpoint="",
      area=height * width,
      latent_frames=clip.latent_frames,
      audio_latents=clip.audio_latents,
      audio_tag="",
    )

  def save(self, directory: pathlib.Path) -> None:
    """Write the manifest, whole or not at all."""
    path = directory / MANIFEST
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
    os.replace(partial, path)


def component_file(directory: pathlib.Path, component: str) -> pathlib.Path:
  """Where the weights of a component lie."""
  return directory / f"{component}.safetensors"


def read(
  directory: str | os.PathLike[str],
  variant: str = "",
  needs: tuple[str, ...] = architecture.COMPONENTS,
) -> Manifest:
  """Read what a directory holds and see that the files are there.

  Args:
    directory: of converted weights.
    variant: insist on this variant; empty takes what is there.
    needs: components that must be present.

  Raises:
    ValueError: the directory, a file or a component is missing, the manifest
      is damaged or of another format, or the variant is another; says which
      file is expected where and how to make it.
  """
  directory = pathlib.Path(directory)
  if variant:
    geometry.variant(variant)
  path = directory / MANIFEST
  if not path.is_file():
    what = "is missing" if directory.is_dir() else "has no directory"
    raise ValueError(
      f"weights: {path} {what}; make it with `python convert_torch_weights.py"
      f" --release=DIR --variant={variant or 'VARIANT'} --out={directory}`"
    )
  try:
    manifest = Manifest(**json.loads(path.read_text()))
  except (TypeError, ValueError) as error:
    raise ValueError(f"weights: {path} is damaged ({error})") from error
  if manifest.format != FORMAT:
    raise ValueError(
      f"weights: {path} has format {manifest.format}, expected {FORMAT};"
      " convert the release again"
    )
  found = manifest.variant or CUSTOM
  if variant and variant != found:
    checkpoint = geometry.variant(variant).checkpoint
    raise ValueError(
      f"weights in {directory} are of variant {found}, not {variant}; convert"
      f" Ovi/{checkpoint} with --variant={variant}, or leave config.variant"
      " empty"
    )
  expected = [component_file(directory, c) for c in needs]
  if "umt5" in needs:
    expected.append(directory / TOKENIZER)
  absent = [str(p) for p in expected if not p.is_file()]
  if absent:
    raise ValueError(
      f"weights: missing {', '.join(absent)}; convert the release again"
    )
  return manifest
