"""From a release to a directory of our weights, and back.

Both ways one tensor at a time: memory holds a slice of a parameter, not a
model. Names, shapes, dtypes and constants of all components are checked before
anything is written; numbers are checked while they are read. New files are
written into a directory of their own and moved to their place at the end, so
that what was there stays usable until the whole conversion has succeeded.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ovi_jax
from ovi_jax import tokenizer as tokenizer_lib
from ovi_jax import untrusted
from ovi_jax.convert import mapping
from ovi_jax.convert import normalize
from ovi_jax.convert import reader
from ovi_jax.convert import release as releases
from ovi_jax.convert import staging
from ovi_jax.convert import torch_file
from ovi_jax.models import architecture
from ovi_jax.models import quantized
from ovi_jax.pretrained import weights
from ovi_jax.pretrained import weights_dir

_log = logging.getLogger(__name__)
# Embeddings are padded: UMT5's has 84 rows more than its tokenizer has ids, and
# 384 more than one without ids for sentinels.
_MAX_UNUSED_ROWS = 512
_TOKENIZERS = {32_000: "T5", 32_100: "T5", 250_000: "mT5", 250_100: "mT5"}
_KEY = "::"  # between a file and the name below which its tensors lie


def convert(
  release: pathlib.Path | None,
  out: pathlib.Path,
  *,
  variant: str | None,
  sizes: Mapping[str, Any],
  components: Sequence[str] | None = None,
  files: Mapping[str, Sequence[str]] | None = None,
  tokenizer: pathlib.Path | None = None,
  quantize: str = "",
) -> weights_dir.Manifest:
  """Convert a release, or files of any name.

  Args:
    release: directory in the release's layout; `None` if `files` names all.
    out: directory of our weights; what it holds of these components stays
      if it was made of the same tensors in the same way, and is replaced at
      the end if not.
    variant: of `releases.known_variants`, or `None` for other sizes.
    sizes: of the architecture, in the original's form.
    components: which to convert; `None` for all that `sizes` names, or, without
      a release, all that `files` names.
    files: by component, its files in place of the release's: anything that
      `reader.open_tensors` takes, `FILE::KEY` for the tensors under KEY.
    tokenizer: `tokenizer.json` in place of the release's.
    quantize: a key of `quantized.DTYPES` for 8-bit kernels of the denoiser and
      the text encoder; empty for none.

  Returns:
    The manifest, also written to `out`.

  Raises:
    ValueError: a file is missing or damaged, tensors do not fit, hold NaN or
      infinity, or `out` holds other components of another architecture. `out`
      is then as it was.
  """
  files = files or {}
  arch = architecture.Architecture.from_release(sizes)
  if components is None:
    components = tuple(
      c for c in arch.components if release is not None or c in files
    )
  chosen = tuple(components)
  if unknown := sorted({*chosen, *files} - set(arch.components)):
    raise ValueError(f"components {unknown} are not among {arch.components}")
  if unused := sorted(files.keys() - set(chosen)):
    raise ValueError(f"files of {unused}, which are not to be converted")
  if absent := [c for c in chosen if release is None and c not in files]:
    raise ValueError(f"expected --release=DIR, or --{absent[0]}=FILE")
  if tokenizer is not None and "umt5" not in chosen:
    raise ValueError("a tokenizer goes with umt5, which is not to be converted")
  opened = _open(release, variant, arch, chosen, files)
  beside: dict[str, pathlib.Path] = {}
  if "umt5" in chosen:
    found = tokenizer or _tokenizer(release, files.get("umt5", ()))
    _check_tokenizer(found, arch.config("umt5").vocab_size)
    beside = _tokenizer_files(found.parent, release, tokenizer)
  _check_inputs_stay(out, opened)
  with staging.staged(out) as staged:
    digests, sampling = _staying(out, arch, variant, chosen)
    for component, (tensors, shapes) in opened.items():
      dtype = None
      if component in quantized.COMPONENTS and quantize:
        dtype = quantized.DTYPES[quantize]
        shapes = quantized.with_scales(shapes, dtype)
      digests[component] = _convert_one(
        component, tensors, shapes, out, staged, dtype
      )
    if "fusion" in chosen:
      sampling = releases.sampling_of(variant)
    for name, path in beside.items():
      shutil.copyfile(path, staged / name)
    file = (staged if beside else out) / weights_dir.TOKENIZER
    if file.is_file():
      digests["tokenizer"] = weights_dir.digest_of(file)
    manifest = weights_dir.Manifest(
      variant=variant,
      sizes=dict(sizes),
      digests=digests,
      version=ovi_jax.__version__,
      sampling=sampling,
    )
    manifest.save(staged)
    # No file of another tokenizer stays, if an earlier conversion wrote it.
    is_ours = bool(beside) and (out / weights_dir.MANIFEST).is_file()
    stale = weights_dir.TOKENIZER_FILES if is_ours else ()
    staging.move(staged, out, weights_dir.MANIFEST, stale)
  return manifest


Opened = tuple[normalize.Normalized, dict[str, jax.ShapeDtypeStruct]]


def _check_inputs_stay(out: pathlib.Path, opened: Mapping[str, Opened]) -> None:
  """ValueError if a file would be replaced by what is made of it."""
  for component, (tensors, _) in opened.items():
    target = weights_dir.component_file(out, component)
    sources = {tensor.span.path for tensor in tensors.tensors.values()}
    if target.exists() and any(
      os.path.samefile(target, source)
      for source in sources
      if isinstance(source, pathlib.Path)
    ):
      raise ValueError(
        f"{component}: {target} is to be converted and would be replaced;"
        " choose another --out"
      )


def _convert_one(
  component: str,
  tensors: normalize.Normalized,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  out: pathlib.Path,
  staged: pathlib.Path,
  dtype: np.dtype | None,
) -> str:
  """Write one component beside the one in `out`; returns its digest."""
  path = weights_dir.component_file(out, component)
  if dtype is not None:
    tensors = _in_float32(tensors)
  for note in tensors.notes:
    _log.info(f"{component}: {note}")
  try:
    if content := _written(path, tensors, shapes, dtype):
      _log.info(f"{component}: {path} was made of the same tensors, it stays")
      return content
    content = _write(
      weights_dir.component_file(staged, component), tensors, shapes, dtype
    )
  except mapping.FoldError as error:
    file = tensors.tensors[error.name].span.path
    raise ValueError(f"{component}: {file}: {error}") from error
  except ValueError as error:
    raise ValueError(f"{component}: {error}") from error
  _log.info(
    f"{component}: {untrusted.counted(len(tensors.shapes), 'tensor')} -> {path}"
  )
  return content


def _staying(
  out: pathlib.Path,
  arch: architecture.Architecture,
  variant: str | None,
  replaced: Sequence[str],
) -> tuple[dict[str, str], Mapping[str, Any]]:
  """What an earlier conversion left in `out` and what of it stays.

  Returns:
    Digests of the components that stay; advice for the denoiser, if that stays.

  Raises:
    ValueError: what stays does not fit what is converted.
  """
  staying = [
    c
    for c in architecture.COMPONENTS
    if c not in replaced and weights_dir.component_file(out, c).is_file()
  ]
  sampling: Mapping[str, Any] = {}
  if staying and (out / weights_dir.MANIFEST).is_file():
    manifest = weights_dir.manifest_of(out)
    others = [
      c
      for c in staying
      if c in manifest.digests
      and manifest.architecture.config(c) != arch.config(c)
    ]
    if manifest.variant != variant and "fusion" in staying:
      others.append("fusion")
    if others:
      raise ValueError(
        f"{out} holds {', '.join(dict.fromkeys(others))} of"
        f" {manifest.variant or 'other sizes'}, which does not fit what is"
        " converted now; convert all components or use another --out"
      )
    if "fusion" in staying:
      sampling = manifest.sampling
  digests = {
    c: weights.metadata(weights_dir.component_file(out, c)).get("digest", "")
    for c in staying
    if arch.config(c) is not None
  }
  return digests, sampling


def _open(
  release: pathlib.Path | None,
  variant: str | None,
  arch: architecture.Architecture,
  components: Sequence[str],
  files: Mapping[str, Sequence[str]],
) -> dict[str, Opened]:
  """Tensors and our shapes of every component, all of them checked."""
  opened: dict[str, Opened] = {}
  problems: list[str] = list(arch.misfits)
  for component in components:
    try:
      named = files.get(component)
      opened[component] = _open_one(
        component,
        arch.config(component),
        variant,
        None if named else release,
        named or (),
      )
    except ValueError as error:
      problems.append(f"{component}: {error}")
  if problems:
    raise ValueError("\n".join(problems))
  return opened


def _open_one(
  component: str,
  config: Any,
  variant: str | None,
  release: pathlib.Path | None,
  named: Sequence[str],
) -> Opened:
  """Tensors and our shapes of one component; ValueError if they do not fit."""
  source = releases.source(component, variant, release, config)
  if release is not None:
    places = [(str(release / source.file), "")]
  else:
    places = [place(name) for name in named]
  opened = [reader.open_tensors(path) for path, _ in places]
  try:
    tensors = normalize.normalize(
      opened,
      source.rows(config),
      source.dialects,
      source.towers,
      [key for _, key in places],
    )
  except normalize.OtherModelError as error:
    what = "; ".join(
      f"{file.source} holds {releases.kind(file, component)}" for file in opened
    )
    raise ValueError(what) from error
  shapes = architecture.parameter_shapes(component, config)
  ours = {path: tuple(x.shape) for path, x in mapping.flatten(shapes).items()}
  if problems := _misfits(tensors, ours):
    if what := releases.misfit(component, config, tensors):
      raise ValueError(f"{tensors.source}: {what}")
    raise ValueError(f"{tensors.source}: " + "\n".join(problems))
  return tensors, _typed(tensors, ours)


def place(name: str) -> tuple[str, str]:
  """A file, and the name below which its tensors lie: `FILE::KEY`."""
  if _KEY in name and not os.path.exists(name):
    path, _, key = name.rpartition(_KEY)
    return path, key.strip(".")
  return name, ""


def _misfits(
  tensors: normalize.Normalized, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
  """What does not fit: names, shapes, whole numbers or constants."""
  problems: list[str] = []
  try:
    mapping.check(tensors.rows, tensors.shapes, shapes)
  except ValueError as error:
    problems.append(str(error))
  integers: list[str] = []
  for row in tensors.rows:
    for name in row.all_names:
      dtype = tensors.dtypes.get(name, np.dtype(np.float32))
      if not jnp.issubdtype(dtype, jnp.floating):
        integers.append(f"{name} is {dtype}")
  if integers:
    more = f" (and {len(integers) - 1} more)" if len(integers) > 1 else ""
    problems.append(f"expected floating point, {integers[0]}{more}")
  return problems or untrusted.shortened(_other_constants(tensors))


def _other_constants(tensors: normalize.Normalized) -> list[str]:
  """Tensors that our model computes and that hold something else."""
  problems: list[str] = []
  for row in tensors.rows:
    if row.ours is None:
      found = [tensors.read(name) for name in row.names(None)]
      try:
        row.op.to_ours(*found)
      except ValueError as error:
        problems.append(str(error))
  return problems


def _typed(
  tensors: normalize.Normalized, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, jax.ShapeDtypeStruct]:
  """Our parameters in the release's own precision."""
  typed = {}
  for row in tensors.rows:
    if row.ours is not None:
      last = row.names(row.indices[0])[-1]
      dtype = tensors.dtypes[last]
      typed[row.ours] = jax.ShapeDtypeStruct(shapes[row.ours], dtype)
  return typed


def _written(
  path: pathlib.Path,
  tensors: normalize.Normalized,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  dtype: np.dtype | None,
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
  if not same or metadata.get("table") != _table(tensors.rows):
    return ""
  digest = reader.Digest(source=tensors.read)
  for row in tensors.rows:
    for name in row.all_names:
      digest.read(name)
  content = _identity(digest.content(), dtype)
  return content if metadata.get("digest") == content else ""


def _identity(content: str, dtype: np.dtype | None) -> str:
  """The digest of a component, given that of the tensors it was made of."""
  if dtype is None:
    return content
  return hashlib.sha256(f"{content} {dtype}".encode()).hexdigest()


def _table(rows: Sequence[mapping.Row]) -> str:
  """Identity of what is done to tensors."""
  return hashlib.sha256(repr(rows).encode()).hexdigest()


def _write(
  path: pathlib.Path,
  tensors: normalize.Normalized,
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  dtype: np.dtype | None,
) -> str:
  """Write one component; returns the digest of what was read."""
  digest = reader.Digest(source=tensors.read)
  with weights.Writer(path, shapes) as writer:
    by_path = {row.ours: row for row in tensors.rows}
    for name, index, array in mapping.to_ours(tensors.rows, digest.read):
      if dtype is not None and quantized.is_quantizable(name):
        stored = _as_stored(tensors, by_path[name], index, dtype)
        array, scale = stored or quantized.quantize(array, dtype)
        writer.write(quantized.beside(name), index, scale)
      writer.write(name, index, array)
    content = _identity(digest.content(), dtype)
    writer.metadata |= {"digest": content, "table": _table(tensors.rows)}
  if digest.zeros:
    _log.info(
      f"{tensors.source}: {len(digest.zeros)} of"
      f" {untrusted.counted(len(digest.digests), 'tensor')} hold zeros alone,"
      f" such as '{untrusted.printable(digest.zeros[0])}'; if the file was"
      " downloaded, compare its checksum: it may be incomplete"
    )
  return content


def _in_float32(tensors: normalize.Normalized) -> normalize.Normalized:
  """8-bit kernels that are quantized again are not rounded to 16 bits first."""
  names = {
    name
    for row in tensors.rows
    if row.ours is not None and quantized.is_quantizable(row.ours)
    for name in row.all_names
    if tensors.tensors[name].is_8_bit
  }
  wide = {
    name: dataclasses.replace(x, dtype=np.dtype(np.float32))
    if name in names
    else x
    for name, x in tensors.tensors.items()
  }
  return dataclasses.replace(tensors, tensors=wide)


def _as_stored(
  tensors: normalize.Normalized,
  row: mapping.Row,
  index: int | None,
  dtype: np.dtype,
) -> tuple[np.ndarray, np.ndarray] | None:
  """A kernel [in, out] that the file has in `dtype`, and its scales [out].

  Returns:
    The file's own numbers, reordered; `None` if it has others.
  """
  (name,) = row.names(index)
  tensor = tensors.tensors[name]
  if tensor.span.dtype != dtype:
    return None
  codes = tensor.span.read()
  factors = np.broadcast_to(tensor.factors().reshape(-1, 1), codes.shape)
  kernel, scale = row.op.to_ours(codes), row.op.to_ours(factors)
  return kernel, np.ascontiguousarray(scale[0])


def _tokenizer(
  release: pathlib.Path | None, named: Sequence[str]
) -> pathlib.Path:
  """The tokenizer of the release, or the one beside a named text encoder."""
  tried = []
  if release is not None:
    tried.append(release / releases.TOKENIZER / weights_dir.TOKENIZER)
  for name in named:
    folder = pathlib.Path(place(name)[0]).parent
    for below in ("", "tokenizer", "google/umt5-xxl", "../tokenizer"):
      tried.append(folder / below / weights_dir.TOKENIZER)
  for path in tried:
    if path.is_file():
      return path
  raise ValueError(
    f"expected the tokenizer of the text encoder: {tried[0]}; pass it with"
    " --tokenizer=FILE"
  )


def _check_tokenizer(path: pathlib.Path, rows: int) -> None:
  """Refuse what is not the tokenizer of a text encoder before it is written.

  Args:
    path: of its `tokenizer.json`.
    rows: of the encoder's embedding.

  Raises:
    ValueError: names the file.
  """
  try:
    tokenizer = tokenizer_lib.Tokenizer.load(path, rows)
  except ValueError as error:
    raise ValueError(f"tokenizer {error}") from error
  ids = tokenizer.count
  if rows - ids > _MAX_UNUSED_ROWS:
    model = _TOKENIZERS.get(ids, "another model")
    raise ValueError(
      f"tokenizer {path}: it has {ids} ids, but the text encoder has {rows}"
      f" rows: it is that of {model}; pass the text encoder's own with"
      " --tokenizer=FILE"
    )


def export(
  source: pathlib.Path,
  release: pathlib.Path,
  components: Sequence[str] | None = None,
) -> None:
  """Write our weights back as a release, under the original's names.

  Args:
    source: directory of our weights.
    release: directory to write, in the release's layout.
    components: which to export; `None` for all there are.

  Raises:
    ValueError: `source` is no directory of our weights or lacks a component, or
      another process writes to `release`.
    OSError: nothing can be written; `release` is then as it was.
  """
  known = weights_dir.read(source, needs=()).digests
  present = (c for c in architecture.COMPONENTS if c in known)
  chosen = tuple(components or present)
  manifest = weights_dir.read(source, needs=chosen)
  weights_dir.check_not_quantized(source, chosen, "which are not exported")
  beside = _tokenizer_files(source) if "umt5" in chosen else {}
  tokenizer = pathlib.Path(releases.TOKENIZER)
  with staging.staged(release) as staged:
    for component in chosen:
      target = releases.target(component, manifest.variant)
      path = staged / target.file
      path.parent.mkdir(parents=True, exist_ok=True)
      stored = weights_dir.component_file(source, component)
      rows = target.rows(manifest.architecture.config(component))
      _save(path, rows, stored, target.key)
      _log.info(f"{component} -> {release / target.file}")
    for name, path in beside.items():
      (staged / tokenizer).mkdir(parents=True, exist_ok=True)
      shutil.copyfile(path, staged / tokenizer / name)
    # No file of another tokenizer stays.
    stale = weights_dir.TOKENIZER_FILES if beside else ()
    staging.move(staged, release, stale=[str(tokenizer / n) for n in stale])


def _tokenizer_files(
  source: pathlib.Path,
  release: pathlib.Path | None = None,
  named: pathlib.Path | None = None,
) -> dict[str, pathlib.Path]:
  """The files of the tokenizer that are there, by the names to copy them to.

  Args:
    source: directory of the tokenizer.
    release: directory that holds it, if it belongs to a release.
    named: the main file, if a user named it: it may then be a link.

  Raises:
    ValueError: a file is a link to somewhere outside of the release.
  """
  within = release is not None and source.is_relative_to(release)
  roots = weights_dir.link_roots(
    release if release is not None and within else source
  )
  files: dict[str, pathlib.Path] = {}
  for name in weights_dir.TOKENIZER_FILES:
    path = source / name
    if named is not None and name == weights_dir.TOKENIZER:
      path = named
    elif path.is_file() and not any(map(path.resolve().is_relative_to, roots)):
      raise ValueError(
        f"{path} is a link to {path.resolve()}, outside of {release or source};"
        " it is not copied: put the file itself there, or name it with"
        " --tokenizer=FILE"
      )
    if path.is_file():
      files[name] = path
  return files


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
