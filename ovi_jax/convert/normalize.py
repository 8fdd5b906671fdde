"""From the tensors of any file to the release's names and plain numbers.

Stands between the files (`reader.py`) and the table of a component: finds the
prefix under which its tensors lie (wrappers such as `state_dict` are prefixes
too), translates other tools' names, applies the scales of 8-bit weights, and
refuses numbers that are not finite. A prefix is chosen because the names below
it are the table's, never from a list.

W = float(q) * scale for a weight q in 8-bit floating point; scale is one number
or one a row. (Names of scales: ComfyUI's `scaled_fp8` files and their successor
`comfy_quant`.)
"""

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ovi_jax import untrusted
from ovi_jax.convert import mapping
from ovi_jax.pretrained import tensor_file

# Parts that wrappers of modules put in the middle of names: torch.compile,
# FSDP, activation checkpointing, Fabric, PEFT.
_WRAPPERS = {
  "_orig_mod",
  "_fsdp_wrapped_module",
  "_fpw_module",
  "_checkpoint_wrapped_module",
  "_forward_module",
  "base_layer",
}
# DDP's and DeepSpeed's; at the beginning of names it is a prefix like others.
_INNER_WRAPPERS = {*_WRAPPERS, "module"}
# Names of tensors that adapters add to a model.
ADAPTER = re.compile(
  r"(?:^|[._])(?:lora_(?:[AB]|up|down|mid|magnitude_vector|embedding_[AB])"
  r"|lora[AB]|lora\.(?:up|down)|dora_scale|hada_[tw][12]\w*|lokr_\w+|oft_\w+"
  r"|modules_to_save)(?:\.|$)|\.diff(?:_[bm])?$"
)
# Where averages of the weights over training lie.
_AVERAGES = re.compile(r"(?:^|_)(?:ema|averages?|averaged|shadow)(?:_|$)")
_PREFIXES = 8  # most in one file
_PIECE = 2**22  # numbers handled at once
_FP8 = {np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)}
_FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_SCALES = ("scale_weight", "weight_scale")
_UNUSED = ("scale_input", "input_scale", "comfy_quant")
_MARKER = "scaled_fp8"
_QUANTIZATION = "_quantization_metadata"
# The bits of an exponent, all set in a number that is not finite.
_EXPONENTS = {
  np.dtype(ml_dtypes.float8_e4m3fn): 0x7F,
  np.dtype(ml_dtypes.float8_e5m2): 0x7C,
  np.dtype(ml_dtypes.bfloat16): 0x7F80,
  np.dtype(np.float16): 0x7C00,
  np.dtype(np.float32): 0x7F800000,
  np.dtype(np.float64): 0x7FF0000000000000,
}


class OtherModelError(ValueError):
  """A file whose names are mostly not those of the component."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """A tensor of a file under one of the table's names.

  Attributes:
    name: in the file.
    span: where it lies.
    dtype: in which it is read.
    scale: of an 8-bit weight.
    copies: further tensors of the file that must hold the same.
  """

  name: str
  span: tensor_file.Span
  dtype: np.dtype
  scale: tensor_file.Span | None = None
  copies: tuple[tensor_file.Span, ...] = ()

  def read(self) -> np.ndarray:
    """The tensor, with its scale applied.

    Raises:
      ValueError: it holds NaN or infinity, or a copy of it differs.
    """
    array = self.span.read()
    self._check_finite(array)
    for copy in self.copies:
      if not _same(copy.read(), array):
        raise ValueError(f"{self._place}: the file's two copies of it differ")
    if self.dtype == array.dtype:
      return array
    if not self.is_8_bit:
      return array.astype(self.dtype)
    array = _widened(array, self.factors(), self.dtype)
    self._check_finite(array)
    return array

  @property
  def is_8_bit(self) -> bool:
    """Whether the file has it in 8-bit floating point."""
    return self.span.dtype in _FP8

  def factors(self) -> np.ndarray:
    """What an 8-bit weight is multiplied with: one number, or one a row."""
    if self.scale is None:
      return np.ones((), np.float32)
    return self.scale.read().astype(np.float32)

  @property
  def _place(self) -> str:
    return f"{self.span.path}: tensor '{untrusted.printable(self.name)}'"

  def _check_finite(self, array: np.ndarray) -> None:
    if not is_finite(array):
      raise ValueError(
        f"{self._place} holds NaN or infinity; the file is damaged, or its"
        " training diverged"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalized:
  """A component's tensors under the release's names.

  Attributes:
    source: the file or files, for messages.
    rows: the table, in the forms that the files hold.
    tensors: by the release's name; what the table does not know, by its own.
    notes: what a user should know, a line each.
    dialect: whose names the files have; empty for the release's.
  """

  source: str
  rows: tuple[mapping.Row, ...]
  tensors: Mapping[str, Tensor]
  notes: tuple[str, ...] = ()
  dialect: str = ""

  @functools.cached_property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    return {name: t.span.shape for name, t in self.tensors.items()}

  @functools.cached_property
  def dtypes(self) -> dict[str, np.dtype]:
    return {name: t.dtype for name, t in self.tensors.items()}

  def read(self, name: str) -> np.ndarray:
    """The tensor under the release's name; see `Tensor.read`."""
    return self.tensors[name].read()


def is_finite(array: np.ndarray) -> bool:
  """Whether no number is NaN or infinite; whole numbers never are."""
  if array.dtype not in _EXPONENTS:
    return not jnp.issubdtype(array.dtype, jnp.inexact) or bool(
      np.isfinite(array).all()
    )
  mask = _EXPONENTS[array.dtype]
  bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
  return all(
    (bits[at : at + _PIECE] & bits.dtype.type(mask)).max() != mask
    for at in range(0, bits.size, _PIECE)
  )


def normalize(
  files: Sequence[tensor_file.TensorFile],
  rows: Sequence[mapping.Row],
  dialects: Sequence[mapping.Dialect] = (),
  towers: Sequence[str] = (),
  keys: Sequence[str] = (),
) -> Normalized:
  """Bring the tensors of a component under the names of its table.

  Args:
    files: that hold the component, each with a prefix of its own.
    rows: the table.
    dialects: other names of the table's tensors.
    towers: prefixes of the table's names that a file of one tower may lack.
    keys: for each file, the name below which its tensors lie; empty for any.

  Raises:
    OtherModelError: the names of a file are not the table's.
    ValueError: several sets of tensors fit, or 8-bit weights are stored in a
      way that is not known.
  """
  spelled = _Spelled(rows, dialects, towers)
  found: dict[str, Tensor] = {}
  notes: list[str] = []
  used: collections.Counter[str] = collections.Counter()
  for number, file in enumerate(files):
    part = _part(file, spelled, keys[number] if keys else "")
    notes += part.notes
    used += part.dialects
    for name, tensor in part.tensors.items():
      if name in found:
        raise ValueError(
          f"tensor '{untrusted.printable(name)}' is in"
          f" {found[name].span.path} and in {tensor.span.path}"
        )
      found[name] = tensor
  chosen = _forms(rows, found)
  widened, wide_notes = _wide(chosen, found)
  return Normalized(
    source=", ".join(f.source for f in files),
    rows=chosen,
    tensors=widened,
    notes=(*notes, *wide_notes),
    dialect=max(used, key=used.__getitem__, default=""),
  )


class _Spelled:
  """Every name that a tensor of the table may have.

  Attributes:
    parts: (names -> the table's name and the dialect), for the whole table
      and for each tower without its prefix.
    dialects: as given.
    depth: most names between dots in any of them.
  """

  def __init__(
    self,
    rows: Sequence[mapping.Row],
    dialects: Sequence[mapping.Dialect],
    towers: Sequence[str],
  ):
    names = dict.fromkeys(_table_names(rows))
    self.dialects = dialects
    self.parts: list[dict[str, tuple[str, str]]] = []
    for prefix in ("", *towers):
      part: dict[str, tuple[str, str]] = {}
      below = [n for n in names if n.startswith(prefix)]
      for name in below:
        part.setdefault(name.removeprefix(prefix), (name, ""))
      for dialect in dialects:
        for name in below:
          for other in dialect.names(name.removeprefix(prefix)):
            part.setdefault(other, (name, dialect.name))
      self.parts.append(part)
    spelled = (name for part in self.parts for name in part)
    self.depth = max((name.count(".") + 1 for name in spelled), default=1)

  def ignores(self, name: str) -> bool:
    return any(d.ignores(name) for d in self.dialects)


def _table_names(rows: Iterable[mapping.Row]) -> Iterable[str]:
  """The names of all tensors, in each form of a row."""
  for row in rows:
    yield from row.all_names
    if row.alternative is not None:
      yield from _table_names([row.alternative])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Part:
  """What one file contributes."""

  tensors: dict[str, Tensor]
  notes: list[str]
  dialects: collections.Counter[str]


def _part(file: tensor_file.TensorFile, spelled: _Spelled, key: str) -> _Part:
  """The tensors of one file, by the table's names where it knows them."""
  raw = {unwrapped(name): name for name in file.spans}
  if len(raw) != len(file.spans):  # wrapped and bare: leave them alone
    raw = {name: name for name in file.spans}
  names, prefixes = _choose(file, raw, spelled, key)
  below: dict[str, str] = {}
  outside: list[str] = []
  for full in raw:
    prefix = next((p for p in prefixes if full.startswith(p)), None)
    if prefix is None:
      outside.append(full)
    else:
      name = full[len(prefix) :]
      below[full if name in below else name] = full
  placed: dict[str, list[str]] = {}
  dialects: collections.Counter[str] = collections.Counter()
  for other, (name, dialect) in names.items():
    if other in below:
      placed.setdefault(name, []).append(below[other])
      dialects.update([dialect] if dialect else ())
  quantized = _Quantized(file, raw, prefixes)
  tensors: dict[str, Tensor] = {}
  taken: set[str] = set()
  for name, (first, *copies) in placed.items():
    span = file.spans[raw[first]]
    tensors[name] = Tensor(
      name=raw[first],
      span=span,
      dtype=span.dtype,
      scale=quantized.scale(first),
      copies=tuple(file.spans[raw[c]] for c in copies),
    )
    taken |= {first, *copies}
  notes = []
  for name, full in below.items():
    span = file.spans[raw[full]]
    if full in taken or quantized.explains(full) or spelled.ignores(name):
      continue
    if 0 in span.shape:
      shown = untrusted.printable(raw[full])
      notes.append(f"{file.source}: '{shown}' has no elements, it is ignored")
      continue
    tensors[name] = Tensor(name=raw[full], span=span, dtype=span.dtype)
  _check_adapters(file, [tensors[n].name for n in tensors if n not in placed])
  if outside := [n for n in outside if n != _MARKER]:
    tops = sorted({n.split(".")[0] for n in outside})
    shown = untrusted.printable(", ".join(tops[:5]))
    notes.append(
      f"{file.source}: not used: {untrusted.counted(len(outside), 'tensor')}"
      f" outside '{untrusted.printable(prefixes[-1])}' ({shown})"
      f"{_averages(outside, key)}"
    )
  quantized.check(tensors.keys() - placed.keys(), taken)
  return _Part(tensors=tensors, notes=notes, dialects=dialects)


def _averages(outside: Iterable[str], key: str) -> str:
  """What to say if tensors that are not used may be averaged weights."""
  parts = (part for name in outside for part in name.split(".")[:-1])
  found = next((part for part in parts if _AVERAGES.search(part)), None)
  if found is None or key:
    return ""
  return (
    "; these may be averaged weights (EMA), which"
    f" FILE::{untrusted.printable(found)} selects"
  )


def _check_adapters(
  file: tensor_file.TensorFile, unknown: Sequence[str]
) -> None:
  """Refuse adapters beside the weights that they change.

  Raises:
    ValueError: counts them and names the first.
  """
  if adapters := [n for n in unknown if ADAPTER.search(n)]:
    raise ValueError(
      f"{file.source}: expected weights alone, found beside them"
      f" {untrusted.counted(len(adapters), 'tensor')} of adapters (such as"
      f" LoRA), the first is '{untrusted.printable(adapters[0])}';"
      " merge them into the weights (PEFT: merge_and_unload) and save the model"
      " again"
    )


def unwrapped(name: str) -> str:
  """A name without the parts of torch's wrappers, see `_WRAPPERS`."""
  first, *rest = name.split(".")
  kept = [part for part in rest if part not in _INNER_WRAPPERS]
  return ".".join(kept if first in _WRAPPERS else [first, *kept])


Places = dict[str, list[str]]  # the table's name -> names of a file


def _choose(
  file: tensor_file.TensorFile,
  raw: Mapping[str, str],
  spelled: _Spelled,
  key: str,
) -> tuple[dict[str, tuple[str, str]], list[str]]:
  """The names and the prefixes, longest first, that fit most tensors of a file.

  Raises:
    OtherModelError: none fits.
    ValueError: several fit other tensors just as well.
  """
  wanted = f"{key}." if key else ""
  names = [name for name in raw if name.startswith(wanted)]
  if not names:
    below = f" below '{untrusted.printable(key)}'" if key else ""
    raise ValueError(f"{file.source}: expected tensors{below}, found none")
  hits = _hits(names, spelled)
  joined = [_join(found) for found in hits]
  tables = [len({ours for ours, _ in p.values()}) for p in spelled.parts]
  if not any(
    places and 2 * len(places) >= min(len(names), table)
    for (_, places), table in zip(joined, tables, strict=True)
  ):
    raise OtherModelError(
      f"{file.source}: few of its names are this component's; it has"
      f" {untrusted.counted(len(names), 'tensor')}"
    )
  part = max(range(len(joined)), key=lambda n: len(joined[n][1]))
  prefixes, places = joined[part]
  chosen = set(itertools.chain.from_iterable(places.values()))

  def spans(names: Iterable[str]) -> list[tensor_file.Span]:
    return [file.spans[raw[name]] for name in names]

  # The very same bytes under another prefix are no other set.
  same = {ours: spans(names) for ours, names in places.items()}
  rivals = {
    prefix
    for found in hits
    for prefix, other in found.items()
    if len(other) == len(places)
    and not chosen.issuperset(itertools.chain.from_iterable(other.values()))
    and {ours: spans(names) for ours, names in other.items()} != same
  }
  if rivals:
    sets = sorted(rivals | {prefixes[-1]})
    listed = ", ".join(
      untrusted.printable(prefix.rstrip(".") or "(no prefix)")
      for prefix in sets[:5]
    )
    raise ValueError(
      f"{file.source} holds {len(sets)} sets of these tensors, under {listed};"
      " choose one, as in FILE::ema"
    )
  return spelled.parts[part], prefixes


def _hits(names: Iterable[str], spelled: _Spelled) -> list[dict[str, Places]]:
  """For each part of the table: prefix -> the tensors that lie under it."""
  hits: list[dict[str, Places]] = [{} for _ in spelled.parts]
  for full in names:
    at = len(full)
    for _ in range(spelled.depth):  # however long the prefix is
      at = full.rfind(".", 0, max(0, at - 1)) + 1
      for found, part in zip(hits, spelled.parts, strict=True):
        if full[at:] in part:
          ours, _ = part[full[at:]]
          found.setdefault(full[:at], {}).setdefault(ours, []).append(full)
      if not at:
        break
  return hits


def _join(found: Mapping[str, Places]) -> tuple[list[str], Places]:
  """The prefix of most tensors, and those around or within it with the rest.

  Some tensors of a file may have a prefix and others none.
  """

  def size(prefix: str) -> tuple[int, int, int, str]:
    places = found[prefix]
    return len(places), sum(map(len, places.values())), -len(prefix), prefix

  prefixes: list[str] = []
  joined: Places = {}
  for prefix in sorted(found, key=size, reverse=True):
    nested = any(p.startswith(prefix) or prefix.startswith(p) for p in prefixes)
    if not prefixes or (nested and joined.keys().isdisjoint(found[prefix])):
      prefixes.append(prefix)
      joined |= found[prefix]
    if len(prefixes) == _PREFIXES:
      break
  return sorted(prefixes, key=len, reverse=True), joined


class _Quantized:
  """What a file says of its 8-bit weights."""

  def __init__(
    self,
    file: tensor_file.TensorFile,
    raw: Mapping[str, str],
    prefixes: Sequence[str],
  ):
    self._file, self._raw = file, raw
    self._markers = {_MARKER, *(f"{prefix}{_MARKER}" for prefix in prefixes)}
    self._unscaled: list[str] = []

  def _span(self, name: str) -> tensor_file.Span:
    return self._file.spans[self._raw[name]]

  def scale(self, weight: str) -> tensor_file.Span | None:
    """Where the scale of a weight lies; None if it has none.

    Raises:
      ValueError: there are two, or one that does not fit the weight.
    """
    span = self._span(weight)
    layer = weight.removesuffix("weight")
    names = [f"{layer}{s}" for s in _SCALES if f"{layer}{s}" in self._raw]
    if not weight.endswith(".weight") or not names:
      # Scales belong to matrices: biases and norms beside them have none.
      if span.dtype in _FP8 and len(span.shape) > 1:
        self._unscaled.append(weight)
      return None
    scale = self._span(names[0])
    rows = span.shape[:1]
    one = math.prod(scale.shape) == 1 and len(scale.shape) <= len(span.shape)
    a_row = scale.shape[:1] == rows and set(scale.shape[1:]) <= {1}
    fits = one or a_row
    floating = jnp.issubdtype(scale.dtype, jnp.floating)
    if span.dtype not in _FP8:
      raise ValueError(
        f"{self._file.source}: '{untrusted.printable(self._raw[weight])}' is"
        f" {span.dtype} with a scale ('{names[0].rpartition('.')[2]}'); scales"
        " are read beside 8-bit floating point alone: use the 16-bit file"
      )
    if len(names) > 1 or not fits or not floating:
      raise ValueError(
        f"{self._file.source}: scaled fp8: expected one scale, of one number or"
        f" one a row, for an 8-bit weight; '{untrusted.printable(names[0])}' is"
        f" {scale.dtype} {scale.shape} for {span.dtype} {span.shape}"
      )
    return scale

  def explains(self, name: str) -> bool:
    """Whether a tensor describes 8-bit weights, and is no weight itself."""
    if name in self._markers:
      return True
    layer, _, last = name.rpartition(".")
    known = last in (*_SCALES, *_UNUSED)
    return known and f"{layer}.weight" in self._raw

  def check(self, unknown: Iterable[str], used: Iterable[str]) -> None:
    """Refuse forms of quantization that are not known.

    Raises:
      ValueError: names the form.
    """
    for name in used:
      layer = f"{name.removesuffix('weight')}comfy_quant"
      if layer in self._raw:
        self._check_format(self._span(layer).read().tobytes(), layer)
    metadata = self._file.values.get(_QUANTIZATION)
    if isinstance(metadata, str) and metadata.strip() != "null":
      self._check_format(metadata.encode(), _QUANTIZATION)
    has_fp8 = any(s.dtype in _FP8 for s in self._file.spans.values())
    strange = sorted(n for n in unknown if "scale" in n.rpartition(".")[2])
    if has_fp8 and strange:
      listed = untrusted.printable(", ".join(strange[:3]))
      raise ValueError(
        f"{self._file.source}: scaled fp8 with"
        f" {untrusted.counted(len(strange), 'unknown key')}: {listed}; known"
        f" are {', '.join(_SCALES)}"
      )
    if self._markers & self._raw.keys() and self._unscaled:
      raise ValueError(
        f"{self._file.source}: scaled fp8: no scale for"
        f" {untrusted.counted(len(self._unscaled), 'weight')}, such as"
        f" '{untrusted.printable(self._unscaled[0])}'"
      )

  def _check_format(self, text: bytes, name: str) -> None:
    """Refuse a description of anything but 8-bit floating point."""
    try:
      value: Any = untrusted.parse_json(text)
    except ValueError as error:
      raise ValueError(f"{self._file.source}: '{name}': {error}") from error
    layers = value.get("layers", value) if isinstance(value, dict) else None
    if layers is value:
      layers = {name: value}
    for layer in layers.values() if isinstance(layers, dict) else (None,):
      form = layer.get("format") if isinstance(layer, dict) else layer
      if form not in _FP8_FORMATS:
        raise ValueError(
          f"{self._file.source}: its weights are quantized as"
          f" '{untrusted.printable(str(form), 40)}', expected"
          f" {' or '.join(_FP8_FORMATS)}; use the 16-bit file"
        )


def _forms(
  rows: Sequence[mapping.Row], found: Mapping[str, Tensor]
) -> tuple[mapping.Row, ...]:
  """The rows in the form that is there, without constants that are not.

  Our model computes constants itself, so that a file may lack them.
  """
  chosen: list[mapping.Row] = []
  for row in rows:
    present = any(n in found for n in row.all_names)
    if not present and row.ours is None:
      continue
    other = row.alternative
    others = _table_names([other] if other is not None else [])
    if other is not None and not present and any(n in found for n in others):
      row = other
    chosen.append(row)
  return tuple(chosen)


def _wide(
  rows: Sequence[mapping.Row], found: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
  """One dtype a row: the widest of its blocks; of 8-bit weights, bfloat16."""
  wide = dict(found)
  count: collections.Counter[bool] = collections.Counter()
  mixed = 0
  for row in rows:
    names = [n for n in row.all_names if n in found]
    narrow = [n for n in names if found[n].span.dtype in _FP8]
    # The last tensor of each block decides.
    last = [n for i in row.indices for n in row.names(i)[-1:] if n in found]
    others = {found[n].span.dtype for n in (names if narrow else last)} - _FP8
    if row.ours is None or not (narrow or len(others) > 1):
      continue
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in others):
      continue
    dtype = _common(others)
    for name in narrow:
      wide[name] = dataclasses.replace(found[name], dtype=dtype)
      count[found[name].scale is not None] += 1
    for name in last:
      if name not in narrow and found[name].dtype != dtype:
        wide[name] = dataclasses.replace(found[name], dtype=dtype)
        mixed += 1
  notes = []
  if count[True]:
    weights = untrusted.counted(count[True], "weight")
    notes.append(f"scaled fp8: {weights}, scales applied")
  if count[False]:
    notes.append(
      f"unscaled fp8: {untrusted.counted(count[False], 'tensor')}, rounded to 8"
      " bits by whoever made the file and widened without a scale"
    )
  if mixed:
    notes.append(
      f"mixed precision: {untrusted.counted(mixed, 'tensor')} widened to that"
      " of other blocks"
    )
  return wide, notes


def _common(dtypes: set[np.dtype]) -> np.dtype:
  """The dtype that holds all numbers of `dtypes`; bfloat16 of none."""
  if not dtypes:
    return np.dtype(ml_dtypes.bfloat16)
  if len(dtypes) == 1:
    return next(iter(dtypes))
  has_double = np.dtype(np.float64) in dtypes
  return np.dtype(np.float64 if has_double else np.float32)


def _widened(
  array: np.ndarray, scale: np.ndarray, dtype: np.dtype
) -> np.ndarray:
  """8-bit numbers times their scale, in pieces, rounded once."""
  numbers = np.arange(256, dtype=np.uint8).view(array.dtype)
  numbers = numbers.astype(np.float32)
  rows = len(array) if array.ndim else 1
  codes = array.reshape(rows, array.size // max(1, rows)).view(np.uint8)
  factors = np.broadcast_to(scale.reshape(-1, 1), (rows, 1))
  wide = np.empty(codes.shape, dtype)
  step = max(1, _PIECE // max(1, codes.shape[1]))
  with np.errstate(invalid="ignore", over="ignore"):
    for at in range(0, rows, step):
      piece = slice(at, at + step)
      wide[piece] = (numbers[codes[piece]] * factors[piece]).astype(dtype)
  return wide.reshape(array.shape)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
  """Whether two tensors are alike to the bit; compared in pieces."""
  if one.shape != other.shape or one.dtype != other.dtype:
    return False
  a, b = (x.reshape(-1).view(np.uint8) for x in (one, other))
  return all(
    np.array_equal(a[at : at + _PIECE], b[at : at + _PIECE])
    for at in range(0, a.size, _PIECE)
  )
