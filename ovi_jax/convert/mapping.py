"""The two-way mapping between PyTorch tensors and our parameters.

A model's mapping is a table of `Row`s (one file a model in this package). The
engine checks a table against both sides at once and in both directions: every
tensor of the release and every parameter of ours is named exactly once and
fits, or one error lists everything that does not.

The op of a row rearranges a tensor, or folds several: a release may hold a
weight in parts, or as a direction that its code rescales before use, where our
models hold the weight that is multiplied with; and it holds tables that our
models compute. Folds are computed in float64 and rounded once, to the dtype of
the tensor they come from.

A `Dialect` lists the names that another tool gives to the tensors of a table.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import einops
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ovi_jax import untrusted

# A tensor of the release by name -> its array, read when it is needed.
Read = Callable[[str], np.ndarray]
Shape = tuple[int, ...]
_LISTED = 10  # misfits in a message
_MISSING = "tensor missing from the file: "


class FoldError(ValueError):
  """Tensors of which no parameter can be made.

  Attributes:
    name: of the tensor in the release.
  """

  def __init__(self, name: str, reason: str):
    super().__init__(f"{name}: {reason}")
    self.name = name


class Op(Protocol):
  """How the tensors of one row become one parameter, and back."""

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    """The parameter made of `tensors`, in the dtype of the last one."""
    ...

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    """The tensors that `to_ours` turns into `parameter`."""
    ...

  def shape(self, *shapes: Shape) -> Shape:
    """The parameter's shape for tensors of `shapes`; ValueError if unfit."""
    ...


@dataclasses.dataclass(frozen=True)
class Rearrange:
  """One tensor with its axes renamed, in einops notation: `o i -> i o`."""

  pattern: str = "... -> ..."
  sizes: tuple[tuple[str, int], ...] = ()

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    (tensor,) = tensors
    return einops.rearrange(tensor, self.pattern, **dict(self.sizes))

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    left, right = self.pattern.split("->")
    sizes = dict(self.sizes)
    return (einops.rearrange(parameter, f"{right} -> {left}", **sizes),)

  def shape(self, *shapes: Shape) -> Shape:
    # A view of one zero: the pattern is tried without memory for the tensor.
    views = (np.broadcast_to(np.zeros((), bool), s) for s in shapes)
    try:
      return self.to_ours(*views).shape
    except einops.EinopsError as error:
      raise ValueError(str(error).strip().splitlines()[-1].strip()) from error


@dataclasses.dataclass(frozen=True)
class Scalar:
  """One number: no axes, or one of size 1, which PyTorch loads as well."""

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    (tensor,) = tensors
    return tensor.reshape(())

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    return (parameter,)

  def shape(self, *shapes: Shape) -> Shape:
    (shape,) = shapes
    if tuple(shape) not in ((), (1,)):
      raise ValueError(f"expected one number, got shape {shape}")
    return ()


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a table.

  Attributes:
    torch: name, or names, in the release. `{}` stands for a block's index.
    ours: path of the parameter, `/` between levels; `None` for a tensor that
      our model computes (the op then checks the value and makes it again).
    op: how one becomes the other.
    stack: number of blocks; block i is slice i of the parameter's first axis.
    alternative: another form of the same parameter, for files that hold it.
  """

  torch: str | tuple[str, ...]
  ours: str | None
  op: Op = Rearrange()
  stack: int | None = None
  alternative: "Row | None" = None

  @property
  def indices(self) -> tuple[int | None, ...]:
    return (None,) if self.stack is None else tuple(range(self.stack))

  @property
  def all_names(self) -> list[str]:
    """The names in the release of all slices."""
    return [name for index in self.indices for name in self.names(index)]

  def names(self, index: int | None) -> tuple[str, ...]:
    """The names in the release of slice `index` of this row."""
    names = (self.torch,) if isinstance(self.torch, str) else self.torch
    return names if index is None else tuple(n.format(index) for n in names)


def affine(
  torch: str, ours: str, kernel: Rearrange, stack: int | None = None
) -> list[Row]:
  """The two rows of a layer with bias."""
  return [
    Row(f"{torch}.weight", f"{ours}/kernel", kernel, stack),
    Row(f"{torch}.bias", f"{ours}/bias", stack=stack),
  ]


def linear(torch: str, ours: str, stack: int | None = None) -> list[Row]:
  """The two rows of a `torch.nn.Linear` with bias."""
  return affine(torch, ours, Rearrange("o i -> i o"), stack)


def norm(torch: str, ours: str, stack: int | None = None) -> list[Row]:
  """The two rows of a `torch.nn.LayerNorm` with scale and bias."""
  return [
    Row(f"{torch}.weight", f"{ours}/scale", stack=stack),
    Row(f"{torch}.bias", f"{ours}/bias", stack=stack),
  ]


def check(
  rows: Sequence[Row],
  torch_shapes: Mapping[str, Shape],
  our_shapes: Mapping[str, Shape],
) -> None:
  """Hold a table against both sides.

  Args:
    rows: the table.
    torch_shapes: shape of every tensor in the release file, by name.
    our_shapes: shape of every parameter, by path.

  Raises:
    ValueError: a tensor or parameter is unknown, missing, set twice or of
      another shape than expected; the message counts them and lists ten, or
      only the first if the file is of another size altogether.
  """
  problems: list[str] = []
  seen_torch: set[str] = set()
  seen_ours: set[str] = set()
  misshapen: list[str] = []
  compared = 0
  for row in rows:
    if row.ours is not None:
      if row.ours in seen_ours:
        problems.append(f"parameter set twice: {row.ours}")
      elif row.ours not in our_shapes:
        problems.append(f"parameter unknown to the model: {row.ours}")
      seen_ours.add(row.ours)
    for index in row.indices:
      names = row.names(index)
      problems += [f"tensor used twice: {n}" for n in names if n in seen_torch]
      seen_torch.update(names)
      absent = [n for n in names if n not in torch_shapes]
      problems += [f"{_MISSING}{n}" for n in absent]
      if not absent:
        found = _misshapen(row, index, torch_shapes, our_shapes)
        misshapen += found
        problems += found
        compared += 1
  unknown = [
    f"tensor unknown to the table: {untrusted.printable(name)}"
    f"{torch_shapes[name]}"
    for name in sorted(torch_shapes.keys() - seen_torch)
  ]
  for path in sorted(our_shapes.keys() - seen_ours):
    problems.append(f"parameter no row sets: {path}{our_shapes[path]}")
  if not problems and unknown:
    raise ValueError(
      _misfit(", which is complete without; remove what is too many", unknown)
    )
  if problems:
    hint = " (another variant or other sizes? pass the sizes with --arch)"
    if not unknown and all(p.startswith(_MISSING) for p in problems):
      hint = (
        " (one of several shards, a file cut off, or a model of fewer layers?"
        " pass all its files, or the sizes with --arch)"
      )
    if len(misshapen) > max(_LISTED, compared // 2):
      raise ValueError(
        f"{len(problems) + len(unknown)} tensors do not fit the"
        f" architecture{hint}: {len(misshapen)} of {compared} are misshapen,"
        f" first {misshapen[0].removeprefix('misshapen: ')}"
      )
    raise ValueError(_misfit(hint, [*problems, *unknown]))


def _misfit(hint: str, problems: Sequence[str]) -> str:
  """A message of one line for one problem, of a summary and ten for more."""
  if len(problems) == 1:
    return f"1 tensor does not fit the architecture{hint}: {problems[0]}"
  what = f"{len(problems)} tensors do not fit the architecture{hint}:"
  return "\n  ".join([what, *untrusted.shortened(problems)])


def _misshapen(
  row: Row,
  index: int | None,
  torch_shapes: Mapping[str, Shape],
  our_shapes: Mapping[str, Shape],
) -> list[str]:
  """What is wrong with the shapes of one slice of a row, if anything."""
  names = row.names(index)
  shapes = [tuple(torch_shapes[n]) for n in names]
  found = ", ".join(f"{n}{s}" for n, s in zip(names, shapes, strict=True))
  try:
    shape = row.op.shape(*shapes)
  except ValueError as error:
    return [f"misshapen: {found}: {error}"]
  if row.ours is None or row.ours not in our_shapes:
    return []
  expected = tuple(our_shapes[row.ours])
  if row.stack is not None:
    if expected[:1] != (row.stack,):
      return [
        f"misshapen: {row.ours} has {expected[:1]} blocks, not {row.stack}"
      ]
    expected = expected[1:]
  if shape != expected:
    return [f"misshapen: {found} gives {shape}, {row.ours} expects {expected}"]
  return []


def to_ours(
  rows: Sequence[Row], read: Read
) -> Iterator[tuple[str, int | None, np.ndarray]]:
  """Yield (path, block or None, array) row by row, one slice at a time."""
  for row in rows:
    for index in row.indices:
      names = row.names(index)
      tensors = [read(n) for n in names]
      try:
        array = row.op.to_ours(*tensors)
      except ValueError as error:
        raise FoldError(names[-1], str(error)) from error
      if row.ours is not None:
        yield row.ours, index, array


def to_torch(
  rows: Sequence[Row], read: Callable[[str, int | None], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yield (name, tensor) of the release; `read(path, index)` gives a slice."""
  for row in rows:
    for index in row.indices:
      parameter = np.zeros(()) if row.ours is None else read(row.ours, index)
      yield from zip(row.names(index), row.op.to_torch(parameter), strict=True)


def torch_leaves(
  rows: Sequence[Row], leaves: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """What `to_torch` will yield, as views of one number each.

  Args:
    rows: the table.
    leaves: anything with `shape` and `dtype` for each parameter, by path.
  """

  def view(path: str, index: int | None) -> np.ndarray:
    leaf = leaves[path]
    shape = leaf.shape if index is None else leaf.shape[1:]
    return np.broadcast_to(np.zeros((), leaf.dtype), shape)

  return dict(to_torch(rows, view))


def gather(rows: Sequence[Row], read: Read) -> dict[str, np.ndarray]:
  """All parameters by path, in memory (for small models)."""
  slices: dict[str, list[np.ndarray]] = {}
  stacked: dict[str, bool] = {}
  for path, index, array in to_ours(rows, read):
    slices.setdefault(path, []).append(np.asarray(array))
    stacked[path] = index is not None
  return {p: np.stack(s) if stacked[p] else s[0] for p, s in slices.items()}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a/b": x}` -> `{"a": {"b": x}}`."""
  return traverse_util.unflatten_dict(dict(flat), sep="/")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a": {"b": x}}` -> `{"a/b": x}`."""
  return traverse_util.flatten_dict(dict(tree), sep="/")


# Largest part of a constant's largest figure by which a file may differ,
# besides the rounding of the file's own precision.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
  """A tensor that our model computes itself (its row has `ours=None`).

  Attributes:
    name: of the tensor, for the error.
    value: what it must hold, and what an export writes.
  """

  name: str
  value: np.ndarray

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    """`value`; ValueError if the tensor differs by more than rounding."""
    (tensor,) = tensors
    self.shape(tensor.shape)
    theirs = np.asarray(tensor, np.float64)
    ours = np.asarray(self.value, np.float64)
    precision = jnp.finfo(tensor.dtype)
    allowed = (
      _ROUNDING * np.abs(ours).max()
      + float(precision.eps) * np.abs(ours)
      + float(precision.smallest_subnormal)
    )
    differs = ~(np.abs(theirs - ours) <= allowed)
    if differs.any():
      at = tuple(int(i) for i in np.argwhere(differs)[0])
      raise ValueError(
        f"{self.name}: {int(differs.sum())} of {ours.size} figures differ from"
        f" the configuration's, first at {at}: expected {ours[at]:.6g}, got"
        f" {theirs[at]:.6g}; set the figures of the file in the configuration"
      )
    return self.value

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    del parameter
    return (self.value,)

  def shape(self, *shapes: Shape) -> Shape:
    (shape,) = shapes
    if tuple(shape) != self.value.shape:
      raise ValueError(f"{self.name}: expected shape {self.value.shape}")
    return self.value.shape


@dataclasses.dataclass(frozen=True)
class WeightNorm:
  """Weight normalisation: a norm a filter, a direction -> their product.

  A filter is a slice of the first axis, as in PyTorch: an output channel of a
  convolution, an input channel of a transposed one.

  Attributes:
    layout: from the axes of the direction to ours.
  """

  layout: Rearrange

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    norm, direction = tensors
    filters = direction.astype(np.float64)
    norms = _norms(filters)
    if not norms.all():
      raise ValueError(
        f"weight norm: {int((norms == 0).sum())} filters of {norms.size} have"
        " no direction, expected none of zeros alone; the file is damaged"
      )
    weight = filters * (norm.astype(np.float64) / norms)
    return self.layout.to_ours(weight.astype(direction.dtype))

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    (weight,) = self.layout.to_torch(parameter)
    norms = _norms(weight.astype(np.float64))
    # A filter of zeros has no direction: any will do, at norm zero.
    direction = np.where(norms == 0, np.ones_like(weight), weight)
    return norms.astype(weight.dtype), direction

  def shape(self, *shapes: Shape) -> Shape:
    norm, direction = shapes
    expected = (direction[0], *(1 for _ in direction[1:]))
    if tuple(norm) != expected:
      raise ValueError(f"expected norms of shape {expected}, got {norm}")
    return self.layout.shape(direction)


@dataclasses.dataclass(frozen=True)
class MagnitudePreserving:
  """A weight that is divided by its filters' norms before use -> the quotient.

  The divisor of a filter W of n numbers is |W| + epsilon·√n. A quotient of norm
  r < 1 therefore comes from exactly one multiple of itself: by
  √n·epsilon / (1 - r).

  Attributes:
    layout: from the axes of the weight to ours.
    epsilon: relative to the root mean square of a filter.
  """

  layout: Rearrange
  epsilon: float = 1e-4

  def to_ours(self, *tensors: np.ndarray) -> np.ndarray:
    (weight,) = tensors
    filters = weight.astype(np.float64)
    quotient = filters / (_norms(filters) + self._offset(filters))
    return self.layout.to_ours(quotient.astype(weight.dtype))

  def to_torch(self, parameter: np.ndarray) -> tuple[np.ndarray, ...]:
    """The weight; ValueError if a filter's norm is over 1, which has none."""
    (quotient,) = self.layout.to_torch(parameter)
    filters = quotient.astype(np.float64)
    norms = _norms(filters)
    # Rounding may bring a norm of almost 1 to 1, or the last bit beyond.
    if norms.max() > 1 + float(jnp.finfo(quotient.dtype).eps):
      raise ValueError(
        "magnitude-preserving filters: expected norms below 1, got"
        f" {norms.max():.6g}; divide each filter by its norm before export"
      )
    scale = self._offset(filters) / np.maximum(1 - norms, 1e-7)
    return ((filters * scale).astype(quotient.dtype),)

  def shape(self, *shapes: Shape) -> Shape:
    return self.layout.shape(*shapes)

  def _offset(self, filters: np.ndarray) -> float:
    return self.epsilon * (filters.size / filters.shape[0]) ** 0.5


def _norms(filters: np.ndarray) -> np.ndarray:
  """Norm of every slice of the first axis, which alone keeps its size."""
  axes = tuple(range(1, filters.ndim))
  return np.sqrt(np.square(filters).sum(axes, keepdims=True))


# Pattern of a placeholder by its name; any other stands for one name.
_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "rest": r".+"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
  """Names of one tool.

  Attributes:
    name: of the tool, for messages.
    patterns: (the release's name, the tool's name). `{i}` and `{j}` stand for
      numbers, `{rest}` for anything, any other placeholder for what lies
      between two dots.
    ignored: patterns of tensors in the tool's files that belong to no model
      of ours.
  """

  name: str
  patterns: tuple[tuple[str, str], ...]
  ignored: tuple[str, ...] = ()

  def names(self, name: str) -> list[str]:
    """The tool's names of the release's tensor `name`; usually one or none."""
    return [
      theirs.format(**match.groupdict())
      for ours, theirs in self.patterns
      if (match := compiled(ours).fullmatch(name))
    ]

  def ignores(self, name: str) -> bool:
    """Whether the tool's tensor `name` belongs to no model of ours."""
    return any(compiled(pattern).fullmatch(name) for pattern in self.ignored)


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
  """The regular expression of a pattern."""
  parts = re.split(r"\{(\w+)\}", pattern)
  return re.compile(
    "".join(
      f"(?P<{part}>{_PLACEHOLDERS.get(part, '[^.]+')})"
      if position % 2
      else re.escape(part)
      for position, part in enumerate(parts)
    )
  )
