"""A directory of converted weights, written by `convert_torch_weights.py`.

All weights that `sample.py` and `train.py` read have this form:

  ovi_jax.json             the manifest: variant, sizes, component digests
  <component>.safetensors  parameters of fusion, umt5, video_vae, audio_vae,
                           vocoder, by path
  tokenizer.json           the text encoder's tokenizer, and other tokenizer
                           files of the release
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import overload

from flax import traverse_util

import ovi_jax
from ovi_jax import cli
from ovi_jax import files
from ovi_jax import geometry
from ovi_jax import storage
from ovi_jax import untrusted
from ovi_jax.models import architecture
from ovi_jax.models import quantized
from ovi_jax.pretrained import weights

MANIFEST = "ovi_jax.json"
TOKENIZER = "tokenizer.json"
# Kept beside the tokenizer where a release has them.
TOKENIZER_FILES = (
  TOKENIZER,
  "tokenizer_config.json",
  "special_tokens_map.json",
  "spiece.model",
)
FORMAT = 1
CUSTOM = "custom"
_LISTED = 4  # differences in a message
_MAX_MANIFEST = 1 << 20  # bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
  """Contents of ovi_jax.json.

  Attributes:
    variant: name of the released variant, or `None` for other sizes.
    sizes: architecture of each component, with the original's names of sizes.
    digests: sha256 of the contents of each component present, and of the
      tokenizer file under `tokenizer`.
    version: version of ovi_jax that wrote it.
    format: version of this format.
    sampling: recommended sampling settings that differ from the published ones,
      see `sampling.settings.recommended`.
  """

  variant: str | None
  sizes: Mapping[str, Any]
  digests: Mapping[str, str]
  version: str
  format: int = FORMAT
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    expected = {
      "variant": str | None,
      "sizes": Mapping,
      "digests": Mapping,
      "version": str,
      "format": int,
      "sampling": Mapping,
    }
    for name, kind in expected.items():
      if not isinstance(value := getattr(self, name), kind):
        raise ValueError(f"{name}: got {value!r:.60}")
    for name, digest in self.digests.items():
      if not isinstance(digest, str):
        raise ValueError(f"digests.{name}: expected text, got {digest!r:.60}")

  @functools.cached_property
  def architecture(self) -> architecture.Architecture:
    return architecture.Architecture.from_release(self.sizes)

  @property
  def towers(self) -> tuple[str, ...]:
    """The modalities that `fusion` has a tower for."""
    return tuple(self.architecture.fusion.present())

  @property
  def geometry(self) -> geometry.Variant:
    """Length and area of the clips these weights make.

    Raises:
      ValueError: weights of other sizes without `latents`.
    """
    clip = self.architecture.clip
    is_ovi = self.variant in geometry.VARIANTS
    if self.variant is not None and (is_ovi or clip is None):
      return geometry.variant(self.variant)
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

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Write the manifest atomically.

    Args:
      directory: of the weights.
    """
    text = json.dumps(dataclasses.asdict(self), indent=1) + "\n"
    with files.atomic_path(storage.locate(directory) / MANIFEST) as temporary:
      temporary.write_text(text)


def released(variant: str) -> Manifest:
  """The manifest of a released variant without its weights, for shapes.

  Raises:
    ValueError: there is no variant of that name.
  """
  geometry.variant(variant)
  return Manifest(
    variant=variant,
    sizes=architecture.released_sizes(),
    digests={},
    version=ovi_jax.__version__,
  )


@overload
def component_file(directory: pathlib.Path, component: str) -> pathlib.Path: ...
@overload
def component_file(
  directory: storage.AnyPath, component: str
) -> storage.AnyPath: ...
def component_file(
  directory: storage.AnyPath, component: str
) -> storage.AnyPath:
  """The path of a component's weights file."""
  return directory / f"{component}.safetensors"


def link_roots(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders that links in a directory may point to: itself, a hub cache."""
  resolved = folder.resolve()
  caches = [
    parent.parent / "blobs"
    for parent in (resolved, *resolved.parents)
    if parent.name == "snapshots" and parent.parent.name.startswith("models--")
  ]
  return [resolved, *caches]


def link(
  source: storage.AnyPath, target: storage.AnyPath, components: Iterable[str]
) -> None:
  """Link, or copy, the files of some components, and the tokenizer's.

  To and from object stores they are copied.

  Raises:
    ValueError: a file of the tokenizer is a link to somewhere else; it could
      be any file of this machine.
  """
  names = [component_file(source, c).name for c in components]
  names = [n for n in (*TOKENIZER_FILES, *names) if (source / n).is_file()]
  if isinstance(source, pathlib.Path):
    _check_links(source)
  for name in names:
    if isinstance(source, pathlib.Path) and isinstance(target, pathlib.Path):
      files.link(source / name, target / name)
    else:
      with (
        storage.local_copy(source / name) as local,
        files.atomic_path(target / name) as temporary,
      ):
        files.link(local, temporary)


def _check_links(source: pathlib.Path) -> None:
  """ValueError if a file of the tokenizer is a link to somewhere else."""
  roots = link_roots(source)
  for path in (source / name for name in TOKENIZER_FILES):
    if path.is_file() and not any(map(path.resolve().is_relative_to, roots)):
      raise ValueError(
        f"{path} is a link to {path.resolve()}, outside of {source}; put the"
        " file itself there"
      )


def read(
  directory: str | os.PathLike[str],
  variant: str = "",
  needs: tuple[str, ...] = architecture.COMPONENTS,
) -> Manifest:
  """Read a directory of weights and check its files against the manifest.

  Only the headers of the files are read; a full-size release takes seconds.

  Args:
    directory: of converted weights.
    variant: require this variant; empty accepts any.
    needs: components that must be present.

  Returns:
    The manifest.

  Raises:
    ValueError: the directory, a file or a component is missing; the manifest is
      damaged or of another format; the variant differs; or a file has other
      parameters or another digest than the manifest. Names the expected file
      and the command that makes it.
  """
  directory = storage.locate(directory)
  if variant:
    geometry.variant(variant)
  manifest = manifest_of(directory, variant)
  found = manifest.variant or CUSTOM
  if variant and variant != found:
    checkpoint = geometry.variant(variant).checkpoint
    raise ValueError(
      f"weights in {directory} are of variant {found}, not {variant}; convert"
      f" Ovi/{checkpoint} with --variant={variant}, or leave config.variant"
      " empty"
    )
  _check_files(directory, needs)
  problems = list(manifest.architecture.misfits)
  for component in needs:
    problems += _misfits(directory, manifest, component)
  if problems:
    raise ValueError(
      f"weights in {directory} do not fit {MANIFEST}; convert the release"
      " again:" + "".join(f"\n{p}" for p in problems)
    )
  return manifest


def manifest_of(
  directory: str | os.PathLike[str], variant: str = ""
) -> Manifest:
  """Read the manifest of a directory, without a check of its files.

  Args:
    directory: of converted weights.
    variant: named in the message of an error.

  Returns:
    The manifest.

  Raises:
    ValueError: the manifest is missing, damaged or of another format.
  """
  directory = storage.locate(directory)
  path = directory / MANIFEST
  with contextlib.suppress(FileNotFoundError):
    storage.check_readable(directory)
  if not path.is_file():
    there = directory.is_dir()
    raise ValueError(
      f"weights: {path if there else directory}"
      f" {'is missing' if there else 'is no directory'}; make it with"
      f" `{cli.invocation('ovi-convert')} --release=DIR"
      f" --variant={variant or 'VARIANT'} --out={directory}` from a release, or"
      " with `python -m ovi_jax.training.export` from a training run"
    )
  return _parse(path)


def check_not_quantized(
  directory: storage.AnyPath, components: Iterable[str], what: str
) -> None:
  """Refuse 8-bit weights.

  Args:
    directory: of converted weights.
    components: which of them.
    what: what cannot be done with them, for the message.

  Raises:
    ValueError: a component has 8-bit kernels.
  """
  for component in components:
    path = component_file(directory, component)
    if quantized.dtype_of(weights.shapes(path)) is not None:
      raise ValueError(
        f"{path} holds 8-bit weights, {what}; use the weights converted without"
        " --quantize"
      )


def digest_of(path: storage.AnyPath) -> str:
  """sha256 of a file."""
  return storage.sha256(path)


def _parse(path: storage.AnyPath) -> Manifest:
  """The manifest in a file; its sizes make sense."""
  try:
    data = storage.read_json(path, max_bytes=_MAX_MANIFEST)
    # Another format may have other fields.
    number = data.get("format") if isinstance(data, dict) else None
    if isinstance(number, int) and number != FORMAT:
      raise ValueError(f"it has format {number}, expected {FORMAT}")
    manifest = Manifest(**data)
    _ = manifest.architecture
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"weights: {path} is damaged ({untrusted.printable(str(error), 1000)});"
      " convert the release again"
    ) from error
  return manifest


def _check_files(directory: storage.AnyPath, needs: tuple[str, ...]) -> None:
  """Check that the files of some components exist."""
  expected = [component_file(directory, c) for c in needs]
  if "umt5" in needs:
    expected.append(directory / TOKENIZER)
  absent = [str(p) for p in expected if not p.is_file()]
  if absent:
    raise ValueError(
      f"weights: missing {', '.join(absent)}; convert the release again"
    )


def _misfits(
  directory: storage.AnyPath, manifest: Manifest, component: str
) -> list[str]:
  """Differences of a component's files from the manifest, in words."""
  path = component_file(directory, component)
  config = manifest.architecture.config(component)
  if config is None:
    return [f"{path}: {MANIFEST} has no sizes of {component}"]
  expected = _shapes(component, config)
  found = quantized.without_scales(weights.shapes(path))
  differing = [
    f"{leaf} is {found.get(leaf, 'missing')}, expected"
    f" {expected.get(leaf, 'none')}"
    for leaf in sorted(expected.keys() | found.keys())
    if expected.get(leaf) != found.get(leaf)
  ]
  problems = []
  if differing:
    listed = "; ".join(differing[:_LISTED])
    problems.append(f"{path}: {len(differing)} parameters differ: {listed}")
  if weights.metadata(path).get("digest") != manifest.digests.get(component):
    problems.append(f"{path} was replaced: its digest is another")
  known = manifest.digests.get("tokenizer") if component == "umt5" else None
  tokenizer = directory / TOKENIZER
  if known is not None and digest_of(tokenizer) != known:
    problems.append(f"{tokenizer} was replaced: its digest is another")
  return problems


@functools.cache
def _shapes(component: str, config: Any) -> Mapping[str, tuple[int, ...]]:
  """Shapes of a component's parameters by path."""
  tree = architecture.parameter_shapes(component, config)
  flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
  return {path: tuple(leaf.shape) for path, leaf in flat.items()}
