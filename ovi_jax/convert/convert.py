"""From a release to a directory of our weights, and back.

Both ways one tensor at a time: memory holds a slice of a parameter, not a
model. Everything is checked against everything before the first byte is
written.
"""

import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ovi_jax
from ovi_jax import console
from ovi_jax.checkpoint import directory
from ovi_jax.checkpoint import tensor_file
from ovi_jax.checkpoint import weights
from ovi_jax.convert import mapping
from ovi_jax.convert import reader
from ovi_jax.convert import release as releases
from ovi_jax.convert import torch_file
from ovi_jax.models import architecture

Log = Callable[[str], None]


def convert(
  release: pathlib.Path,
  out: pathlib.Path,
  *,
  variant: str | None,
  sizes: Mapping[str, Any],
  components: Sequence[str] | None = None,
  log: Log = console.log,
) -> directory.Manifest:
  """Convert a release.

  Args:
    release: directory in the release's layout.
    out: directory of our weights; what it holds of these components stays
      if it was made of the same tensors in the same way, and is replaced once
      the new file is whole if not.
    variant: released variant, `releases.WAN`, or `None` for other sizes.
    sizes: of the architecture, in the original's form.
    components: which to convert; `None` for all that `sizes` names.
    log: called with a line for each component.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: a file is missing or damaged, or tensors do not fit; all
      misfits of all components are listed at once.
  """
  arch = architecture.Architecture.from_release(sizes)
  chosen = arch.components if components is None else tuple(components)
  unknown = sorted(set(chosen) - set(arch.components))
  if unknown:
    raise ValueError(f"components {unknown} are not among {arch.components}")
  opened = _open(release, variant, arch, chosen)
  tokenizer = release / releases.TOKENIZER / directory.TOKENIZER
  if "umt5" in chosen and not tokenizer.is_file():
    raise ValueError(f"expected the tokenizer of the text encoder: {tokenizer}")
  out.mkdir(parents=True, exist_ok=True)
  digests = _known_digests(out, arch.components, chosen)
  # Until the new manifest is written, none: a killed run leaves no mixture.
  (out / directory.MANIFEST).unlink(missing_ok=True)
  for component, (rows, tensors, shapes) in opened.items():
    path = directory.component_file(out, component)
    digests[component] = content = _written(path, rows, tensors, shapes)
    if content:
      log(f"{component}: {path} was made of the same tensors, it stays")
      continue
    digests[component] = _write(path, rows, tensors, shapes)
    log(f"{component}: {len(tensors.shapes)} tensors -> {path}")
  if "umt5" in chosen:
    _copy_tokenizer(tokenizer.parent, out)
  if (out / directory.TOKENIZER).is_file():
    digests["tokenizer"] = directory.digest_of(out / directory.TOKENIZER)
  manifest = directory.Manifest(
    variant=variant,
    sizes=dict(sizes),
    digests=digests,
    version=ovi_jax.__version__,
  )
  manifest.save(out)
  return manifest


Opened = tuple[
  Sequence[mapping.Row], tensor_file.TensorFile, dict[str, jax.ShapeDtypeStruct]
]


def _open(
  release: pathlib.Path,
  variant: str | None,
  arch: architecture.Architecture,
  components: Sequence[str],
) -> dict[str, Opened]:
  """Tables, tensors and our shapes of every component, all of them checked."""
  opened: dict[str, Opened] = {}
  problems: list[str] = list(arch.misfits)
  for component in components:
    config = arch.config(component)
    try:
      source = releases.source(component, variant, release)
      tensors = source.open(release)
      rows = source.rows(config)
      flat = mapping.flatten(architecture.parameter_shapes(component, config))
      ours = {path: tuple(x.shape) for path, x in flat.items()}
    except ValueError as error:
      problems.append(f"{component}: {error}")
      continue
    found = _misfits(rows, tensors, ours)
    problems += [f"{component}: {p}" for p in found]
    if not found:
      opened[component] = (rows, tensors, _typed(rows, tensors, ours))
  if problems:
    raise ValueError("\n".join(problems))
  return opened


def _misfits(
  rows: Sequence[mapping.Row],
  tensors: tensor_file.TensorFile,
  shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
  """What does not fit: names, shapes, or a precision that would be lost."""
  problems: list[str] = []
  try:
    mapping.check(rows, tensors.shapes, shapes)
  except ValueError as error:
    problems.append(str(error))
  for row in rows:
    if row.ours is None:
      continue
    # The last tensor of each block decides; one name for each dtype.
    kinds: dict[np.dtype, str] = {}
    for names in map(row.names, row.indices):
      for name in names:
        dtype = tensors.dtypes.get(name, np.dtype(np.float32))
        if not jnp.issubdtype(dtype, jnp.floating):
          problems.append(f"expected floating point, {name} is {dtype}")
      if names[-1] in tensors.dtypes:
        kinds.setdefault(tensors.dtypes[names[-1]], names[-1])
    if len(kinds) > 1:
      listed = ", ".join(f"{n} is {d}" for d, n in kinds.items())
      problems.append(f"expected one dtype in {row.ours}: {listed}")
  return problems


def _typed(
  rows: Sequence[mapping.Row],
  tensors: tensor_file.TensorFile,
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Our parameters in the release's own precision."""
  typed = {}
  for row in rows:
    if row.ours is not None:
      last = row.names(row.indices[0])[-1]
      dtype = tensors.dtypes[last]
      typed[row.ours] = jax.ShapeDtypeStruct(shapes[row.ours], dtype)
  return typed


def _written(
  path: pathlib.Path,
  rows: Sequence[mapping.Row],
  tensors: tensor_file.TensorFile,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> str:
  """The digest of the tensors, if `path` holds what they become; else ""."""
  if not path.is_file():
    return ""
  try:
    found, metadata = weights.shapes(path), weights.metadata(path)
  except ValueError:  # damaged
    return ""
  same = {n: (x.shape, x.dtype) for n, x in found.items()} == {
    n: (x.shape, x.dtype) for n, x in shapes.items()
  }
  if not same or metadata.get("table") != _table(rows):
    return ""
  digest = reader.Digest(file=tensors)
  for row in rows:
    for name in itertools.chain.from_iterable(map(row.names, row.indices)):
      digest.read(name)
  content = digest.content()
  return content if metadata.get("digest") == content else ""


def _table(rows: Sequence[mapping.Row]) -> str:
  """Identity of what is done to tensors."""
  return hashlib.sha256(repr(rows).encode()).hexdigest()


def _write(
  path: pathlib.Path,
  rows: Sequence[mapping.Row],
  tensors: tensor_file.TensorFile,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> str:
  """Write one component; returns the digest of what was read."""
  digest = reader.Digest(file=tensors)
  with weights.Writer(path, shapes) as writer:
    for name, index, array in mapping.to_ours(rows, digest.read):
      writer.write(name, index, array)
    content = digest.content()
    writer.metadata |= {"digest": content, "table": _table(rows)}
  return content


def _known_digests(
  out: pathlib.Path, present: Sequence[str], replaced: Sequence[str]
) -> dict[str, str]:
  """Digests of components that an earlier conversion left in `out`."""
  known = {}
  for component in present:
    path = directory.component_file(out, component)
    if component not in replaced and path.is_file():
      known[component] = weights.metadata(path).get("digest", "")
  return known


def export(
  source: pathlib.Path,
  release: pathlib.Path,
  components: Sequence[str] | None = None,
  log: Log = console.log,
) -> None:
  """Write our weights back as a release, under the original's names.

  Args:
    source: directory of our weights.
    release: directory to write, in the release's layout.
    components: which to export; `None` for all there are.
    log: called with a line for each component.

  Raises:
    ValueError: `source` is no directory of our weights or lacks a component.
  """
  known = directory.read(source, needs=()).digests
  present = (c for c in architecture.COMPONENTS if c in known)
  chosen = tuple(components or present)
  manifest = directory.read(source, needs=chosen)
  for component in chosen:
    target = releases.target(component, manifest.variant)
    path = release / target.file
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = directory.component_file(source, component)
    rows = target.rows(manifest.architecture.config(component))
    _save(path, rows, stored, target.key)
    log(f"{component} -> {path}")
  if "umt5" in chosen:
    _copy_tokenizer(source, release / releases.TOKENIZER)


def _copy_tokenizer(source: pathlib.Path, out: pathlib.Path) -> None:
  """Copy the files of the tokenizer that are there; none of another stays."""
  out.mkdir(parents=True, exist_ok=True)
  for name in directory.TOKENIZER_FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, out / name)
    else:
      (out / name).unlink(missing_ok=True)


def _save(
  path: pathlib.Path,
  rows: Sequence[mapping.Row],
  stored: pathlib.Path,
  key: str | None,
) -> None:
  """Write one component in the format that the file's name says."""
  tensors = mapping.to_torch(rows, weights.slices(stored))
  if path.suffix != ".safetensors":
    torch_file.save(path, tensors, key)
    return
  leaves = mapping.torch_leaves(rows, weights.shapes(stored))
  with weights.Writer(path, leaves, {"format": "pt"}) as writer:
    for name, tensor in tensors:
      writer.write(name, None, tensor)
